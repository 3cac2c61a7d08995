"""`train`: trains the config's network in a workdir, or goes on where that workdir stopped."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mrm_jax.config import Config
from mrm_jax.errors import UsageError
from mrm_jax.hosts import group
from mrm_jax.paths import is_remote, located
from mrm_jax.runs import workdir
from mrm_jax.stop import Stopped, heard

if TYPE_CHECKING:
    from mrm_jax.runs.mirror import Mirror


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb besides `--config`."""
    parser.add_argument(
        "--workdir",
        required=True,
        type=located,
        help="folder of the run, on disk or gs://...; the same command resumes it",
    )


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Exit code 0 at the end and after SIGTERM or Ctrl-C, with the state on disk; 1 after one that
    left nothing to save.

    Raises UsageError (a mistake in the command, a folder of another run) or RunError.
    """
    if config is None:
        raise UsageError(
            "train needs a config:", "add --config FILE, say --config quickstart.", field="--config"
        )
    with heard() as stop:
        stop.doing = "opening the folder"
        try:
            with group.joined(config):
                return _with_workdir(config, arguments.workdir)
        except Stopped:
            line, code = stop.last_words()
            print(line)
            return code
        except KeyboardInterrupt:
            print("stopped for the second time; nothing more was saved.")
            return 1


def _with_workdir(config: Config, path: Path) -> int:
    """Trains in `path` where this is the only host or the first, and along with it elsewhere."""
    from mrm_jax.data.identity import identities
    from mrm_jax.runs.trackers import check_tracker

    group.from_main(lambda: check_tracker(config))
    group.same("config.", workdir.fixed(config))
    if not group.is_main():
        from mrm_jax.runs.mirror import following

        group.check_shared(path / workdir.LOCK)
        with following(path) as mirror:
            return _train(config, mirror.local, mirror)
    if is_remote(path):
        from mrm_jax.runs.mirror import mirrored

        with (
            mirrored(path) as mirror,
            workdir.opened_workdir(mirror.local, config, identities) as held,
        ):
            group.check_shared(path / workdir.LOCK)
            return _train(config, held, mirror)
    with workdir.opened_workdir(path, config, identities) as held:
        group.check_shared(path / workdir.LOCK)
        return _train(config, held, None)


def _train(config: Config, folder: Path, mirror: Mirror | None) -> int:
    from mrm_jax.machine.ready import make_ready  # only now: imports jax
    from mrm_jax.train.loop import train

    make_ready(config, folder if mirror is None else mirror.remote)
    return train(config, folder, mirror)
