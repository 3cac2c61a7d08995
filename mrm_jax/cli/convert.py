"""`convert`: weights from PyTorch's files to a folder that every verb opens, and back."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrm_jax import terminal
from mrm_jax.config import Config, Data, Domain, Method
from mrm_jax.convert.named import is_name, name_or_path
from mrm_jax.errors import UsageError
from mrm_jax.paths import local

if TYPE_CHECKING:
    from mrm_jax.convert.network import ConvertedNetwork

CITYSCAPES_BOX = (1024, 512)
"""(long, short) px that DAFormer-style networks look at Cityscapes in. Source: peer, DAFormer's
configs; HRDA and MIC look at native size."""
HRDA_CROP = (1024, 1024)
"""px; half of it is the detail window that HRDA looks through. Source: peer, HRDA's configs."""
WIDTH = 1000
"""Columns in a file or a pipe: the table is as wide as its longest rows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb besides `--config`."""
    parser.add_argument(
        "--from",
        dest="source",
        type=name_or_path,
        required=True,
        metavar="PATH",
        help="weights: .pth, .pt, .bin, .ckpt, .safetensors, .npz, package://NAME or "
        "hf://ORG/NAME[/FILE][@REVISION]; with --to_torch a run or one of its checkpoints",
    )
    parser.add_argument("--to", type=local, metavar="DIR", help="new folder for the network")
    parser.add_argument(
        "--to_torch",
        type=local,
        metavar="FILE",
        help="write PyTorch's names to this .pth, .safetensors or .npz instead",
    )
    parser.add_argument("--kind", help="name layout (default: found from the names)")
    parser.add_argument(
        "--dry_run", action="store_true", help="show what goes where; write nothing"
    )
    parser.add_argument(
        "--allow_missing",
        action="append",
        default=[],
        metavar="PATTERN",
        help="regular expression of our leaves that may be missing and keep their initial values",
    )
    parser.add_argument(
        "--copy",
        metavar="NAME",
        help="of several networks in a file the one under this name: model, ema_model, ...",
    )
    parser.add_argument(
        "--which",
        metavar="last|best|picked|STEP",
        help="--to_torch: which checkpoint (default: last)",
    )
    parser.add_argument(
        "--network",
        choices=("student", "teacher"),
        help="--to_torch: whose weights (default: student)",
    )


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Converts one way or the other; 0, or 1 for a dry run of a file that does not fit.

    `config`, if given, is the run that the network is for: its classes and what no tensor shows.
    Raises UsageError, or RunError for a folder that cannot be written.
    """
    if arguments.to_torch is not None:
        for name in ("to", "dry_run", "allow_missing", "copy"):
            if getattr(arguments, name):
                raise UsageError(
                    f"convert: --to_torch FILE and --{name} do not go together.", field=f"--{name}"
                )
        return _export(arguments)
    for name in ("which", "network"):
        if getattr(arguments, name) is not None:
            raise UsageError(
                f"convert: --{name} goes with --to_torch FILE alone.", field=f"--{name}"
            )
    if arguments.dry_run:
        return _show(arguments)
    if arguments.to is None:
        raise UsageError("convert:", "give --to DIR, --to_torch FILE or --dry_run.", field="--to")
    if arguments.to.exists():
        raise UsageError.at("--to", " exists already", "give a new folder.", value=arguments.to)
    return _import(arguments, config)


def _show(arguments: argparse.Namespace) -> int:
    """Prints the table of what would go where."""
    from rich.box import SIMPLE
    from rich.table import Table

    from mrm_jax.convert import trace
    from mrm_jax.convert.network import kind_of
    from mrm_jax.convert.reader import read_weights

    file = read_weights(arguments.source)
    kind = kind_of(file, arguments.kind, arguments.copy)
    variant: dict[str, Any] = {"allow_missing": tuple(arguments.allow_missing)}
    if arguments.copy:
        variant["copy"] = arguments.copy
    try:
        shown = trace(file.tensors, kind, **variant)
    except ValueError as error:
        raise UsageError.at(arguments.source, f": {error}.") from error
    console = terminal.console(width=None if terminal.is_terminal(sys.stdout) else WIDTH)
    title = f"{arguments.source}, kind {kind}"
    table = Table("tensor", "shape", "here", "how", title=title, box=SIMPLE)
    for names, shape, path, op in shown.moves:
        ends = " ... ".join(dict.fromkeys((min(names), max(names))))
        count = f" ({len(names)})" if len(names) > 1 else ""
        table.add_row(ends + count, " x ".join(map(str, shape)) or "-", path, op)
    for name, reason in shown.dropped.items():
        table.add_row(name, _shape(file.tensors[name]), "-", f"dropped: {reason}", style="dim")
    for path in shown.absent:
        table.add_row("-", "-", path, "missing, keeps its initial value", style="yellow")
    for problem in shown.problems:
        table.add_row(problem, "-", "-", "does not fit", style="red")
    console.print(table)
    used = len({name for names, *_ in shown.moves for name in names} & file.tensors.keys())
    console.print(
        f"{used} tensors used, {len(shown.dropped)} dropped by name, {len(shown.absent)} leaves "
        f"missing, {len(shown.problems)} problems; nothing was written."
    )
    return 1 if shown.problems else 0


def _shape(value: Any) -> str:
    return " x ".join(map(str, value.shape)) or "scalar"


def _import(arguments: argparse.Namespace, config: Config | None) -> int:
    from mrm_jax.convert.network import load_network

    network = load_network(
        arguments.source,
        arguments.kind,
        copy=arguments.copy,
        allow_missing=arguments.allow_missing,
    )

    from mrm_jax.runs.checkpoint import save_network
    from mrm_jax.runs.fingerprint import fingerprint, fingerprint_lines
    from mrm_jax.runs.weights import check_network, network_lines, origin, without_misfits

    chosen = _config(network, config)
    if config is not None:
        network = without_misfits(config, network, arguments.allow_missing)
    check_network(chosen, network)
    found = fingerprint(chosen.model, network.tree, missing=network.absent, **origin(network))
    weights = {**found, "dropped": dict(Counter(network.dropped.values()))}
    facts = {"converted": True, "config": asdict(chosen), "weights": weights, "scores": {}}
    save_network(arguments.to, network.tree, facts)
    for line in (*network_lines(network), *fingerprint_lines(found)):
        print(line)
    if config is None:
        print(f"assumed, as no tensor shows it: {'; '.join(network.assumed)}")
    for path in network.zeros:
        print(f"zeros, as such files have none: {path}")
    for path in network.absent:
        print(f"missing, keeps the network's initial value: {path}")
    count = len(chosen.data.classes.names)
    what = f"segmentor of {count} classes" if network.whole else "encoder"
    print(f"written: {arguments.to} ({what}; {len(network.dropped)} tensors dropped by name)")
    return 0


def _config(network: ConvertedNetwork, given: Config | None) -> Config:
    """The config of a folder: the given one, else the network with the reference's values."""
    if given is not None:
        return given
    from mrm_jax.convert.classes import named_classes
    from mrm_jax.convert.tables import encoder_files
    from mrm_jax.data.labels import CITYSCAPES

    count = network.classes
    if network.whole and not count:
        raise UsageError.at(
            network.file.path,
            ": without its classifier no tensor shows how many classes it tells apart",
            "give the run's --config.",
        )
    classes = named_classes(network.file, count) or CITYSCAPES
    hrda = network.model.multires.enabled
    cityscapes = classes.names == CITYSCAPES.names and network.kind == "segmentor"
    box = CITYSCAPES_BOX if cityscapes and not hrda else None
    encoder = network.model.encoder
    if guessed := encoder_files()[encoder.kind].guessed(encoder):
        raise UsageError.at(
            network.file.path, f": no tensor shows {guessed}", "give the run's --config."
        )
    data = Data(
        crop=HRDA_CROP if hrda else Data.crop,
        classes=classes,
        source=Domain(images="images", labels="labels"),
        evaluation=Domain(images="images", resize=box),
    )
    return Config(data=data, model=network.model, method=Method(kind="source_only"))


