"""Where a fresh run's weights come from. Precedence: a checkpoint in the workdir (resume), then
`train.init_from`, then `model.encoder.weights`, then random numbers.

Files are read and checked on the host before anything is compiled; what fits is laid over the fresh
state, leaf by leaf, in its types and shardings. Nothing is loaded in part: leaves that stay at
their initial values are those that a conversion was told it may leave out (`--allow_missing`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mrm_jax import rngs, sharding
from mrm_jax.config import Config
from mrm_jax.data.coverage import Noticed
from mrm_jax.data.rare_class import Sampler
from mrm_jax.errors import RunError, UsageError
from mrm_jax.hosts import group
from mrm_jax.registry import ENCODER_KINDS
from mrm_jax.runs.checkpoint import Checkpoints, DamagedError, load_run, save_network
from mrm_jax.runs.fingerprint import fingerprint, fingerprint_lines
from mrm_jax.runs.weights import (
    ENCODER_WEIGHTS,
    INIT_FROM,
    Opened,
    check_fits_model,
    check_leaves,
    open_weights,
    published,
    published_place,
    remarks,
)
from mrm_jax.runs.workdir import FROZEN
from mrm_jax.train.step import Program
from mrm_jax.types import TrainState
from mrm_jax.uda.methods import has_feature_distance

ANCHOR = "method.feature_distance.checkpoint"
FINE_TUNING = 3e-4
"""Rates of AdamW up to this one are for pretrained encoders: SegFormer and DAFormer take 6e-5, Swin
1e-4."""
FRESH = 1e-3
"""A rate of AdamW that encoders are pretrained with from random numbers: DeiT's, SegFormer's."""


@dataclass(frozen=True)
class Start:
    """Weights that a run starts from: variables of the segmentor, numpy, without the leaves that
    stay as they are; their fingerprint; what the user should know."""

    variables: dict[str, dict[str, Any]]
    fingerprint: dict[str, Any]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """What to tell the user before the run."""
        return [f"weights: {line}" for line in (*fingerprint_lines(self.fingerprint), *self.notes)]


def load_start(config: Config) -> Start | None:
    """What `config` asks a fresh run to start from; None for random numbers.

    Raises UsageError naming the field, and the first tensor that does not fit the config's network
    with the option to change.
    """
    path, weights = config.train.init_from, config.model.encoder.weights
    given, field = (weights, ENCODER_WEIGHTS) if path is None else (path, INIT_FROM)
    if given is None:
        return None
    start = _read(config, given, field)
    group.same("the weights' ", start.fingerprint)
    unread = (f"{ENCODER_WEIGHTS} is not read: {INIT_FROM}.",) if path and weights else ()
    return replace(start, notes=(*unread, *start.notes))


def frozen_encoder(config: Config, workdir: Path) -> dict[str, Any] | None:
    """{"params", "batch_stats"}, numpy, of the encoder that the feature distance compares with;
    None where it is off.

    It is read once and kept in the run's own folder, so that a resumed run compares with the same
    one whatever became of the file. Raises UsageError as `load_start`.
    """
    options, folder = config.method.feature_distance, workdir / FROZEN
    if not has_feature_distance(config.method):
        return None
    if folder.is_dir():
        tree = load_run(folder).student
    else:
        of_run = options.source == "checkpoint"
        path = options.checkpoint if of_run else config.model.encoder.weights
        start = _read(config, path or "", ANCHOR if of_run else ENCODER_WEIGHTS)
        if missing := start.fingerprint.get("missing"):
            raise UsageError(
                f"config.{ANCHOR if of_run else ENCODER_WEIGHTS} is {path}, which lacks "
                f"{missing[0]}",
                "the frozen encoder of the feature distance has to be whole.",
                field=f"config.{ANCHOR if of_run else ENCODER_WEIGHTS}",
                value=path,
            )
        tree = start.variables
        group.same("the frozen encoder's ", start.fingerprint)
        save_network(folder, tree, {"config": asdict(config), "weights": start.fingerprint})
    return {name: tree.get(name, {}).get("encoder", {}) for name in ("params", "batch_stats")}


def named_weights(config: Config) -> list[tuple[str, str]]:
    """(path, field) of all weights that a fresh run reads."""
    options, weights = config.method.feature_distance, config.model.encoder.weights
    first, anchor = (config.train.init_from, INIT_FROM), (options.checkpoint, ANCHOR)
    given = [first if config.train.init_from else (weights, ENCODER_WEIGHTS)]
    if has_feature_distance(config.method):
        given.append(anchor if options.source == "checkpoint" else (weights, ENCODER_WEIGHTS))
    return list(dict.fromkeys((path, field) for path, field in given if path))


def from_random(config: Config) -> UsageError | None:
    """What to tell who trains an encoder that has published weights from random numbers, at a rate
    that is made for those; None where that is not so. Not to be raised: it can be meant."""
    encoder, rate = config.model.encoder, config.optimizer.learning_rate
    name = published(encoder)
    given = encoder.weights or config.train.init_from
    files = ENCODER_KINDS[encoder.kind].conversion
    if given or name is None or files is None or not 0 < rate <= FINE_TUNING:
        return None
    return UsageError(
        f"from random numbers: encoder {name} has published weights and is given none, and "
        f"config.optimizer.learning_rate {rate:g} is made for those; {config.train.steps} steps "
        "will teach it little.",
        f"Two ways out: its weights by --config.{ENCODER_WEIGHTS}={published_place(name)} "
        "(docs/weights.md), or a rate for a fresh network, say "
        f"--config.optimizer.learning_rate={FRESH:g}.",
        field=f"config.{ENCODER_WEIGHTS}",
    )


def _read(config: Config, path: str, field: str) -> Start:
    """The weights at `path`: all of them for INIT_FROM, else the encoder's."""
    found, tree, missing = opened_weights(config, path, field)
    origin = fingerprint(config.model, tree, missing=missing, field=field, **found.origin)
    return Start(tree, origin, tuple(remarks(config, found)))


