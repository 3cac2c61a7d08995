"""`bench`: times a config's step on random pictures, and prints what XLA says it costs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from mrm_jax.config import Config, UsageError

WHATS = ("forward", "backward", "step")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb besides `--config`."""
    parser.add_argument(
        "--what",
        choices=(*WHATS, "all"),
        default="step",
        help="the student's loss on a batch, that with its gradient, a training step (default)",
    )
    parser.add_argument(
        "--repeats", type=int, default=10, help="timed calls, after one that is not (default: 10)"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line on stdout, nothing else"
    )


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Prints a report a line; exit code. Reads no data. Raises UsageError."""
    if config is None:
        raise UsageError("bench needs a config: add --config FILE, say configs/quickstart.py.")
    if arguments.repeats < 1:
        raise UsageError(f"--repeats is {arguments.repeats}; time at least 1 call.")

    from mrm_jax.train.bench import measure

    whats = WHATS if arguments.what == "all" else (arguments.what,)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    for report in measure(config, whats, repeats=arguments.repeats, say=say):
        print(json.dumps(report) if arguments.json else text(report), flush=True)
    return 0


def text(report: Mapping[str, Any]) -> str:
    """A report for people: a line of time and a line of cost."""
    seconds = report["seconds"]
    counts = [
        f"{name} {_short(report[key])}{unit}"
        for name, key, unit in (
            ("flops", "flops", ""),
            ("bytes accessed", "bytes_accessed", "B"),
            ("peak memory", "peak_bytes", "B"),
        )
    ]
    return (
        f"{report['what']} on {report['device']}: {seconds['median']:.4g} s a call "
        f"({seconds['min']:.4g} to {seconds['max']:.4g} in {seconds['count']}), "
        f"{report['images_per_second']:.4g} images/s, compiled in "
        f"{report['compile_seconds']:.1f} s\n  by XLA, a device: {', '.join(counts)}"
    )


def _short(value: float | None) -> str:
    """`value` with a decimal prefix, say 1.23 G."""
    if value is None:
        return "unknown "
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:.3g} "
