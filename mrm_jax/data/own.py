"""A target of one's own in a config that was written for a published set.

`--config.data.target.path=MINE` names a folder, and what is in it says which of the two it is: with
any part of the published layout it is that set, as a whole or with an error; without one it is a
folder of pictures, which are searched at any depth and have no labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath

from mrm_jax.config import Config, Domain
from mrm_jax.data import finding
from mrm_jax.data.prepared.reading import reads_prepared
from mrm_jax.data.tree import walk
from mrm_jax.paths import located

LAYOUT = ("images", "image_suffix", "labels", "label_suffix", "listing")
"""Fields of a domain that say where its files lie."""
_COMMON = "images"  # a folder that people's own pictures lie in as well


def own_target(config: Config, *, as_written: bool = True) -> tuple[Config, str]:
    """`config` with a target that is a folder of one's own pictures taken as one, and the line that
    says so; `config` itself and "" where it is none.

    Then nothing is scored by labels, margins of the published pictures are dropped, and the box
    that pictures are fitted into stays. as_written: False where flags say where the evaluation's
    files lie: then it is left alone.
    """
    data, target = config.data, config.data.target
    if target.kind != "folder" or not target.path or config.method.kind == "target_only":
        return config, ""
    root = located(target.path)
    evaluation = data.evaluation
    if not root.is_dir() or reads_prepared(target):
        return config, ""
    follows = evaluation.path in (None, target.path) and evaluation.kind == "folder"
    layouts = [target, evaluation] if follows and as_written else [target]
    parts = _parts(layouts)
    names = [name for name, _ in walk(root)] if target.images else []
    pictures = sum(1 for _ in finding.pictures((name, root) for name in names))
    mine = bool(pictures) and not any(_part_of(name, parts) for name in names)
    drawn = evaluation.kind == "drawn"
    if not mine and not (drawn and not target.images):
        return config, ""
    said = f"config.data.target.path: {target.path} "
    if mine:
        target = replace(target, **_anywhere(), margins=(0, 0, 0, 0))
        said += f"holds no part of the published set ({', '.join(sorted(parts))}): it is taken as "
        said += f"a folder of {pictures} pictures of your own"
    else:
        said += "is taken as a folder of pictures of your own"
    if as_written and (follows or drawn):
        evaluation = replace(evaluation, kind="folder", path=None, remark="", **_anywhere())
        said += ", with no labels to score by; scores without labels pick a checkpoint"
    data = replace(data, target=target, evaluation=evaluation)
    return replace(config, data=data), f"{said}."


def _anywhere() -> dict[str, str | None]:
    plain = Domain()
    return {name: getattr(plain, name) for name in LAYOUT}


def _parts(layouts: Iterable[Domain]) -> set[str]:
    """Folders and endings of names that only a published layout has."""
    folders = [f for each in layouts for f in (each.images, each.labels, each.listing) if f]
    parts = {finding.fixed_part(folder).split("/")[0] for folder in folders}
    endings = {end for each in layouts for end in (each.image_suffix, each.label_suffix)}
    return {*parts - {_COMMON, ""}, *(end for end in endings if PurePosixPath(end).suffix)}


def _part_of(name: str, parts: set[str]) -> bool:
    """Whether a file's name shows one of them; an archive shows what its own name begins with."""
    *folders, last = name.split("/")
    archive = re.split(r"[_.]", last)[0] if last.lower().endswith((".zip", ".tar", ".tgz")) else ""
    endings = tuple(part for part in parts if "." in part)
    return not parts.isdisjoint((*folders, archive)) or last.endswith(endings)