def opened_weights(
    config: Config, path: str, field: str
) -> tuple[Opened, dict[str, dict[str, Any]], tuple[str, ...]]:
    """The weights at `path`, those of them that `field` is about, and the leaves that they lack.
    Raises UsageError as `load_start`, RunError for a damaged folder."""
    opened = open_weights(path, field)
    tree = opened.tree
    if field != INIT_FROM:
        tree = {name: {"encoder": found.get("encoder", {})} for name, found in tree.items()}
    elif not opened.whole:
        raise UsageError(
            f"config.{field} is {path}, an encoder alone",
            f"give it as config.{ENCODER_WEIGHTS}.",
            field=f"config.{field}",
            value=path,
        )
    name, whole = f"config.{field}", field == INIT_FROM
    check_fits_model(config, opened, name, whole=whole)
    return opened, tree, check_leaves(config, tree, opened.absent, name, whole=whole)


def abstract_state(config: Config, program: Program, mesh: jax.sharding.Mesh) -> TrainState:
    """A run's state without its arrays: shapes, types and places."""
    return sharding.placed(jax.eval_shape(program.init, _key(config)), mesh)


def first_state(
    config: Config,
    program: Program,
    like: TrainState,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpoints,
    weights: Start | None,
) -> Callable[[], tuple[TrainState, dict[str, Any]]]:
    """What gives the newest checkpoint's state on the mesh and its facts, or without any checkpoint
    a fresh one that starts from `weights`. like: the abstract state.

    A fresh one is compiled and drawn by a thread, beside what the caller does before it asks for
    it; on several hosts it is there at once, since all must start their programs in one order.
    Raises DamagedError at once.
    """
    facts: dict[str, Any] = {"scores": {}, "sentinel": {}, "weights": {}}
    if (newest := checkpoints.latest()) is not None:
        state, known = checkpoints.restore(newest, like)
        return lambda: (state, {**facts, **known})
    # Traced before the thread begins: Python traces one program at a time, and XLA compiles the
    # programs of two threads in the order in which they come.
    drawn = sharding.traced_init(program.init, _key(config), mesh)

    def fresh() -> tuple[TrainState, dict[str, Any]]:
        if weights is None:
            return drawn(), facts
        return insert_weights(drawn(), weights), {**facts, "weights": weights.fingerprint}

    if jax.process_count() > 1:
        made = fresh()
        return lambda: made
    thread = ThreadPoolExecutor(1, "first state")
    future = thread.submit(fresh)
    thread.shutdown(wait=False)
    return future.result


def _key(config: Config) -> jax.Array:
    return jax.random.key_data(rngs.root(config.seed))


def set_aside(checkpoints: Checkpoints, step: int, error: DamagedError) -> str:
    """Sets the checkpoint of `step` aside for the one before it; says so in a line. Raises `error`
    where there is none, RunError where other hosts may have read their part of it."""
    line = checkpoints.aside(step)
    if line is None:
        raise error
    if group.host_count() > 1:
        raise RunError(
            f"On host {group.host_index()} {line}",
            "Give the same command again.",
            field=f"host {group.host_index()}",
        ) from error
    return line


def insert_weights(state: TrainState, start: Start) -> TrainState:
    """The fresh `state` with the weights of `start` in its student and, as its copy, its teacher.

    Every leaf gets memory of its own, so that the step may be given the state's buffers.
    """
    params, stats = start.variables["params"], start.variables.get("batch_stats", {})
    return replace(
        state,
        params={**state.params, "segmentor": _over(state.params["segmentor"], params)},
        batch_stats=_over(state.batch_stats, stats),
        teacher_params=_over(state.teacher_params, params),
        teacher_batch_stats=_over(state.teacher_batch_stats, stats),
    )


def _over(tree: Any, given: Mapping[str, Any]) -> Any:
    """`tree` with the leaves of `given`; what only `given` has is not taken (an empty teacher)."""

    def one(old: Any, new: Any) -> Any:
        if new is None:
            return old
        if isinstance(old, Mapping):
            return {name: one(leaf, new.get(name)) for name, leaf in old.items()}
        return jax.device_put(np.array(new, old.dtype), old.sharding)

    return one(tree, given)


def drawn_from(
    config: Config, known: Mapping[str, Any], sampler: Sampler | None, noticed: Noticed
) -> dict:
    """What environment.json says of the weights that a run starts from and of its classes."""
    found = {"weights": known["weights"]} if known["weights"] else {}
    if noticed.labels:
        found["source_labels"] = noticed.labels.facts(config.data.classes.names)
    if sampler:
        found["rare_class_sampling"] = sampler.facts(config.data.classes.names)
    return found
