"""Pictures of a user's own: which files, what their results are called, how they are read."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple, cast

import cv2
import numpy as np

from mrm_jax.data import finding
from mrm_jax.data.files import SUFFIXES
from mrm_jax.data.tree import passed_over, walk
from mrm_jax.errors import RunError, UsageError
from mrm_jax.paths import (
    below,
    is_remote,
    located,
    longest_name,
    result_name,
    same_file,
    what_is_wrong,
    write_bytes,
)

PRODUCTS = {"ids": "", "colour": "_colour", "overlay": "_overlay", "confidence": "_confidence"}
"""What is made of a picture, and what is appended to its name: train ids, colours, colours over the
picture, and the probability of each pixel's class."""
VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts")
"""Endings of a file named by itself that is a video, in lower case."""
LARGEST_FACTOR = 2.0
SMALLEST_FACTOR = 0.25
"""Scales of a picture beyond which a warning says that the result may be poor."""


class NamedPicture(NamedTuple):
    """A picture, or a video, and the name of its results below the folder of results."""

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether it is a video."""
        return self.path.name.lower().endswith(VIDEOS)  # of an archive's member, too

    def is_numbered(self, before: NamedPicture) -> bool:
        """Whether the name has a number that it had not `before`, as an earlier one took it."""
        return self.name.startswith(f"{result_name(before.name)}_")


def video_suffix(size: tuple[int, int]) -> str:
    """The ending of an overlay video of `size` (height, width): H.264 halves the resolution of
    colours, which takes even numbers."""
    return ".webm" if size[0] % 2 or size[1] % 2 else ".mp4"


def collect_pictures(paths: Sequence[str], to: Path) -> list[NamedPicture]:
    """The picture files that the words on the command line mean, each once, by their path below
    the folder that a word names, without ending.

    A folder or a pattern does not mean what lies in `to`, a folder below: results of an earlier
    call. Raises UsageError for a word that means nothing, and where `to` is a folder of pictures.
    """
    found: dict[Path, NamedPicture] = {}
    for word in paths:
        try:
            root = _root(word)
            for match in _meant(word, to):
                name = os.fspath(match.with_suffix(""))[len(os.fspath(root)) :].lstrip("/")
                if root == Path():
                    name = os.fspath(match.with_suffix(""))
                found.setdefault(_whole(match), NamedPicture(match, name))
        except OSError as error:
            raise UsageError(
                f"predict: {word} cannot be read: {what_is_wrong(error)}.", field=word
            ) from error
    return list(found.values())


def _root(word: str) -> Path:
    """The folder whose layout the results of a word mirror."""
    path = located(word)
    if path.is_dir():
        return path
    return path.parent if is_remote(path) or path.exists() else _fixed_part(path)


def _meant(word: str, to: Path) -> list[Path]:
    """What one word means, see `collect_pictures`; OSError for one that no file system takes."""
    path = located(word)
    if path.is_dir() and _whole(path) == _whole(to):
        raise UsageError.at("--to", " is the folder of the pictures", "give another one.", value=to)
    if is_remote(path):
        matches = _in_bucket(path, to)
    elif path.is_dir():
        matches = _earlier_results_left_out(_inside(path), path, to)
    elif path.exists():
        matches = [path]
    else:
        start = _fixed_part(path)
        matched = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        matched = [p for p in matched if not any(map(passed_over, p.relative_to(start).parts))]
        matches = _earlier_results_left_out(matched, start, to)
    if not matches:
        kind = f"holds no picture ({' '.join(SUFFIXES)})" if path.is_dir() else "does not exist"
        raise UsageError(f"predict: {word} {kind}.", field=word)
    return matches


def _whole(path: Path) -> Path:
    """The one path of a file, without links; those of a bucket are whole already."""
    return path if is_remote(path) else path.resolve()


def _in_bucket(path: Path, to: Path) -> list[Path]:
    """`path`, or the pictures below it: by one listing, for every question is a request."""
    if not path.is_dir():
        return [path] if path.exists() else []
    return [file for file in _inside(path) if not file.is_relative_to(to)]


def _inside(folder: Path) -> list[Path]:
    """The pictures below a folder, as a data set is searched: without what is hidden."""
    found = finding.pictures(walk(folder))
    return [cast("Path", file) for _, file in sorted(found, key=lambda pair: pair[0])]


def _fixed_part(pattern: Path) -> Path:
    """The folder that a pattern starts from."""
    while glob.has_magic(str(pattern)):
        pattern = pattern.parent
    return pattern


def _earlier_results_left_out(paths: Sequence[Path], root: Path, to: Path) -> list[Path]:
    inside, results = _whole(to).is_relative_to(root.resolve()), _whole(to)
    files = [path for path in paths if path.is_file()]
    return [p for p in files if not (inside and p.resolve().is_relative_to(results))]


def name_outputs(
    pictures: Sequence[NamedPicture], to: Path, products: Sequence[str] = tuple(PRODUCTS)
) -> list[NamedPicture]:
    """The pictures with names for their results, so that no two results, and no picture and result,
    share a file, whichever of `PRODUCTS` are made.

    The picture's own name, as one that every file system takes (`paths.result_name`), numbered
    where an earlier one has taken it. Names are compared without case, as some file systems do.
    Raises UsageError where `products` would replace a picture.
    """
    spare, longest = max(len(f"{PRODUCTS[p]}.png") for p in products), longest_name(to)
    taken: set[str] = set()
    jobs = []
    for path, given in pictures:
        candidates = chain([given], (f"{given}_{n}" for n in count(2)))
        names = (result_name(name, spare=spare, longest=longest) for name in candidates)
        name = next(name for name in names if not _files(name) & taken)
        taken |= _files(name)
        jobs.append(NamedPicture(path, name))
    sources = {_whole(picture.path) for picture in pictures}
    for job in jobs:
        files = [f"{job.name}{PRODUCTS[product]}.png" for product in products]
        if job.is_video:
            files += [f"{job.name}{PRODUCTS['overlay']}{end}" for end in (".mp4", ".webm")]
        for file in files:
            if _whole(below(to, file)) in sources:
                raise UsageError.at(
                    "--to",
                    f": {file} there is one of the pictures",
                    "give another folder.",
                    value=to,
                )
    return jobs


def _files(name: str) -> set[str]:
    return {same_file(f"{name}{product}") for product in PRODUCTS.values()}


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


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes u8[H,W], u16[H,W] or RGB u8[H,W,3] as PNG in one move, with its folders; RunError,
    caused by the OSError, if that fails."""
    stored = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".png", stored)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, encoded.tobytes())
    except OSError as error:
        raise RunError.at(path, f" cannot be written: {what_is_wrong(error)}.") from error
