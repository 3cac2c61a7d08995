"""`predict`: segments pictures and videos of any kind and size, without labels."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrm_jax.cli.evaluate import (
    NETWORKS,
    add_checkpoint_arguments,
    add_protocol_arguments,
    with_protocol,
)
from mrm_jax.cli.prepare import add_limit
from mrm_jax.config import Config
from mrm_jax.errors import UsageError
from mrm_jax.paths import located, shown

if TYPE_CHECKING:
    from mrm_jax.cli.results import Look
    from mrm_jax.cli.segment import Outcome
    from mrm_jax.evaluation.network import TrainedNetwork
    from mrm_jax.evaluation.pictures import NamedPicture

PRODUCTS = ("ids", "colour", "overlay")
"""What is made of a picture unless `--only` says otherwise."""
SHOWN = 5
"""Names in one line that are printed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb besides `--config`."""
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="pictures, folders (searched below), patterns, or videos",
    )
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--to", type=located, required=True, metavar="DIR", help="folder of results"
    )
    add_looking_arguments(parser)
    parser.add_argument(
        "--only",
        metavar="NAMES",
        help=f"write only these, with commas, of {', '.join(PRODUCTS)}; default: all",
    )
    parser.add_argument(
        "--confidence",
        action="store_true",
        help="write NAME_confidence.png, with the probability of each pixel's class, 0..65535",
    )
    parser.add_argument(
        "--opacity", type=float, default=0.5, help="share of the colours in overlays; default: 0.5"
    )
    parser.add_argument(
        "--legend", action="store_true", help="name the classes that are seen in the overlays"
    )
    parser.add_argument(
        "--frames", action="store_true", help="of a video, pictures of each frame; no overlay video"
    )
    add_limit(parser)


def add_looking_arguments(parser: argparse.ArgumentParser) -> None:
    """Which network looks at pictures, and how, for verbs that segment them."""
    parser.add_argument("--network", choices=NETWORKS, default="student", help="default: student")
    parser.add_argument(
        "--resize",
        type=int,
        nargs=2,
        metavar=("LONG", "SHORT"),
        help="box, px, that pictures are fitted into before the network (default: as in training)",
    )
    add_protocol_arguments(parser)
    parser.add_argument(
        "--batch",
        type=int,
        help="pictures of equal size that go through the network together; default: the run's",
    )


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Segments all pictures; 1 where some could not be read or written (they are named), else 0.

    Of every picture: NAME.png (train ids, 8 bits, at its own size), NAME_colour.png,
    NAME_overlay.png, and a row of class_shares.csv; of every video NAME_overlay.mp4 or .webm. NAME
    is the path below the folder that was given. Raises UsageError, or RunError for a folder that
    cannot be written.
    """
    if config is not None:
        raise UsageError(
            "predict takes its config from the checkpoint", "leave --config out.", field="--config"
        )
    products = _products(arguments)
    check_looking(arguments)
    if not 0 <= arguments.opacity <= 1:
        raise UsageError.of("--opacity", arguments.opacity, "", "give a number from 0 to 1.")

    from mrm_jax.evaluation.pictures import collect_pictures, name_outputs

    pictures = collect_pictures(arguments.paths, arguments.to)
    if "overlay" not in products and not arguments.frames and any(p.is_video for p in pictures):
        raise UsageError.of("--only", arguments.only, ": a video becomes overlays", "add --frames.")
    jobs = name_outputs(pictures, arguments.to, products)
    _say_numbered(pictures, jobs)

    import jax

    from mrm_jax import allocator
    from mrm_jax.cli import segment
    from mrm_jax.cli.results import Look, Results
    from mrm_jax.data.files import MEGAPIXELS
    from mrm_jax.opening import opened_networks
    from mrm_jax.runs.checkpoint import load_run

    allocator.keep_memory(jax.default_backend())
    loaded = load_run(arguments.workdir or arguments.checkpoint, arguments.which)
    nets = opened_networks(loaded, arguments.network, lambda found: looking(found, arguments))
    net = nets[arguments.network]
    look = Look(products, arguments.opacity, arguments.legend, arguments.frames)
    megapixels = arguments.max_megapixels or MEGAPIXELS
    with closing(Results(arguments.to, look, net.classes, stamp(net, look))) as results:
        outcome = segment.all_of(net, results, jobs, megapixels)
    return _report(net, jobs, outcome, arguments.to)


