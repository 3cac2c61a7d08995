"""`plan`: what a config's step needs on devices that are not here."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace

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
    print(json.dumps(report) if arguments.json else plan.plan_text(report))
    return 0
