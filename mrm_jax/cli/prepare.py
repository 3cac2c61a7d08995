"""`prepare`: a download becomes a set that training reads fast."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from mrm_jax.cli.progress import progress_bar
from mrm_jax.config import Config
from mrm_jax.errors import RunError, UsageError
from mrm_jax.options import nearest
from mrm_jax.paths import below, local, shown
from mrm_jax.shell import quoted

if TYPE_CHECKING:
    from mrm_jax.data.datasets import DataSet
    from mrm_jax.data.prepared.manifest import Manifest

CODECS = ("png", "jpeg95")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("data_set", metavar="DATASET", help=f"one of {', '.join(names())}")
    parser.add_argument(
        "--from", dest="root", type=local, required=True, help="the download: a folder, or archives"
    )
    parser.add_argument("--to", type=local, required=True, help="new folder for the prepared set")
    parser.add_argument(
        "--resize",
        help="LONGxSHORT px, or native; default: that of the recipes. Only splits that are trained "
        "on are resized",
    )
    parser.add_argument("--codec", choices=CODECS, default="png", help="png: every pixel is kept")
    parser.add_argument("--splits", default="", help="which, with commas; default: all there are")
    parser.add_argument("--shards", type=int, help="files a split; default: one for 512 pictures")
    parser.add_argument("--workers", type=int, help="processes; default: one a core")
    parser.add_argument("--part", default="1/1", help="i/n: write this share of the shards only")
    parser.add_argument(
        "--skip_broken", action="store_true", help="leave out pictures that cannot be used"
    )
    add_limit(parser)


def add_limit(parser: argparse.ArgumentParser) -> None:
    """The option that bounds what a picture may unpack to."""
    parser.add_argument(
        "--max_megapixels",
        type=float,
        help="a picture whose header promises more millions of pixels cannot be read; default: 100",
    )


def names() -> list[str]:
    """Data sets by the name that the command line takes."""
    from mrm_jax.data.datasets import DATA_SETS

    return [*DATA_SETS, "folder"]


def data_set(name: str, config: Config | None) -> DataSet:
    """The data set of that name; for "folder" with the classes and the layout of the config's
    source (without a config: images/ and labels/ with Cityscapes' train ids). Raises UsageError.
    """
    from mrm_jax.config import Domain
    from mrm_jax.data import datasets, labels

    if name not in names():
        raise UsageError(
            f"'{name}' is no data set; there are {', '.join(names())}.{nearest(name, names())}",
            field="prepare",
            value=name,
        )
    if name != "folder":
        if config is not None:
            raise UsageError(
                f"--config says how a folder is stored; {name} needs none.", field="--config"
            )
        return datasets.DATA_SETS[name]
    if config is None:
        return datasets.folder(labels.CITYSCAPES, Domain(images="images", labels="labels"))
    return datasets.folder(config.data.classes, config.data.source)


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Exit code. Raises UsageError or RunError."""
    from mrm_jax.data.datasets import limited
    from mrm_jax.data.prepared.prepare import Options, prepare

    chosen = limited(data_set(arguments.data_set, config), arguments.max_megapixels)
    options = Options(
        resize=_box(arguments.resize),
        codec=arguments.codec,
        splits=tuple(part for part in arguments.splits.split(",") if part),
        shards=_positive("--shards", arguments.shards),
        skip_broken=arguments.skip_broken,
        part=_part(arguments.part),
        workers=_positive("--workers", arguments.workers) or os.cpu_count() or 1,
    )
    progress = functools.partial(progress_bar, "pictures", lines=True)

    def say(line: str) -> None:
        print(shown(line), file=sys.stderr, flush=True)

    try:
        made = prepare(chosen, arguments.root, arguments.to, options, say=say, progress=progress)
    except KeyboardInterrupt:
        print("stopped; what is finished stays, and the same command goes on from there.")
        return 1
    except BrokenExecutor as error:
        raise RunError(
            "A process that wrote records was ended, say for lack of memory",
            "give the same command with fewer --workers.",
            field="--workers",
        ) from error
    except OSError as error:
        where = error.filename or arguments.to
        raise RunError.at(
            where,
            f" cannot be written: {error.strerror or error}. What is finished stays; the same "
            "command goes on from there.",
        ) from error
    if made is not None:
        print("\n".join(summary(made, arguments.to)))
    return 0


def summary(made: Manifest, folder: Path) -> list[str]:
    """What a prepared set holds, a line a split, and how it is used."""
    lines = [f"{made.title}: {made.licence}"]
    for name, split in made.splits.items():
        size = sum(below(folder, shard.file).stat().st_size for shard in split.shards)
        box = (
            f"fitted into {split.resize[0]} x {split.resize[1]}" if split.resize else "native size"
        )
        skipped = f", {len(split.skipped)} left out" if split.skipped else ""
        labelled = "" if split.labelled else ", without labels"
        lines.append(
            f"  {name}: {split.count} pictures, {box}{labelled}{skipped}, "
            f"{len(split.shards)} files, {size / 2**20:.1f} MiB"
        )
    flag = quoted(f"--config.data.source.path={folder}")
    return [*lines, f"train on it by {flag} (as the target: data.target.path)"]


def _box(text: str | None) -> tuple[int, int] | str | None:
    if text in (None, "native"):
        return text
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise UsageError.of("--resize", text, "", "give LONGxSHORT in px, say 1280x720, or native.")
    return int(sides[0]), int(sides[1])


def _part(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise UsageError.of("--part", text, "", "give i/n, say 1/4 on the first of four hosts.")
    return int(number), int(of)


def _positive(flag: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise UsageError.of(flag, value, "", "it must be at least 1.")
    return value
