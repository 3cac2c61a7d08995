"""`export`: a trained network as files that run elsewhere, with a model card."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrm_jax.cli.evaluate import NETWORKS, add_checkpoint_arguments, run_folder
from mrm_jax.config import Config
from mrm_jax.errors import RunError, UsageError
from mrm_jax.paths import local, replaced_folder, what_is_wrong, write_text

if TYPE_CHECKING:
    from mrm_jax.evaluation.network import TrainedNetwork
    from mrm_jax.runs.checkpoint import LoadedRun

NAMES = ("stablehlo", "onnx", "huggingface", "torch")
LARGEST = 2**26
"""Pixels of `--size`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb besides `--config`."""
    add_checkpoint_arguments(parser)
    parser.add_argument("--format", choices=NAMES, required=True, help="what to write")
    parser.add_argument(
        "--to", type=local, required=True, metavar="DIR", help="new folder of the export"
    )
    parser.add_argument("--network", choices=NETWORKS, default="student", help="default: student")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="px of the pictures that go in (default: what evaluation fits pictures into, else "
        "the training crop); huggingface and torch take others as well",
    )
    parser.add_argument(
        "--input",
        choices=("uint8", "float32"),
        default="uint8",
        help="stablehlo, onnx: type of the pictures, levels 0..255 (default: uint8)",
    )
    parser.add_argument(
        "--no_check",
        "--no-check",
        action="store_true",
        help="do not open the export in another process and compare it with the network",
    )


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Writes the folder, which appears whole or not at all. Raises UsageError for what cannot be
    written, RunError where the export does not do what the network does."""
    if config is not None:
        raise UsageError(
            "export takes its config from the checkpoint", "leave --config out.", field="--config"
        )
    target: Path = arguments.to
    _check_target(target)
    _check_size(arguments.size)

    from mrm_jax.export.formats import FORMATS
    from mrm_jax.export.program import plain
    from mrm_jax.opening import opened_networks
    from mrm_jax.runs.checkpoint import load_run

    source = arguments.workdir or arguments.checkpoint
    loaded = load_run(source, arguments.which)
    net = opened_networks(loaded, arguments.network)[arguments.network]
    form, dtype = FORMATS[arguments.format], arguments.input
    if dtype != "uint8" and not form.sized:
        raise UsageError.of(
            "--input", dtype, f", and --format {arguments.format} has no type", "leave --input out."
        )
    height, width = arguments.size or _natural_size(net.config)
    size = (height, width)
    try:
        with replaced_folder(target) as new:
            exported = form.write(plain(net), size, dtype, new)
            script = form.script(size, dtype)
            write_text(new / "run.py", script)
            notes = list(exported.notes)
            if not arguments.no_check:
                from mrm_jax.export.check import compared

                notes.append(compared(new, form, exported, size).sentence())
                print(notes[-1])
            _write_card(arguments, new, net, loaded, size, script, notes)
    except OSError as error:
        raise RunError.at(target, f" cannot be written: {what_is_wrong(error)}.") from error
    for note in exported.notes:
        print(note)
    total = sum(path.stat().st_size for path in target.iterdir())
    print(f"written: {target} ({arguments.format}, {size[0]} x {size[1]} px, {total / 1e6:.1f} MB)")
    return 0


def _check_target(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError.at("--to", " exists already", "give a new folder.", value=target)


def _check_size(size: list[int] | None) -> None:
    if size is not None and (min(size) < 1 or size[0] * size[1] > LARGEST):
        raise UsageError.of(
            "--size", tuple(size), "", f"give a height and a width of 1 to {LARGEST} px together."
        )


def _natural_size(config: Config) -> tuple[int, int]:
    """Height and width that pictures go in at."""
    from mrm_jax.evaluation.network import input_box

    box = input_box(config)
    return (box[1], box[0]) if box is not None else config.data.crop


def _write_card(
    arguments: argparse.Namespace,
    folder: Path,
    net: TrainedNetwork,
    loaded: LoadedRun,
    size: tuple[int, int],
    script: str,
    notes: list[str],
) -> None:
    from mrm_jax.export.card import Told, model_card
    from mrm_jax.export.formats import FORMATS

    form = FORMATS[arguments.format]
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    told = Told(
        name=re.sub(r"[^\w.-]+", "-", arguments.to.resolve().name).strip("-.") or "network",
        library=form.library,
        packages=form.packages,
        script=script,
        files=files,
        size=size,
        dtype=arguments.input,
        notes=notes,
        weights=loaded.facts.get("weights") or {},
        scores=_scores(arguments.workdir or arguments.checkpoint, net),
    )
    write_text(folder / "README.md", model_card(net, told))


def _scores(source: Path, net: TrainedNetwork) -> Mapping[str, Any] | None:
    """evaluation.json of the run, if it is of this step and this network."""
    path = run_folder(source) / "evaluation.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        known = (found["protocol"]["network"], *found)
        return found if found["step"] == net.step and net.name in known else None
    except (ValueError, KeyError, TypeError):
        return None
