"""`report --workdir RUN`: writes the run's report.html again from the files of its workdir."""

from __future__ import annotations

import argparse
from typing import Any

from mrm_jax.errors import UsageError
from mrm_jax.paths import is_remote, located


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the verb takes."""
    parser.add_argument("--workdir", required=True, type=located, help="folder of a run")


def run(arguments: argparse.Namespace, config: Any) -> int:
    """Writes the report and prints its path; exit code. `config` is not looked at: the workdir has
    its own."""
    del config
    from mrm_jax.report.html import write_report
    from mrm_jax.report.record import is_run

    workdir = arguments.workdir
    if not workdir.is_dir():
        raise UsageError.at("--workdir", ": there is no such folder.", value=workdir)
    if not is_run(workdir):
        raise UsageError.at(
            "--workdir", " holds no run: neither metrics.jsonl nor config.json.", value=workdir
        )
    if is_remote(workdir):
        from mrm_jax.runs.mirror import mirrored

        with mirrored(workdir) as mirror:
            path = workdir / write_report(mirror.local).name
    else:
        path = write_report(workdir)
    print(f"report: {path}")
    return 0
