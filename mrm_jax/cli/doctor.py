"""`doctor`: checks that this machine can run a config."""

from __future__ import annotations

import argparse
import dataclasses
import json

from mrm_jax.checks import problems
from mrm_jax.cli.resolve import to_stderr, unchecked
from mrm_jax.config import Config
from mrm_jax.errors import UsageError

RESOLVES = True
"""It reads its config itself: what is wrong with it is one of several things that may be."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb besides `--config`."""
    parser.add_argument("--workdir", help="folder that a run is to have")
    parser.add_argument("--json", action="store_true", help="one JSON object a check on stdout")


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Prints a line a check; exit code 1 where one is an error. With `--config` also the weights,
    the mesh and the data of that run, and all of its hosts, which start alike; each prints its own
    lines. Raises UsageError for a config that cannot be read."""
    from mrm_jax.hosts import group

    words = arguments.config_words
    config = unchecked(words, say=to_stderr) if words else None
    found = problems(config) if config is not None else []
    with group.joined(config or Config()):
        return _print(arguments, config, found)


def _print(arguments: argparse.Namespace, config: Config | None, found: list[UsageError]) -> int:
    from mrm_jax.machine.doctor import examine

    failed = False
    for check in examine(config, arguments.workdir, found):
        failed |= check.status == "error"
        if arguments.json:
            print(json.dumps(dataclasses.asdict(check)), flush=True)
            continue
        fix = f" Fix: {check.fix.rstrip('.')}." if check.fix else ""
        print(f"{check.status:8}{check.name}: {check.found.rstrip('.')}.{fix}", flush=True)
    return 1 if failed else 0
