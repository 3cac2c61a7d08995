"""Weights from a folder or a file, and whether they are those of a config's network.

All checks are on the host and trace shapes at most; a refusal names the option to change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mrm_jax.config import Config, Encoder, Model, detail_crop
from mrm_jax.convert import leaves
from mrm_jax.convert.named import PACKAGE, PACKAGES, UNKNOWN, NotInstalledError, is_name
from mrm_jax.convert.network import ConvertedNetwork
from mrm_jax.convert.network import load_network as load_file
from mrm_jax.errors import RunError, UsageError
from mrm_jax.models.build import build_encoder, build_segmentor
from mrm_jax.paths import located
from mrm_jax.registry import DECODER_KINDS, ENCODER_KINDS
from mrm_jax.runs.checkpoint import load_run
from mrm_jax.variants import ENCODERS, same_size

INIT_FROM = "train.init_from"
ENCODER_WEIGHTS = "model.encoder.weights"
ORIGIN = (
    *("file", "file_sha256", "kind", "copy"),
    *("source", "revision", "licence", "licence_source"),
)
"""What a fingerprint says of where weights come from, and hands on to what starts from them."""


@dataclass(frozen=True)
class Opened:
    """Weights from a folder or a file; `classes` is 0 where it is not known."""

    tree: dict[str, dict[str, Any]]
    model: Model
    whole: bool
    classes: int
    names: tuple[str, ...]
    absent: tuple[str, ...]
    origin: dict[str, Any]
    known: bool
    zeros: tuple[str, ...] = ()


def open_weights(path: str, field: str) -> Opened:
    """The weights of a run, a converted folder or a raw file, by path or name (`convert.named`).
    Raises UsageError, or RunError for a damaged folder, naming the field."""
    name = f"config.{field}"
    try:
        if is_name(path):
            return _of_file(load_file(path))
        folder = located(path)
        return _of_folder(folder) if folder.is_dir() else _of_file(load_file(path))
    except NotInstalledError as error:
        without = "or start without: --config FILE:dacs,encoder=small"
        raise UsageError.at(
            name, f": {error}", without if field == ENCODER_WEIGHTS else ""
        ) from error
    except UsageError as error:
        raise UsageError.at(name, f": {error}") from error
    except RunError as error:
        raise RunError.at(name, f": {error}") from error


def _of_folder(path: Path) -> Opened:
    run = load_run(path)
    weights = run.facts.get("weights") or {}
    known = {name: weights[name] for name in ORIGIN if name in weights}
    if weights:  # without any, that run started from random numbers
        known.setdefault("licence", UNKNOWN.name)
    return Opened(
        tree=run.student,
        model=run.config.model,
        whole="decoder" in run.student["params"],
        classes=len(run.config.data.classes.names),
        names=run.config.data.classes.names,
        absent=tuple(weights.get("missing", ())) if run.facts.get("converted") else (),
        origin={"folder": str(path), "step": run.step, **known},
        known=True,
    )


def _of_file(network: ConvertedNetwork) -> Opened:
    return Opened(
        tree=network.tree,
        model=network.model,
        whole=network.whole,
        classes=network.classes,
        names=(),
        absent=network.absent,
        origin=origin(network),
        known=False,
        zeros=network.zeros,
    )


def origin(network: ConvertedNetwork) -> dict[str, Any]:
    """Where a converted network comes from, for its fingerprint."""
    copy = {"copy": network.copy} if network.copy else {}
    file = network.file
    found = {"file": file.path.name, "file_sha256": file.sha256, "kind": network.kind, **copy}
    return {**found, **file.origin}


def check_fits_model(config: Config, opened: Opened, name: str, *, whole: bool) -> None:
    """UsageError where the encoder, and for a `whole` network the decoder and the classes, are not
    the config's. `name`: what the user calls the weights, a field or a file."""
    ours, theirs = config.model.encoder, opened.model.encoder
    for field in ("kind", *ENCODER_KINDS[ours.kind].shown):
        wanted, found = getattr(ours, field), getattr(theirs, field)
        if wanted != found:
            raise UsageError.at(
                name,
                f": these weights have encoder {field} {found}, and config.model.encoder.{field} "
                f"is {wanted}; {_way_out(theirs)}.",
            )
    if not whole:
        return
    for field in ("kind", *DECODER_KINDS[config.model.decoder.kind].shown):
        wanted, found = getattr(config.model.decoder, field), getattr(opened.model.decoder, field)
        if wanted != found:
            raise UsageError.at(
                name,
                f": these weights have decoder {field} {found}, and config.model.decoder.{field} "
                f"is {wanted}",
                "make them the same.",
            )
    classes = len(config.data.classes.names)
    if opened.classes != classes and not any(path.startswith("decoder/") for path in opened.absent):
        raise UsageError.at(
            name,
            f": these weights tell {opened.classes} classes apart, and config.data.classes "
            f"has {classes}",
            f"take their encoder alone by config.{ENCODER_WEIGHTS}, or all but the "
            "classifier: convert --config FILE --allow_missing 'decoder/classifier/.*'.",
        )


def _way_out(encoder: Encoder) -> str:
    """How to get the encoder that the weights are of."""
    name = published(encoder)
    if name is None:
        return "change it, or give other weights"
    return f"add encoder={name} after the colon of --config FILE, or give other weights"


def published(encoder: Encoder) -> str | None:
    """The name in variants.ENCODERS of an encoder of this size; None where it has none."""
    return next((name for name, known in ENCODERS.items() if same_size(encoder, known)), None)


