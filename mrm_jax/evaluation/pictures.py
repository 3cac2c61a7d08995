"""Pictures of a user's own: which files, what their results are called, how they are read."""

from __future__ import annotations

import dataclasses
import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mrm_jax.config import Config, evaluation_domain
from mrm_jax.data.files import SUFFIXES
from mrm_jax.errors import RunError, UsageError
from mrm_jax.paths import (
    below,
    is_remote,
    located,
    longest_name,
    names_below,
    result_name,
    same_file,
    what_is_wrong,
    write_bytes,
)

PRODUCTS = ("", "_colour", "_overlay")
"""What is appended to a picture's name: train ids, colours, colours over the picture."""
LARGEST_FACTOR = 2.0
SMALLEST_FACTOR = 0.25
"""Scales of a picture beyond which a warning says that the result may be poor."""


def collect_pictures(paths: Sequence[str], to: Path) -> list[Path]:
    """The picture files that the words on the command line mean, each once.

    A folder or a pattern does not mean what lies in `to`, a folder below: results of an earlier
    call. Raises UsageError for a word that means nothing, and where `to` is a folder of pictures.
    """
    found: dict[Path, Path] = {}
    for word in paths:
        try:
            for match in _meant(word, to):
                found.setdefault(_whole(match), match)
        except OSError as error:
            raise UsageError(f"predict: {word} cannot be read: {what_is_wrong(error)}.") from error
    return list(found.values())


def _meant(word: str, to: Path) -> list[Path]:
    """What one word means, see `collect_pictures`; OSError for one that no file system takes."""
    path = located(word)
    if path.is_dir() and _whole(path) == _whole(to):
        raise UsageError.at("--to", " is the folder of the pictures", "give another one.", value=to)
    if is_remote(path):
        matches = _in_bucket(path, to)
    elif path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        matches = _earlier_results_left_out(inside, path, to)
    elif path.exists():
        matches = [path]
    else:
        matched = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        matches = _earlier_results_left_out(matched, _fixed_part(path), to)
    if not matches:
        kind = f"holds no picture ({' '.join(SUFFIXES)})" if path.is_dir() else "does not exist"
        raise UsageError(f"predict: {word} {kind}.")
    return matches


def _whole(path: Path) -> Path:
    """The one path of a file, without links; those of a bucket are whole already."""
    return path if is_remote(path) else path.resolve()


def _in_bucket(path: Path, to: Path) -> list[Path]:
    """`path`, or the pictures below it: by one listing, for every question is a request."""
    if not path.is_dir():
        return [path] if path.exists() else []
    inside = [below(path, name) for name in sorted(names_below(path))]
    return [p for p in inside if p.suffix.lower() in SUFFIXES and not p.is_relative_to(to)]


def _fixed_part(pattern: Path) -> Path:
    """The folder that a pattern starts from."""
    while glob.has_magic(str(pattern)):
        pattern = pattern.parent
    return pattern


def _earlier_results_left_out(paths: Sequence[Path], root: Path, to: Path) -> list[Path]:
    inside, results = _whole(to).is_relative_to(root.resolve()), _whole(to)
    files = [path for path in paths if path.is_file()]
    return [p for p in files if not (inside and p.resolve().is_relative_to(results))]


class NamedPicture(NamedTuple):
    """A picture and the name of its results."""

    path: Path
    name: str


def name_outputs(pictures: Sequence[Path], to: Path) -> list[NamedPicture]:
    """A name for every picture, so that no two results, and no picture and result, share a file.

    The stem where it is the only one; else as many folders before it as it takes, then the suffix,
    then a number; as a name that every file system takes (`paths.result_name`). Names are compared
    without case, as some file systems do. Raises UsageError where results would replace a picture.
    """
    stems = Counter(same_file(picture.stem) for picture in pictures)
    spare, longest = max(len(f"{product}.png") for product in PRODUCTS), longest_name(to)
    taken: set[str] = set()
    jobs = []
    for picture in pictures:
        candidates = (
            result_name(name, spare=spare, longest=longest)
            for name in _candidates(picture, alone=stems[same_file(picture.stem)] == 1)
        )
        name = next(name for name in candidates if not _files(name) & taken)
        taken |= _files(name)
        jobs.append(NamedPicture(picture, name))
    sources = {_whole(picture) for picture in pictures}
    for job in jobs:
        for product in PRODUCTS:
            if _whole(below(to, f"{job.name}{product}.png")) in sources:
                raise UsageError.at(
                    "--to",
                    f": {job.name}{product}.png there is one of the pictures",
                    "give another folder.",
                    value=to,
                )
    return jobs


