"""`report --workdir RUN`: writes the run's report.html again from the files of its workdir."""

from __future__ import annotations

import argparse
from typing import Any

from mrm_jax.config import UsageError
from mrm_jax.paths import is_remote, located


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the verb takes."""
    parser.add_argument("--workdir", required=True, help="Folder of a run.")


def run(arguments: argparse.Namespace, config: Any) -> int:
    """Writes the report and prints its path; exit code. `config` is not looked at: the workdir has
    its own."""
    del config
    from mrm_jax.report.html import write_report

    try:
        if is_remote(arguments.workdir):
            from mrm_jax.train.mirror import mirrored

            with mirrored(located(arguments.workdir)) as mirror:
                name = write_report(mirror.local).name
            path = f"{arguments.workdir}/{name}"
        else:
            path = write_report(arguments.workdir)
    except FileNotFoundError as error:
        raise UsageError(f"--workdir {arguments.workdir}: there is no such folder.") from error
    print(f"report: {path}")
    return 0