def _products(arguments: argparse.Namespace) -> tuple[str, ...]:
    named = arguments.only.split(",") if arguments.only is not None else PRODUCTS
    products = tuple(dict.fromkeys(word.strip() for word in named))
    wrong = [word for word in products if word not in PRODUCTS]
    if wrong:
        raise UsageError.of(
            "--only", arguments.only, "", f"give some of {', '.join(PRODUCTS)}, with commas."
        )
    return (*products, "confidence") if arguments.confidence else products


def check_looking(arguments: argparse.Namespace) -> None:
    """Raises UsageError for numbers of `add_looking_arguments` that are out of range."""
    if arguments.resize is not None and min(arguments.resize) < 1:
        raise UsageError.of("--resize", arguments.resize, ": both sides have to be positive.")
    if arguments.batch is not None and arguments.batch < 1:
        raise UsageError.of("--batch", arguments.batch, "", "give a number from 1 on.")


def _say_numbered(pictures: Sequence[NamedPicture], jobs: Sequence[NamedPicture]) -> None:
    """Names the pictures whose name an earlier one has taken."""
    numbered = [
        f"{shown(job.path)} is {shown(job.name)}"
        for picture, job in zip(pictures, jobs, strict=True)
        if job.is_numbered(picture)
    ]
    if numbered:
        more = f" and {len(numbered) - SHOWN} more" if len(numbered) > SHOWN else ""
        print(f"numbered, as their names are taken: {'; '.join(numbered[:SHOWN])}{more}")


def looking(config: Config, arguments: argparse.Namespace) -> Config:
    """The run's config with what the command says about how pictures are looked at."""
    config = with_protocol(config, arguments)
    evaluation, domain = config.evaluation, config.data.evaluation
    if arguments.batch is not None:
        evaluation = replace(evaluation, batch=arguments.batch)
    if arguments.resize is not None:
        domain = replace(domain, resize=tuple(arguments.resize))
    data = replace(config.data, evaluation=domain)
    return replace(config, data=data, evaluation=evaluation)


def stamp(net: TrainedNetwork, look: Look) -> dict[str, Any]:
    """What makes results: the same stamp, the same results."""
    import hashlib
    import json
    from dataclasses import asdict

    from mrm_jax.evaluation.network import input_box
    from mrm_jax.runs.digest import digests

    evaluation = net.config.evaluation
    seen = ("mode", "window", "stride", "whole_pixels", "scales", "flip")
    arrays = json.dumps(sorted(digests(net.variables).items())).encode()
    return {
        "checkpoint": hashlib.sha256(arrays).hexdigest(),
        "network": net.name,
        "step": net.step,
        "classes": net.classes,
        "colours": net.config.data.classes.colours,
        **{name: getattr(evaluation, name) for name in seen},
        "resize": input_box(net.config),
        **asdict(look),
    }


def _report(net: TrainedNetwork, jobs: Sequence[NamedPicture], outcome: Outcome, to: Path) -> int:
    """Prints what became of all, and how; the exit code."""
    if outcome.warned > SHOWN:
        far = f"{outcome.warned} pictures in all are far from the training scale"
        print(f"warning: {far}.", file=sys.stderr)
    print(outcome.manner(net))
    count = sum(map(len, outcome.failed.values()))
    what = "videos" if all(job.is_video for job in jobs) else "pictures"
    print(f"{len(jobs) - count} of {len(jobs)} {what} segmented into {to}")
    for verb, paths in outcome.failed.items():
        if paths:
            print(f"{len(paths)} could not be {verb}: {', '.join(paths)}", file=sys.stderr)
    return 1 if count else 0
