"""`config`: the values of a config, and how it differs from another one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mrm_jax.checks import check_config
from mrm_jax.cli.resolve import to_stderr, unchecked
from mrm_jax.command import remark
from mrm_jax.config import Config
from mrm_jax.errors import UsageError
from mrm_jax.options import declared, value_of

RESOLVES = True
"""It reads its configs itself: what could not be trained is shown all the same."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE[:RECIPE]",
        help="a config, as other verbs take it after --config",
    )
    parser.add_argument(
        "--diff",
        metavar="OTHER",
        help="show only what differs from this config, FILE[:RECIPE], or from that of a run's "
        "folder",
    )


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Prints a line an option, PATH = VALUE, or PATH: VALUE -> VALUE OF OTHER; exit code.

    Raises UsageError for a config that cannot be read; what forbids training with it is a remark.
    """
    del config
    words = list(arguments.config_words)
    if arguments.file is not None:
        if any(word.startswith("--config=") for word in words):
            raise UsageError(f"config: '{arguments.file}' and --config name two files", "give one.")
        words.insert(0, f"--config={arguments.file}")
    if not words:
        raise UsageError("config needs a file:", "give FILE[:RECIPE], say quickstart:dacs.")
    shown = _of_words(words)
    if arguments.diff is None:
        for path in declared(Config):
            print(f"{path} = {value_of(shown, path)!r}")
    else:
        _print_differences(shown, _other(arguments.diff))
    try:
        check_config(shown)
    except UsageError as error:
        print(f"It cannot be trained as it is: {error}", file=sys.stderr)
    return 0


def _of_words(words: list[str]) -> Config:
    if line := remark(words):
        print(line, file=sys.stderr)
    return unchecked(words, say=to_stderr)


def _other(name: str) -> Config:
    folder = Path(name)
    if folder.is_dir():
        from mrm_jax.runs.workdir import CONFIG, read_config

        if not (folder / CONFIG).is_file():
            raise UsageError.at(
                "--diff", f" holds no {CONFIG}", "give a run's folder.", value=folder
            )
        return read_config(folder).config
    return _of_words([f"--config={name}"])


def _print_differences(shown: Config, other: Config) -> None:
    pairs = {path: (value_of(shown, path), value_of(other, path)) for path in declared(Config)}
    different = {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}
    for path, (here, there) in different.items():
        print(f"{path}: {here!r} -> {there!r}")
    if not different:
        print("They are the same.", file=sys.stderr)
