"""`submit`: the zip that a benchmark's server takes, and what is wrong with any other."""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from mrm_jax.cli.check import finding_line
from mrm_jax.cli.evaluate import add_checkpoint_arguments
from mrm_jax.cli.predict import add_looking_arguments, check_looking, looking, stamp
from mrm_jax.cli.progress import progress_bar
from mrm_jax.config import Config
from mrm_jax.errors import RunError, UsageError
from mrm_jax.options import nearest
from mrm_jax.paths import below, local, replaced, shown, what_is_wrong

if TYPE_CHECKING:
    from mrm_jax.cli.results import Results
    from mrm_jax.data.checked import Finding
    from mrm_jax.evaluation.network import TrainedNetwork
    from mrm_jax.evaluation.pictures import NamedPicture
    from mrm_jax.evaluation.submission import Benchmark, Pictures

NAMES = ("cityscapes", "acdc", "dark_zurich")
"""The benchmarks that there are, before their tables are loaded."""
_WRITING = ("to", "checkpoint", "workdir")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("benchmark", metavar="DATASET", help=f"one of {', '.join(NAMES)}")
    parser.add_argument(
        "--from", dest="root", type=local, metavar="DATA", help="the download: a folder or archives"
    )
    parser.add_argument(
        "--split", choices=("test", "val"), default="test", help="its pictures (default: test)"
    )
    add_checkpoint_arguments(parser, required=False)
    add_looking_arguments(parser)
    parser.add_argument("--to", type=local, metavar="FILE.zip", help="the zip to write")
    parser.add_argument(
        "--check",
        type=local,
        metavar="FILE.zip",
        help="say what is wrong with this zip, anybody's, and write nothing; with --from it has to "
        "hold the pictures there, else as many as the official split",
    )


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Writes or checks a zip; 1 where the server would refuse it. Raises UsageError, or RunError
    where pictures cannot be read or nothing can be written."""
    if config is not None:
        raise UsageError(
            "submit takes its config from the checkpoint", "leave --config out.", field="--config"
        )
    if arguments.benchmark not in NAMES:
        raise UsageError.of(
            "submit",
            arguments.benchmark,
            ", which has no server that is known here",
            f"use one of {', '.join(NAMES)}.{nearest(arguments.benchmark, NAMES)}",
        )
    _check_words(arguments)

    from mrm_jax.evaluation.submission import BENCHMARKS, pictures_of

    benchmark, pictures = BENCHMARKS[arguments.benchmark], None
    if arguments.root is not None:
        pictures = pictures_of(benchmark, arguments.root, arguments.split)
        for line in pictures.unlike(benchmark, arguments.split):
            print(
                f"warning: {shown(line)}; the server takes the whole official split alone.",
                file=sys.stderr,
            )
    if arguments.check is not None:
        return _check(arguments.check, benchmark, arguments.split, pictures)
    assert pictures is not None
    return _write(arguments, benchmark, pictures)


def _check_words(arguments: argparse.Namespace) -> None:
    """Raises UsageError for flags that do not go together, or are missing."""
    if arguments.check is not None:
        for name in _WRITING:
            if getattr(arguments, name) is not None:
                raise UsageError(
                    f"--check writes nothing, and --{name} says what to write",
                    "leave one of them out.",
                    field=f"--{name}",
                )
        if not arguments.check.is_file():
            raise UsageError.at("--check", ": there is no such file.", value=arguments.check)
        return
    needed = {
        "--from DATA": arguments.root,
        "--checkpoint PATH": arguments.checkpoint or arguments.workdir,
        "--to FILE.zip": arguments.to,
    }
    if lacking := [flag for flag, value in needed.items() if value is None]:
        raise UsageError(
            f"submit needs {', '.join(lacking)}",
            "or give --check FILE.zip to look at one that is there.",
            field=lacking[0].partition(" ")[0],
        )
    if arguments.to.suffix != ".zip":
        raise UsageError.at("--to", " is no name of a zip", "end it in .zip.", value=arguments.to)
    if arguments.to.is_dir():
        raise UsageError.at("--to", " is a folder", "name a file.", value=arguments.to)
    check_looking(arguments)


def _check(path: Path, benchmark: Benchmark, split: str, pictures: Pictures | None) -> int:
    found = _findings(path, benchmark, split, pictures)
    for line in found:
        print(shown(finding_line(line)))
    errors = sum(line.severity == "error" for line in found)
    if errors:
        print(f"{path}: {benchmark.name} would refuse it, for {errors} reasons")
    else:
        print(f"{path}: nothing is wrong with it that {benchmark.name} is known to refuse")
    return 1 if errors else 0


def _findings(
    path: Path,
    benchmark: Benchmark,
    split: str,
    pictures: Pictures | None,
    called: str | None = None,
) -> list[Finding]:
    from mrm_jax.evaluation.submitted import check_zip

    bar = functools.partial(progress_bar, "images", lines=True)
    try:
        return check_zip(path, benchmark, split, pictures, bar, called)
    except OSError as error:
        raise RunError.at(path, f" cannot be read: {what_is_wrong(error)}.") from error


def _write(arguments: argparse.Namespace, benchmark: Benchmark, pictures: Pictures) -> int:
    """Predicts into a folder beside the zip, where a call that was killed goes on, and packs it."""
    import jax

    from mrm_jax import allocator
    from mrm_jax.cli import segment
    from mrm_jax.cli.results import Look, Results
    from mrm_jax.data.files import MEGAPIXELS
    from mrm_jax.evaluation.pictures import NamedPicture
    from mrm_jax.opening import opened_networks
    from mrm_jax.runs.checkpoint import load_run

    allocator.keep_memory(jax.default_backend())
    loaded = load_run(arguments.workdir or arguments.checkpoint, arguments.which)
    _check_classes(loaded.config, benchmark)
    how = lambda found: looking(found, arguments)
    net = opened_networks(loaded, arguments.network, how)[arguments.network]
    jobs = [
        NamedPicture(file, file.name.rpartition(".")[0])  # type: ignore[arg-type]
        for file in pictures.files.values()
    ]
    to: Path = arguments.to
    parts = below(to.parent, f"{to.name}.parts")
    products = dict.fromkeys(folder.product for folder in benchmark.folders if folder.written)
    look = Look(tuple(products))
    with closing(Results(parts, look, net.classes, stamp(net, look))) as results:
        outcome = segment.all_of(net, results, jobs, MEGAPIXELS)
    for verb, failed in outcome.failed.items():
        if failed:
            raise RunError.at(
                failed[0],
                f" and {len(failed) - 1} more could not be {verb}"
                if failed[1:]
                else f" could not be {verb}",
                "put it right and give the same command again, which goes on from there.",
            )
    print(outcome.manner(net))
    _pack(to, benchmark, arguments.split, pictures, results, jobs)
    shutil.rmtree(parts, ignore_errors=True)
    _say_written(to, benchmark, arguments.split, net, len(jobs))
    return 0


def _check_classes(config: Config, benchmark: Benchmark) -> None:
    """Raises UsageError for a network of other classes than the server scores."""
    from mrm_jax.data.labels import CITYSCAPES

    names, wanted = config.data.classes.names, CITYSCAPES.names
    if names != wanted:
        lacking = [name for name in wanted if name not in names]
        what = f"lacks {', '.join(lacking)}" if lacking else "names them in another order"
        raise UsageError(
            f"This network has {len(names)} classes and {benchmark.name} scores the {len(wanted)} "
            f"of Cityscapes: it {what}",
            "submit a network that was trained with them.",
            field="config.data.classes",
            value=names,
        )


def _pack(
    to: Path,
    benchmark: Benchmark,
    split: str,
    pictures: Pictures,
    results: Results,
    jobs: list[NamedPicture],
) -> None:
    """Writes the zip; it gets its name when nothing is wrong with it. Raises RunError."""
    from mrm_jax.data.files import read_raw_label
    from mrm_jax.evaluation.submission import stored_ids, write_zip

    def members() -> Iterator[tuple[str, bytes]]:
        for folder in benchmark.folders:
            for job in jobs if folder.written else ():
                file = results.files(job.name)[folder.product]
                content = file.read_bytes()
                if folder.product == "ids":
                    content = stored_ids(folder, read_raw_label(file))
                yield f"{folder.name}/{job.name}.png".lstrip("/"), content

    try:
        with replaced(to) as new:
            write_zip(new, members())
            for found in _findings(new, benchmark, split, pictures, to.name):
                if found.severity == "error":
                    raise RunError.at(to, f" would be refused: {finding_line(found)}")
                print(f"warning: {shown(finding_line(found))}", file=sys.stderr)
    except OSError as error:
        raise RunError.at(to, f" cannot be written: {what_is_wrong(error)}.") from error


def _say_written(
    to: Path, benchmark: Benchmark, split: str, net: TrainedNetwork, count: int
) -> None:
    size = f"{to.stat().st_size / 1e6:.1f} MB"
    print(f"{count} pictures of {split} by the {net.name} of step {net.step} in {to}, {size}")
    if split == "test":
        print(f"upload it at {benchmark.site}")
    else:
        print("the server scores test alone: this one is to try")
