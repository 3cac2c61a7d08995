"""`doctor`: whether this machine can run, before hours are spent on finding out."""

from __future__ import annotations

import argparse
import dataclasses
import json

from mrm_jax.config import Config
from mrm_jax.paths import located


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb besides `--config`."""
    parser.add_argument("--workdir", type=located, help="folder that a run is to have")
    parser.add_argument("--json", action="store_true", help="one JSON object a check on stdout")


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Prints a line a check; exit code 1 where one is an error. With `--config` also the mesh and
    the data of that run, and all of its hosts, which start alike; each prints its own lines."""
    from mrm_jax.hosts import group

    with group.joined(config or Config()):
        return _print(arguments, config)


def _print(arguments: argparse.Namespace, config: Config | None) -> int:
    from mrm_jax.machine.doctor import examine

    failed = False
    for check in examine(config, arguments.workdir):
        failed |= check.status == "error"
        if arguments.json:
            print(json.dumps(dataclasses.asdict(check)), flush=True)
            continue
        fix = f" Fix: {check.fix}." if check.fix else ""
        print(f"{check.status:8}{check.name}: {check.found}.{fix}", flush=True)
    return 1 if failed else 0