def _export(arguments: argparse.Namespace) -> int:
    from mrm_jax.convert.outgoing import outgoing
    from mrm_jax.convert.reader import FORMATS, write_weights
    from mrm_jax.runs.checkpoint import load_rebuilder, load_run

    target: Path = arguments.to_torch
    if is_name(arguments.source):
        raise UsageError.of(
            "--from", arguments.source, "; --to_torch takes a run or a checkpoint of ours."
        )
    if target.suffix not in FORMATS:
        raise UsageError(
            f"--to_torch {target} must end in one of {', '.join(FORMATS)}.",
            field="--to_torch",
            value=target,
        )
    if target.exists():
        raise UsageError.at("--to_torch", " exists already", "give a new file.", value=target)
    which = arguments.which or "last"
    loaded = load_run(arguments.source, which)
    variables = loaded.teacher if arguments.network == "teacher" else loaded.student
    if variables is None:
        raise UsageError(
            "--network teacher: this checkpoint holds none",
            "use --network student.",
            field="--network",
            value="teacher",
        )
    model = loaded.config.model
    grid = loaded.config.method.mrm.grid
    variant: dict[str, Any] = {}
    if arguments.kind == "rebuilder":
        variables = load_rebuilder(arguments.source, which)
        if grid[0] != grid[1]:
            raise UsageError(
                f"the released Rebuilder has a square grid, this one is {grid}.",
                field="config.method.mrm.grid",
                value=grid,
            )
        variant["grid"] = grid[0]
    kind, tensors, added = outgoing(variables, model, arguments.kind, **variant)
    meta = {"mrm_jax": json.dumps({"kind": kind, "model": asdict(model)})}
    write_weights(target, tensors, meta)
    print(f"written: {target}, kind {kind}, {len(tensors)} tensors")
    for what, names in _grouped(added).items():
        print(f"added, {what}: {len(names)} ({names[0]}{' ...' if len(names) > 1 else ''})")
    return 0


def _grouped(added: Mapping[str, Any]) -> dict[str, list[str]]:
    reasons = {
        "num_batches_tracked": "counters of BatchNorm, 0",
        "pos_embed": "the fixed position table",
        "mask_token": "a second name of the mask token",
    }
    groups: dict[str, list[str]] = {}
    for name in added:
        reason = reasons.get(name.rpartition(".")[2], "a layer that is never called, zeros")
        groups.setdefault(reason, []).append(name)
    return groups
