"""One training step as a pure function: views, passes, one update. Methods are data
(`uda/methods.py`), not branches here.

Source: DACS and MRM, run in the reference's order (peer: mmseg `uda/dacs.py`): teacher, source,
mixed, rebuilt target, update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mrm_jax import options, sharding
from mrm_jax.config import Config, detail_crop, input_stats, mic_block, mim_block
from mrm_jax.models.layers import fold_moments
from mrm_jax.models.multires import crop
from mrm_jax.ops.mask import block_grid, hidden_tokens
from mrm_jax.ops.normalise import to_uint8
from mrm_jax.ops.precision import multiplied
from mrm_jax.ops.resize import resize
from mrm_jax.registry import ENCODER_KINDS, InputStats, judging
from mrm_jax.rngs import typed
from mrm_jax.train import optimizer
from mrm_jax.train import state as states
from mrm_jax.train.executions import accumulate
from mrm_jax.train.passes import Shared, decode, encode, transform
from mrm_jax.train.state import Networks
from mrm_jax.types import Array, Batch, Draws, Frozen, Metrics, SegOutput, TrainState, Tree, View
from mrm_jax.uda import pseudo_label, teacher
from mrm_jax.uda.draws import ROUNDING, detail_offsets, draw
from mrm_jax.uda.methods import Pass, has_feature_distance, has_teacher, passes
from mrm_jax.uda.pseudo_label import PseudoLabel
from mrm_jax.uda.schedule import at_step
from mrm_jax.uda.views import make_views, normalise_batch


class Program(NamedTuple):
    """The pure functions of a run, none of them jitted yet.

    init(key) -> TrainState: `key` u32[2] or typed is the root of all randomness of the run.
    draw(root_key, step, index) -> Draws: `index` i32[B], global sample indices.
    normalise(state, batch) -> Batch: pictures in the dtype of the parameters.
    step_with(state, frozen, batch, draws) -> (TrainState, metrics): `batch` normalised.
    train_step(state, frozen, batch) -> (TrainState, metrics): `batch` uint8, from the loader.
    inspect(state, frozen, batch) -> dict: pictures for panels, u8.
    frozen(config, encoder) -> Frozen: with the traced scalars of `config` and the encoder of the
    feature distance (None: without).
    """

    networks: Networks
    init: Callable[[Array], TrainState]
    draw: Callable[[Array, Array | int, Array], Draws]
    normalise: Callable[[TrainState, Batch], Batch]
    step_with: Callable[[TrainState, Frozen, Batch, Draws], tuple[TrainState, Metrics]]
    train_step: Callable[[TrainState, Frozen, Batch], tuple[TrainState, Metrics]]
    inspect: Callable[[TrainState, Frozen, Batch], dict[str, jax.Array]]
    frozen: Callable[..., Frozen]


class _Run(NamedTuple):
    config: Config
    modules: Networks
    passes: tuple[Pass, ...]

    @property
    def num_classes(self) -> int:
        return len(self.config.data.classes.names)

    @property
    def stats(self) -> InputStats:
        return input_stats(self.config.model)


def build_step(config: Config, networks: Networks | None = None) -> Program:
    """The step of `config`; `networks` replaces the ones that it describes.

    metrics: `<pass>/ce` (before the pass's weight; HRDA: `ce_fused`, `ce_detail`),
    `source/feature_distance`, and unweighted too `<pass>/{contrast,pixels,features}` of what MRM is
    compared with, `total/loss`, `teacher/confident_share`, `teacher/class_share` (f[K],
    all others f[]), `learning_rate` (the encoder's), `grad_norm/<part>` (encoder, decoder,
    attention, rebuilder, auxiliary: those there are), and `finite` (bool[]): false where the loss
    or a gradient's norm was not finite, and then the state comes back exactly as it went in, step
    number included.
    """
    rows = passes(config.method, config.data.classes.names)
    run = _Run(config, networks or states.build_networks(config), rows)
    drawn = partial(
        draw,
        passes=run.passes,
        grid=config.method.mrm.grid,
        blocks=_mic_grid(config),
        inpainted=block_grid(config.data.crop, mim_block(config)),
        offsets=detail_offsets(config),
        rounding=has_teacher(config.method) and config.method.teacher_dtype == "bfloat16",
    )
    precision = config.model.precision
    return Program(
        networks=run.modules,
        init=partial(states.init_state, config, networks or states.initial_networks(config)),
        draw=drawn,
        normalise=partial(_normalise, run),
        step_with=multiplied(partial(_step_with, run), precision),
        train_step=multiplied(partial(_train_step, run, drawn), precision),
        inspect=multiplied(partial(_inspect, run, drawn), precision),
        frozen=states.frozen,
    )


def _mic_grid(config: Config) -> tuple[int, int]:
    """Rows and columns of what MIC hides of a crop: its blocks, or the encoder's tokens."""
    tokens = ENCODER_KINDS[config.model.encoder.kind].tokens
    if config.method.mic.hide == "tokens" and tokens is not None:
        return tokens(config.model.encoder, *config.data.crop)
    return block_grid(config.data.crop, mic_block(config))


def structure(config: Config) -> Config:
    """The part of `config` that decides which program XLA compiles; the key of compiled steps.

    All other options are set to their defaults: those that a step gets as numbers while it runs
    (`types.Scalars`) and those that it never sees. So two configs that differ in a learning rate,
    say, have one structure and share a program. A weight becomes 1 or 0: whether there is such a
    loss is compiled in, how much it counts is not. The declaration of an option says which it is.
    """
    plain: dict[str, Any] = {}
    for path, option in options.declared(Config).items():
        if option.step == "weight":
            # Whether there is such a loss decides what is computed; how much it weighs does not.
            plain[path] = float(options.value_of(config, path) > 0)
        elif option.step != "compiled":
            plain[path] = option.default
    return options.edited(config, plain)


def _normalise(run: _Run, state: TrainState, batch: Batch) -> Batch:
    return normalise_batch(batch, run.stats, jax.tree.leaves(state.params)[0].dtype)


def _train_step(
    run: _Run, drawn: Callable, state: TrainState, frozen: Frozen, batch: Batch
) -> tuple[TrainState, Metrics]:
    draws = drawn(state.root_key, state.step, batch.index)
    return _step_with(run, state, frozen, _normalise(run, state, batch), draws)


def _step_with(
    run: _Run, state: TrainState, frozen: Frozen, batch: Batch, draws: Draws
) -> tuple[TrainState, Metrics]:
    frozen = replace(frozen, scalars=at_step(frozen.scalars, state.step))
    scalars = frozen.scalars
    taught, pseudo, metrics = _teach(run, state, frozen, batch, draws)
    views = _views(run, state, pseudo, batch, draws, frozen)
    shared = Shared.of(run.modules, state.batch_stats, frozen, draws)
    train = run.config.train
    grads, passed, moments = accumulate(
        shared,
        run.passes,
        sharding.whole(state.params),
        views,
        train.pass_execution,
        train.microbatches,
        unroll=run.config.model.unroll,
    )
    grads = sharding.whole(grads)
    params, opt_state = optimizer.update(
        state.params, grads, state.opt_state, state.step, scalars, run.config
    )
    stats = state.batch_stats
    for moment in moments:
        stats = _folded(run, stats, moment)
    norms = optimizer.gradient_norms(grads)
    metrics |= passed | norms
    metrics["learning_rate"] = optimizer.rates(state.step, scalars, run.config.optimizer)["encoder"]
    finite = jnp.isfinite(jnp.stack([metrics["total/loss"], *norms.values()])).all()
    metrics["finite"] = finite
    new = replace(
        taught, step=state.step + 1, params=params, batch_stats=stats, opt_state=opt_state
    )
    if has_teacher(run.config.method) and ROUNDING not in draws.module:
        # Computed again, from a number that is only known now: XLA would hold the one that labelled
        # through all passes, a copy of the network. Rounded by chance it costs more to compute.
        again = _moved(state, frozen, jnp.where(finite, state.step, 0))
        new = replace(new, teacher_params=again)
    kept = jax.tree.map(partial(jnp.where, finite), new, state)
    return kept, metrics


def _moved(state: TrainState, frozen: Frozen, step: Array, key: jax.Array | None = None) -> Tree:
    """The teacher's parameters, moved towards the student's; see `teacher.ema`."""
    student, decay = state.params["segmentor"], frozen.scalars["method.ema_decay"]
    return teacher.ema(student, state.teacher_params, step, decay, key)


def _teach(
    run: _Run, state: TrainState, frozen: Frozen, batch: Batch, draws: Draws
) -> tuple[TrainState, PseudoLabel | None, Metrics]:
    """The state with its teacher moved towards the student, what it says about the target, and
    metrics of that.
    """
    method, scalars = run.config.method, frozen.scalars
    if not has_teacher(method):
        return state, None, {}
    key = draws.module.get(ROUNDING)
    params = _moved(state, frozen, state.step, None if key is None else typed(key))
    look = partial(
        teacher.teacher_forward,
        run.modules.segmentor,
        sharding.whole(params),
        state.teacher_batch_stats,
    )
    output, moments = look(batch.target.image)
    mirrored = None
    if method.teacher_flip:  # BatchNorm's running averages follow the pictures as they are
        mirrored = look(jnp.asarray(batch.target.image)[:, :, ::-1])[0].logits["main"]
    pseudo = pseudo_label.make(
        output.logits["main"],
        batch.target.valid,
        scalars["method.threshold"],
        weight_over=method.weight_over,
        mirrored=mirrored,
    )
    if any(kind.taught for kind in judging(method)):
        pseudo = replace(pseudo, features=output.features)
    stats = _folded(run, state.teacher_batch_stats, moments)
    state = replace(state, teacher_params=params, teacher_batch_stats=stats)
    return state, pseudo, pseudo_label.metrics(pseudo, run.num_classes)


def _folded(run: _Run, stats: Tree, moments: Tree) -> Tree:
    """`fold_moments` of a network, its encoder by a momentum of its own."""
    encoder = {name: found for name, found in moments.items() if name == "encoder"}
    others = {name: found for name, found in moments.items() if name != "encoder"}
    momentum = ENCODER_KINDS[run.config.model.encoder.kind].momentum
    return fold_moments(fold_moments(stats, encoder, momentum), others)


def _views(
    run: _Run,
    state: TrainState,
    pseudo: PseudoLabel | None,
    batch: Batch,
    draws: Draws,
    frozen: Frozen,
) -> dict[str, View]:
    shown = {"target"} if pseudo is not None else set()  # panels show what the teacher says
    views = make_views(
        pseudo,
        batch,
        draws,
        frozen.scalars,
        names={row.view for row in run.passes} | shown,
        method=run.config.method,
        num_classes=run.num_classes,
        stats=run.stats,
    )
    if has_feature_distance(run.config.method):
        anchor = _anchor(run, state, frozen, batch.source.image)
        views["source"] = replace(views["source"], anchor=anchor)
    if pseudo is not None and pseudo.features is not None:
        for name in {row.view for row in run.passes if row.transform == "rebuild"}:
            views[name] = replace(views[name], taught=pseudo.features)
    return views


def _anchor(run: _Run, state: TrainState, frozen: Frozen, image: Array) -> jax.Array:
    """The frozen encoder's last map of pictures f[B, H, W, 3], through the student's neck where
    there is one; under HRDA of the context."""
    encoder = {"params": frozen.imagenet_params, "batch_stats": frozen.imagenet_batch_stats}
    neck = {k: v for k, v in state.params["segmentor"].items() if k == "neck"}
    applied: Any = run.modules.segmentor.apply(
        {name: {"encoder": tree, **neck} for name, tree in encoder.items()},
        image,
        mode="eval",
        offset=jnp.zeros(2, jnp.int32),
        method="encode",
    )
    return jax.lax.stop_gradient(applied["context"][-1])


def _inspect(
    run: _Run, drawn: Callable, state: TrainState, frozen: Frozen, batch: Batch
) -> dict[str, jax.Array]:
    """What the next step would look at, u8: pictures [B,H,W,3], class maps [B,H,W], weights [B,H,W]
    with 255 for 1.

    `source/{image,label}`, `target/{image,prediction}` where the batch has a target; with a teacher
    `target/{label,weight}` (its pseudo-labels) and `mixed/...`; other views likewise; under HRDA
    `source/detail_image`, the source's detail crop; `<view>/mask`, 255 where its tokens are hidden;
    for each pass that masks, `<pass>/mask`, 255 where features (HRDA: of the context) or pixels are
    hidden, and `<pass>/prediction` where they are decoded.
    """
    raw, batch = batch, _normalise(run, state, batch)
    draws = drawn(state.root_key, state.step, batch.index)
    _, pseudo, _ = _teach(run, state, frozen, batch, draws)
    views = _views(run, state, pseudo, batch, draws, frozen)
    size = (raw.source.label.shape[1], raw.source.label.shape[2])
    shared = Shared.of(run.modules, state.batch_stats, frozen, draws)
    panels: dict[str, jax.Array] = {}
    for name, view in views.items():
        panels[f"{name}/image"] = to_uint8(view.image, run.stats)
        panels[f"{name}/label"] = jnp.asarray(view.label).astype(jnp.uint8)
        panels[f"{name}/weight"] = jnp.round(view.weight * 255).astype(jnp.uint8)
        if view.hide is not None:
            panels[f"{name}/mask"] = _hidden_pixels(run, view.hide, size).astype(jnp.uint8) * 255
    if "source" in draws.offset:
        corner, extent = draws.offset["source"], detail_crop(run.config)
        panels["source/detail_image"] = crop(panels["source/image"], corner, extent)
    for row in run.passes:
        if row.transform is None:
            continue
        mask = hidden_tokens(draws.mask[row.name], shared.ratio(row), size)
        panels[f"{row.name}/mask"] = mask.astype(jnp.uint8) * 255
        if not row.decoded:
            continue
        features, _ = encode(shared, row, state.params, views[row.view], "pseudo")
        features = transform(shared, row, state.params, features)
        output, _ = decode(shared, row, state.params, features, size, "pseudo")
        panels[f"{row.name}/prediction"] = _classes(output, size)
    if not raw.target.image.size:  # no pass looks at the target
        return panels
    variables = {"params": state.params["segmentor"], "batch_stats": state.batch_stats}
    output: Any = run.modules.segmentor.apply(variables, batch.target.image, mode="eval")
    panels["target/image"] = jnp.asarray(raw.target.image)
    panels["target/prediction"] = _classes(output, size)
    return panels


def _hidden_pixels(run: _Run, hide: Array, size: tuple[int, int]) -> jax.Array:
    """bool[B, *size] of hidden tokens [B, rows, columns], which may reach beyond the picture."""
    encoder = run.config.model.encoder
    covers = ENCODER_KINDS[encoder.kind].covers
    covered = size if covers is None else covers(encoder, *size)
    mask = resize(jnp.asarray(hide)[..., None], covered, method="nearest")
    return mask[:, : size[0], : size[1], 0]


def _classes(output: SegOutput, size: tuple[int, int]) -> jax.Array:
    return resize(output.logits["main"], size).argmax(-1).astype(jnp.uint8)