def _candidates(picture: Path, *, alone: bool) -> Iterator[str]:
    """Names to try in turn, without end."""
    parts = _whole(picture).with_suffix("").parts[1:]
    names = ["__".join(parts[-n:]) for n in range(1 if alone else 2, len(parts) + 1)]
    yield from names
    yield f"{parts[-1]}{picture.suffix.replace('.', '_')}"
    yield from (f"{parts[-1]}_{n}" for n in count(2))


def _files(name: str) -> set[str]:
    return {same_file(f"{name}{product}") for product in PRODUCTS}


def prediction_files(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """The PNG below `folder` for the prediction of each picture of a set, by its name, a path with
    forward slashes that a manifest may have given; see `paths.result_name`.

    Raises UsageError for a name that leads out of the folder, and for two pictures of one name.
    """
    longest, taken = longest_name(folder), Counter[str]()
    found: dict[str, Path] = {}
    for name in names:
        if name in found:
            raise UsageError.at(folder, f": two pictures are called {name!r}", "name them apart.")
        plain = result_name(name, spare=len("_99999.png"), longest=longest)
        below(folder, plain)  # with an ending "a/" would be another name
        taken[same_file(plain)] += 1
        number = taken[same_file(plain)]
        found[name] = below(folder, f"{plain}{f'_{number}' if number > 1 else ''}.png")
    if len(set(found.values())) < len(found):
        raise UsageError.at(folder, ": two pictures would share a file there", "name them apart.")
    return found


def input_box(config: Config) -> tuple[int, int] | None:
    """(long, short) px that pictures are fitted into, as in evaluation, or None."""
    domain = evaluation_domain(config)
    if domain.resize is not None:
        return domain.resize
    return (max(domain.size), min(domain.size)) if domain.kind == "drawn" else None


def scale_warning(
    size: tuple[int, int], fitted: tuple[int, int], crop: tuple[int, int]
) -> str | None:
    """Why a picture of `size` that the network reads at `fitted` may come out poorly, or None."""
    factor = max(fitted) / max(size)
    share = max(fitted) / max(crop)
    now = f"is {size[1]} x {size[0]} px"
    if factor > LARGEST_FACTOR:
        return f"{now} and is enlarged {factor:.1f} times to the training scale"
    if factor < SMALLEST_FACTOR:
        return (
            f"{now} and is shrunk {1 / factor:.1f} times to the training scale, which loses small "
            "things; a larger --resize keeps them, at another scale than in training"
        )
    if factor == 1 and not 0.5 <= share <= 4:
        return (
            f"{now}, {share:.2g} times the training crop; set --resize if its things are much "
            "larger or smaller than in training"
        )
    return None


def adapted(config: Config, fitted: tuple[int, int]) -> Config:
    """`config`, with windows of the training crop where a picture is far larger than it."""
    crop = config.data.crop
    far = fitted[0] * fitted[1] > 8 * crop[0] * crop[1]
    if config.evaluation.mode == "slide" or not far:
        return config
    stride = (max(1, crop[0] * 2 // 3), max(1, crop[1] * 2 // 3))
    evaluation = dataclasses.replace(config.evaluation, mode="slide", window=crop, stride=stride)
    return dataclasses.replace(config, evaluation=evaluation)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes u8[H,W] or RGB u8[H,W,3] as PNG in one move, with its folders; RunError, caused by the
    OSError, if that fails."""
    stored = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".png", stored)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, encoded.tobytes())
    except OSError as error:
        raise RunError.at(path, f" cannot be written: {what_is_wrong(error)}.") from error
