"""`train`: trains the config's network in a workdir, or goes on where that workdir stopped."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mrm_jax.config import Config, UsageError
from mrm_jax.paths import is_remote, located
from mrm_jax.train import workdir

if TYPE_CHECKING:
    from mrm_jax.train.mirror import Mirror


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb besides `--config`."""
    parser.add_argument(
        "--workdir",
        required=True,
        type=located,
        help="folder of the run, here or gs://...; the same command on it goes on where it stopped",
    )


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Exit code 0 at the end and after SIGTERM or Ctrl-C, with the state on disk; 1 after a Ctrl-C
    that left nothing to save.

    Raises UsageError (a mistake in the command, a folder of another run) or RunError.
    """
    if config is None:
        raise UsageError("train needs a config: add --config FILE, say configs/quickstart.py.")
    try:
        if not is_remote(arguments.workdir):
            return _train(config, arguments.workdir, None)
        from mrm_jax.train.mirror import mirrored

        with mirrored(arguments.workdir) as mirror:
            return _train(config, mirror.local, mirror)
    except KeyboardInterrupt:
        print("stopped before the first step or for the second time; nothing more was saved.")
        return 1


def _train(config: Config, folder: Path, mirror: Mirror | None) -> int:
    with workdir.opened(folder, config) as held:
        from mrm_jax.train.compile_cache import keep_programs  # only now: imports jax
        from mrm_jax.train.doctor import require_platform
        from mrm_jax.train.loop import train

        require_platform(config)
        if config.train.compile_cache:
            keep_programs(folder if mirror is None else mirror.remote)
        return train(config, held, mirror)
