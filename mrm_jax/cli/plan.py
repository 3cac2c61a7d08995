"""`plan`: what a config's step needs on devices that are not here."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from typing import Any

from mrm_jax.cli.progress import say
from mrm_jax.config import Config
from mrm_jax.errors import UsageError

UNREAD = {"model.encoder.weights": "any"}
"""Fields that shapes do not depend on, with what stands for them where they are not set."""

QUIET = {
    "JAX_PLATFORMS": "cpu",
    # What is compiled for devices that are not there cannot be read back.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    # libtpu looks for the machine that it compiles for, and locks itself.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb besides `--config`."""
    parser.add_argument(
        "--topology", required=True, help="v5e:2x4 (a TPU slice), h100:8 or rtx4090:1 (GPUs), ..."
    )
    parser.add_argument("--fsdp", type=int, help="in place of config.mesh.fsdp")
    parser.add_argument(
        "--estimate", action="store_true", help="seconds instead of minutes: compile nothing"
    )
    parser.add_argument(
        "--level",
        choices=("O0", "O1", "O2", "O3"),
        default="O1",
        help="XLA's effort; O1 (default) compiles in a third of the time of O2",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Prints the report; exit code 0 whether it fits or not. Raises UsageError."""
    if config is None:
        raise UsageError(
            "plan needs a config:", "add --config FILE, say --config quickstart.", field="--config"
        )
    os.environ.update(QUIET)  # before jax
    from mrm_jax.machine import chips, plan

    where = chips.parse_topology(arguments.topology)
    if arguments.fsdp is not None:
        config = replace(config, mesh=replace(config.mesh, fsdp=arguments.fsdp))
    report = plan.plan(
        config, where, level=arguments.level, compiled=not arguments.estimate, say=say
    )
    print(json.dumps(report) if arguments.json else plan_text(report))
    return 0


def plan_text(report: dict[str, Any]) -> str:
    """A report for people."""
    how = {
        "compiled": "compiled for these devices without them; not run",
        "estimated": "ESTIMATED from the jaxpr; no compiler has seen it",
    }[report["source"]]
    rows = [f"{report['topology']}, batch {report['batch']}, fsdp {report['fsdp']}: {how}"]
    rows += [
        f"  {part:12}{size / 2**30:8.3f} GiB a device" for part, size in report["bytes"].items()
    ]
    answer = "fits" if report["fits"] else "DOES NOT FIT"
    peak, there = report["peak_bytes"] / 2**30, report["hbm_bytes"] / 2**30
    rows.append(f"  {'peak':12}{peak:8.3f} GiB of {there:.0f}: {answer}")
    rows += [f"    less: {knob}" for knob in report["knobs"]]
    for kind, row in (report["collectives"] or {}).items():
        rows.append(f"  {kind}: {row['count']}, {row['bytes'] / 2**20:.1f} MiB (loops once)")
    low, high = report["hours"]
    most, least = report["utilisation"]
    rows.append(
        f"  {report['flops_per_step'] / 1e12:.3g} Tflop a step and device; "
        f"{low:.3g} to {high:.3g} h for the run, if the chips reach {100 * most:.0f} to "
        f"{100 * least:.0f} % of their peak (expected, not measured)"
    )
    rows.append(
        f"  at the peak itself {report['lower_bound_seconds']:.3g} s a step by "
        f"{report['bound_by']}, {report['lower_bound_hours']:.3g} h: a bound that no run reaches"
    )
    return "\n".join(rows)
