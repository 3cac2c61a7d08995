"""`bench`: times a config's step on random pictures, and prints what XLA says it costs; with
`--against` beside another library, with `--data` the reading of pictures, with `--suite` checks a
device; `--table` makes a page's tables of what it said.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrm_jax.children import passing_folder
from mrm_jax.cli.progress import say
from mrm_jax.config import Config
from mrm_jax.errors import UsageError
from mrm_jax.paths import located

WHATS = ("inference", "forward", "backward", "step")

UNREAD = {"model.encoder.weights": "any"}
"""Fields that a step's time does not depend on, with what stands for them where they are not set.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb besides `--config`."""
    parser.add_argument(
        "--what",
        choices=(*WHATS, "all", "parts"),
        default="step",
        help="the classes of a picture, the student's loss on a batch, that with its gradient, a "
        "training step (default), these four, or every part of network and step alone, forwards "
        "and with its gradient",
    )
    parser.add_argument(
        "--against",
        choices=("torch",),
        help="time plain PyTorch by turns, in a process of its own (pip install 'mrm-jax[torch]')",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=10,
        help="timed calls, after one that is not, or pairs of --against (default: 10)",
    )
    parser.add_argument(
        "--data", action="store_true", help="time the reading of training crops instead of a step"
    )
    parser.add_argument(
        "--codec",
        choices=("png", "jpeg95", "all"),
        default="all",
        help="--data: how prepared sets are stored (default: all)",
    )
    parser.add_argument(
        "--pictures", type=int, default=8, help="--data: pictures drawn of each size (default: 8)"
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const=True,
        metavar="FILE",
        help="one JSON object a line on stdout, nothing else; --suite: the file to write",
    )
    parser.add_argument(
        "--suite",
        choices=("accelerator",),
        help="a prepared check of a device that nothing was run on yet; needs no config or data",
    )
    parser.add_argument("--limit", type=float, default=300.0, help="--suite: seconds in all (300)")
    parser.add_argument("--pieces", help="--suite: these alone, with commas between them")
    parser.add_argument(
        "--small", action="store_true", help="--suite: tiny networks, to try the check itself out"
    )
    parser.add_argument(
        "--table",
        metavar="FILE",
        nargs="+",
        help="make tables of files of `--against torch --json` instead, in Markdown",
    )
    parser.add_argument("--to", metavar="PAGE", help="--table: put them into this page")


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Prints a report a line; exit code. Reads no data. Raises UsageError."""
    for flag in ("repeats", "pictures"):
        value = getattr(arguments, flag)
        if value < 1:
            raise UsageError.of(f"--{flag}", value, "", "it must be at least 1.")
    if arguments.table:
        return _table(arguments)
    if arguments.to:
        raise UsageError.of("--to", arguments.to, " goes with --table", "give its files.")
    if arguments.suite:
        return _suite(arguments)
    if isinstance(arguments.json, str):
        raise UsageError.of(
            "--json", arguments.json, ", but only --suite takes a file", "write > FILE."
        )
    if arguments.data:
        return _data(arguments)
    if config is None:
        raise UsageError(
            "bench needs a config:", "add --config FILE, say --config quickstart.", field="--config"
        )

    whats = WHATS if arguments.what == "all" else (arguments.what,)
    if arguments.against:
        return _against(arguments, config, whats)
    from mrm_jax.machine.bench import measure_compute

    reports = []
    for report in measure_compute(config, whats, repeats=arguments.repeats, say=say):
        print(json.dumps(report) if arguments.json else bench_text(report), flush=True)
        reports.append(report)
    if arguments.what == "parts" and not arguments.json:
        print(f"\n{slowest_text(reports)}")
    return 0


def _against(arguments: argparse.Namespace, config: Config, whats: Sequence[str]) -> int:
    from mrm_jax.machine import against, table

    label = " ".join(arguments.config_words).removeprefix("--config").lstrip("= ")
    place = ""
    for report in against.measure_against(
        config, whats, label=label, repeats=arguments.repeats, say=say
    ):
        if arguments.json:
            print(json.dumps(report), flush=True)
            continue
        if place != (place := table.where(report)):
            print(place)
        print(table.line(report), flush=True)
    return 0


def _table(arguments: argparse.Namespace) -> int:
    from mrm_jax.machine import table

    text = table.tables(table.read(map(located, arguments.table)))
    if arguments.to:
        table.write(located(arguments.to), text)
    else:
        print(text, end="")
    return 0


def _suite(arguments: argparse.Namespace) -> int:
    """1 where a piece failed."""
    from mrm_jax.machine.suite import chosen, run_suite, suite_text

    if not isinstance(arguments.json, str):
        raise UsageError("bench --suite needs a file:", "add --json FILE.", field="--json")
    if not 1 <= arguments.limit < float("inf"):
        raise UsageError.of("--limit", arguments.limit, "", "it must be at least 1 second.")
    pieces, to = chosen(arguments.pieces), Path(arguments.json)
    how = {"limit": arguments.limit, "small": arguments.small}
    report = run_suite(to, pieces, **how, say=say)
    print(suite_text(report))
    return int(any(row["status"] == "failed" for row in report["pieces"].values()))


def _data(arguments: argparse.Namespace) -> int:
    from mrm_jax.data.prepared.records import CODECS
    from mrm_jax.machine.throughput import measure_reading

    codecs = CODECS if arguments.codec == "all" else (arguments.codec,)
    with passing_folder() as (folder, _):
        for report in measure_reading(
            folder, codecs, pictures=arguments.pictures, rounds=arguments.repeats, say=say
        ):
            print(json.dumps(report) if arguments.json else data_text(report), flush=True)
    return 0


def data_text(report: Mapping[str, Any]) -> str:
    """A line for people about one way of reading."""
    line = (
        f"{report['case']}: {report['way']:17} {report['images_per_second']:7.1f} images/s a core, "
        f"{report['ratio']:.2f} times the published way"
    )
    if pixels := report.get("pixels"):
        line += (
            f" (pixels differ by {pixels['mean_difference']:.2f} on average, at most "
            f"{pixels['largest_difference']:.0f}; PSNR {pixels['psnr']:.1f} dB)"
        )
    return line


def bench_text(report: Mapping[str, Any]) -> str:
    """A report for people: a line of time and a line of cost."""
    seconds, name = report["seconds"], f"{report.get('part', '')} {report['what']}".strip()
    counts = [
        f"{name} {_short(report[key])}{unit}"
        for name, key, unit in (
            ("flops", "flops", ""),
            ("bytes accessed", "bytes_accessed", "B"),
            ("peak memory", "peak_bytes", "B"),
        )
    ]
    return (
        f"{name} on {report['device']}: {seconds['median']:.4g} s a call "
        f"({seconds['min']:.4g} to {seconds['max']:.4g} in {seconds['count']}), "
        f"{report['images_per_second']:.4g} images/s, compiled in "
        f"{report['compile_seconds']:.1f} s\n  by XLA, a device: {', '.join(counts)}"
    )


def slowest_text(reports: Sequence[Mapping[str, Any]]) -> str:
    """Parts by the time that all of a kind take, longest first: milliseconds, how often the network
    holds it, and floating point operations a second, by XLA's count."""
    rows = [(report["times"] * report["seconds"]["median"], report) for report in reports]
    rows.sort(key=lambda row: -row[0])
    lines = [f"{'all, ms':>9} {'times':>5} {'Gflop/s':>8}  part"]
    for seconds, report in rows:
        rate = (report["flops"] or 0) / report["seconds"]["median"] / 1e9
        name = f"{report['part']} {report['what']}"
        lines.append(f"{seconds * 1e3:9.2f} {report['times']:5d} {rate:8.2f}  {name}")
    return "\n".join(lines)


def _short(value: float | None) -> str:
    """`value` with a decimal prefix, say 1.23 G."""
    if value is None:
        return "unknown "
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:.3g} "
