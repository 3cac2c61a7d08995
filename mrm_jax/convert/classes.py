"""The classes that a file of weights names."""

from __future__ import annotations

from typing import Any

from mrm_jax.config import Classes
from mrm_jax.convert.reader import WeightFile
from mrm_jax.errors import UsageError


def named_classes(file: WeightFile, count: int) -> Classes | None:
    """The classes that the file names, else numbered ones; None for Cityscapes' 19 or an
    encoder."""
    names, colours = file.meta.get("CLASSES"), file.meta.get("PALETTE")
    named = isinstance(names, list) and len(names) == count
    if count == 0 or (count == 19 and not named):
        return None
    numbered = tuple(f"class_{i}" for i in range(count))
    palette = [(i * 67 % 256, i * 151 % 256, i * 211 % 256) for i in range(count)]
    if not named or not isinstance(names, list):
        return Classes(names=numbered, colours=tuple(palette))
    if not all(isinstance(name, str) and name.isprintable() for name in names):
        raise UsageError.at(file.path, ": its CLASSES are no names", "give the run's --config.")
    if isinstance(colours, list) and len(colours) == count:
        if not all(map(_is_colour, colours)):
            raise UsageError.at(
                file.path, ": its PALETTE is no colours", "give the run's --config."
            )
        palette = [tuple(colour) for colour in colours]
    return Classes(names=tuple(names), colours=tuple(palette))


def _is_colour(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 3
        and all(isinstance(x, int) and 0 <= x <= 255 for x in entry)
    )
