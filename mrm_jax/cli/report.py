"""`report`: a run's report.html again from its workdir, or several runs on one page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mrm_jax.errors import RunError, UsageError
from mrm_jax.paths import is_remote, local, located, what_is_wrong


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the verb takes."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--workdir", type=located, help="folder of a run")
    what.add_argument(
        "--compare",
        type=local,
        nargs="+",
        metavar="RUN",
        help="folders of runs that come on one page, compared with the first; runs of one config "
        "with other seeds are taken together",
    )
    parser.add_argument(
        "--to",
        type=local,
        metavar="FILE.html",
        help="the page of --compare (default: comparison.html here)",
    )


def run(arguments: argparse.Namespace, config: Any) -> int:
    """Writes the report and prints its path; exit code. `config` is not looked at: the workdir has
    its own."""
    del config
    if arguments.compare is not None:
        return _compare(arguments.compare, arguments.to or Path("comparison.html"))
    if arguments.to is not None:
        raise UsageError.at(
            "--to",
            ": a run's report lies in its workdir",
            "give it with --compare.",
            value=arguments.to,
        )
    from mrm_jax.report.html import write_report

    workdir = arguments.workdir
    _check_run("--workdir", workdir)
    if is_remote(workdir):
        from mrm_jax.runs.mirror import mirrored

        with mirrored(workdir) as mirror:
            path = workdir / write_report(mirror.local).name
    else:
        path = write_report(workdir)
    print(f"report: {path}")
    return 0


def _check_run(flag: str, workdir: Path) -> None:
    """Raises UsageError for a folder that is no run's."""
    from mrm_jax.report.record import is_run

    if not workdir.is_dir():
        raise UsageError.at(flag, ": there is no such folder.", value=workdir)
    if not is_run(workdir):
        raise UsageError.at(
            flag, " holds no run: neither metrics.jsonl nor config.json.", value=workdir
        )


def _compare(folders: list[Path], to: Path) -> int:
    from mrm_jax.report.compared import compared_runs
    from mrm_jax.report.several import write_comparison

    for folder in folders:
        _check_run("--compare", folder)
    if len({folder.resolve() for folder in folders}) < 2:
        raise UsageError.at(
            "--compare", " is a single run", "name another one, too.", value=folders[0]
        )
    if to.is_dir():
        raise UsageError.at("--to", " is a folder", "name a file, say page.html.", value=to)
    found = compared_runs(folders)
    try:
        write_comparison(found, to)
    except OSError as error:
        raise RunError.at(
            "--to", f" cannot be written: {what_is_wrong(error)}.", value=to
        ) from error
    sizes = ", ".join(f"{group.name} ({len(group.runs)})" for group in found.groups)
    print(f"{len(found.runs)} runs of {len(found.groups)} configs: {sizes}")
    print(f"comparison: {to}")
    return 0