def published_place(published: str) -> str:
    """Where the weights of a published encoder are: its name in a package, else "PATH"."""
    return f"{PACKAGE}{published}" if published in PACKAGES else "PATH"


def network_lines(network: ConvertedNetwork) -> list[str]:
    """What the tensors of a file show, for people: the encoder with its size's name, the decoder.

    A file that lost the last block of a stage is one of no published size, and nothing else.
    """
    encoder, decoder = network.model.encoder, network.model.decoder
    name = published(encoder) or "no published size"
    fields = sorted(ENCODER_KINDS[encoder.kind].shown, key="depths".__ne__)
    shown = ", ".join(f"{field} {getattr(encoder, field)}" for field in fields)
    lines = [f"encoder: {encoder.kind}, {name}: {shown}"]
    if network.whole:
        told = DECODER_KINDS[decoder.kind].described
        more = "".join(f", {field} {getattr(decoder, field)}" for field in told)
        more += ", two resolutions (HRDA)" if network.model.multires.enabled else ""
        lines.append(f"decoder: {decoder.kind}{more}, {network.classes or 'unknown'} classes")
    return lines


def check_network(config: Config, network: ConvertedNetwork) -> None:
    """Raises UsageError, which names the file, where its network is not the one that `config`
    describes."""
    opened, name = _of_file(network), str(network.file.path)
    check_fits_model(config, opened, name, whole=network.whole)
    check_leaves(config, network.tree, opened.absent, name, whole=network.whole)


def without_misfits(
    config: Config, network: ConvertedNetwork, patterns: Sequence[str]
) -> ConvertedNetwork:
    """`network` without the leaves that match a pattern and have another shape than the config's,
    such as the classifier of other classes."""
    wanted = shapes(config, whole=network.whole)
    absent = [
        path.partition("/")[2]
        for path, leaf in leaves(network.tree).items()
        if wanted.get(path, leaf.shape) != tuple(leaf.shape)
        and any(re.fullmatch(pattern, path.partition("/")[2]) for pattern in patterns)
    ]
    tree = {name: _without(below, absent) for name, below in network.tree.items()}
    return replace(network, tree=tree, absent=(*network.absent, *absent))


def _without(tree: Mapping[str, Any], absent: Sequence[str], prefix: str = "") -> dict[str, Any]:
    kept = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            kept[name] = _without(value, absent, f"{path}/")
        elif path not in absent:
            kept[name] = value
    return {name: value for name, value in kept.items() if not isinstance(value, dict) or value}


def check_leaves(
    config: Config, tree: Mapping[str, Any], absent: tuple[str, ...], name: str, *, whole: bool
) -> tuple[str, ...]:
    """The leaves that stay as they are, of those in `absent`; UsageError for a tree that is not the
    network's. `name`, `whole`: as for `check_fits_model`."""
    wanted = shapes(config, whole=whole)
    found = {path: tuple(leaf.shape) for path, leaf in leaves(tree).items()}
    missing = [path for path in wanted if path not in found]
    allowed = {path for path in missing if path.partition("/")[2] in absent}
    problems = [f"{path} is missing" for path in missing if path not in allowed]
    problems += [f"{path} is not part of it" for path in found if path not in wanted]
    problems += [
        f"{path} has shape {shape}, not {wanted[path]}"
        for path, shape in found.items()
        if path in wanted and shape != wanted[path]
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UsageError.at(
            name,
            f": these weights do not fit the network: {problems[0]}{more}; nothing was loaded.",
        )
    return tuple(path.partition("/")[2] for path in missing)


def shapes(config: Config, *, whole: bool) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every leaf of the config's segmentor, or of its encoder alone."""
    # Looped blocks have the same leaves and are traced in a fraction of the time.
    model = replace(config.model, unroll=False, remat="none")
    image = jax.ShapeDtypeStruct((1, *config.data.crop, 3), np.float32)
    key = jax.ShapeDtypeStruct((2,), np.uint32)
    if not whole:
        start: Any = partial(build_encoder(model).init, mode="eval")
        found: Any = jax.eval_shape(start, key, image)
        tree = {name: {"encoder": below} for name, below in found.items()}
    else:
        segmentor = build_segmentor(model, len(config.data.classes.names), detail_crop(config))
        corner = jax.ShapeDtypeStruct((2,), np.int32)
        start = partial(segmentor.init, mode="eval")
        tree = jax.eval_shape(lambda k, x, at: start(k, x, offset=at), key, image, corner)
    return {path: tuple(leaf.shape) for path, leaf in leaves(tree).items()}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def remarks(config: Config, opened: Opened) -> list[str]:
    """What the user should know about weights that fit: epsilons, heads and class names that the
    config does not take from them."""
    ours, theirs = config.model.encoder, opened.model.encoder
    notes = [f"these weights have no {path}, which starts from zeros." for path in opened.zeros]
    kind = ENCODER_KINDS[ours.kind]
    for name in kind.implied:
        wanted, found = getattr(ours, name), getattr(theirs, name)
        if wanted != found:
            notes.append(
                f"these weights come from a network with encoder {name} {_short(found)}; "
                f"config.model.encoder.{name} is {_short(wanted)} and is used."
            )
    for name in kind.unshown:
        wanted, found = getattr(ours, name), getattr(theirs, name)
        if opened.known and wanted != found:
            notes.append(f"these weights were used with {name} {found}, not {wanted}.")
    names = config.data.classes.names
    if opened.names and len(opened.names) == len(names) and opened.names != names:
        notes.append(f"these weights call their classes {', '.join(opened.names)}.")
    return notes
