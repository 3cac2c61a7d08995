"""AdamW with one table of parameter groups and the reference's schedule.

Source: DAFormer sec. 4 (peer: mmcv `DefaultOptimizerConstructor`, `LinearWarmup` + `PolyLr`):
linear decay to 0 with linear warm-up, ten times the rate for the decoder, no weight decay on the
encoder's norms, no clipping. The Rebuilder has a rate of its own (MRM sec. 4). The reference finds
its groups by substrings of names; here each leaf's path meets one row.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mrm_jax.config import Config, Optimizer
from mrm_jax.registry import ENCODER_KINDS, layers
from mrm_jax.types import Array, Metrics, Scalars

T = TypeVar("T")
Rate = Literal["encoder", "decoder", "rebuilder"]
_REFERENCE = Optimizer()

_NORM = r"(?:[^/]+/)*norm\d*/(?:scale|bias)"
# First match wins; before all, what the encoder's registration calls its norms. The decoder's norms
# and every bias are decayed, as in the reference.
TABLE: tuple[tuple[str, str], ...] = (
    (r"segmentor/encoder/.+", "encoder"),
    (r"segmentor/(?:neck|decoder|attention)/.+", "decoder"),
    (r"rebuilder/mask_token", "rebuilder_token"),
    (r"rebuilder/projector\d+/norm\d+/(?:scale|bias)", "rebuilder_inner_norm"),
    (rf"rebuilder/{_NORM}", "rebuilder_norm"),
    (r"rebuilder/.+", "rebuilder"),
    (r"auxiliary/.+", "decoder"),
)


class Group(NamedTuple):
    """How a parameter is updated: whose learning rate it follows and whether it is decayed."""

    rate: Rate
    decayed: bool


def groups(params: Any, config: Config) -> dict[str, Group]:
    """The group of every leaf of `params` (see `TrainState`), by its path with slashes.

    Raises ValueError for a leaf that no row of `TABLE` covers: a new module needs a row.
    """
    undecayed = config.method.mrm.undecayed
    kinds = {
        "encoder_norm": Group("encoder", config.optimizer.decay_encoder_norms),
        "encoder": Group("encoder", True),
        "decoder": Group("decoder", True),
        "rebuilder_token": Group("rebuilder", "token" not in undecayed),
        "rebuilder_inner_norm": Group("rebuilder", "inner_norms" not in undecayed),
        "rebuilder_norm": Group("rebuilder", "norms" not in undecayed),
        "rebuilder": Group("rebuilder", True),
    }
    norms = ENCODER_KINDS[config.model.encoder.kind].undecayed
    table = ((rf"segmentor/encoder/(?:{norms})", "encoder_norm"), *TABLE)
    return {path: kinds[_row(path, table)] for path, _ in _leaves(params)}


def _row(path: str, table: tuple[tuple[str, T], ...]) -> T:
    for pattern, name in table:
        if re.fullmatch(pattern, path):
            return name
    raise ValueError(f"No row of the optimiser's table covers the parameter {path}; add one.")


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in found]


def layer_shares(params: Any, config: Config) -> dict[str, np.ndarray]:
    """What the rate of each leaf of the encoder is multiplied by, by its path: decay^(top - layer),
    f64[], or f64[n, 1, ...] of n blocks stored stacked. A leaf that is not there has 1.

    Source: peer, BEiT optim_factory.py, MAE util/lr_decay.py. Raises ValueError for a leaf that no
    row of the encoder's registration covers.
    """
    decay, kind = config.optimizer.layer_decay, ENCODER_KINDS[config.model.encoder.kind]
    if decay == 1 or kind.layers is None:
        return {}
    rows, found = kind.layers(config.model.encoder), {}
    top = layers.top(rows)
    for path, leaf in _leaves(params["segmentor"]["encoder"]):
        layer = _row(path, rows)
        if layer is None:
            continue
        share = decay ** (top - np.asarray(layer, float))
        shape = (-1, *(1,) * (leaf.ndim - 1)) if isinstance(layer, range) else ()
        found[f"segmentor/encoder/{path}"] = share.reshape(shape)
    return found


def learning_rate(
    step: Array, base: Array, warmup: Array, total: Array, options: Optimizer = _REFERENCE
) -> jax.Array:
    """The rate f[] of step 0, 1, ...: base * (1 - step / total), and what the options make of it
    over the first `warmup` steps: times a rise from `warmup_start` to 1, or ("linear") base times a
    rise that reaches 1 in the last of them.

    `base`, `warmup` and `total` are f[]; no warm-up where `warmup` is 0.
    """
    base = jnp.asarray(base)
    done = jnp.asarray(step).astype(base.dtype)
    # (total - step) / total keeps the last steps' few digits, which 1 - step / total would cancel
    # in float32.
    decayed = base * (total - done) / total
    start, scaled = options.warmup_start, options.warmup_shape == "scaled"
    rise = done / jnp.maximum(warmup if scaled else warmup - 1, 1)
    warming = done < warmup
    early = (decayed if scaled else base) * (rise + (1 - rise) * start)
    return jnp.where(warming, early, decayed)


def rates(step: Array, scalars: Scalars, options: Optimizer = _REFERENCE) -> dict[Rate, jax.Array]:
    """The learning rate f[] of each kind at `step`; the encoder's is that above all its blocks."""
    encoder, steps = scalars["optimizer.learning_rate"], scalars["train.steps"]
    unit = learning_rate(step, jnp.ones_like(encoder), scalars["optimizer.warmup"], steps, options)
    return {
        "encoder": unit * encoder,
        "decoder": unit * encoder * scalars["optimizer.decoder_multiplier"],
        "rebuilder": unit * scalars["method.mrm.learning_rate"],
    }


def adam(options: Optimizer) -> optax.GradientTransformation:
    """Adam's moments with bias correction; the state is laid out like the parameters."""
    return optax.scale_by_adam(options.beta1, options.beta2, options.eps)


def update(
    params: Any, grads: Any, opt_state: Any, step: Array, scalars: Scalars, config: Config
) -> tuple[Any, Any]:
    """(parameters, optimiser state) after one AdamW step; each leaf keeps its dtype.

    A leaf moves by -rate * (moment + decay * leaf), in the encoder times its layer's share: the
    decay is decoupled and scaled by the rate, as in PyTorch.
    """
    table, rate = groups(params, config), rates(step, scalars, config.optimizer)
    shares = layer_shares(params, config)
    moments, opt_state = adam(config.optimizer).update(grads, opt_state, params)

    def moved(path: Any, leaf: jax.Array, moment: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        group = table[name]
        if group.decayed:
            moment = moment + scalars["optimizer.weight_decay"].astype(leaf.dtype) * leaf
        size = rate[group.rate].astype(leaf.dtype)
        if name in shares:
            size = size * jnp.asarray(shares[name], leaf.dtype)
        return leaf - size * moment.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(moved, params, moments), opt_state


def gradient_norms(grads: Any) -> Metrics:
    """Euclidean norm f[] of the gradient of every part there is (encoder, its neck, decoder,
    HRDA's attention, Rebuilder, auxiliary heads): `grad_norm/...`. Not finite where a
    gradient is not, or is above the root of the largest number (1.8e19).
    """
    others = {name: part for name, part in grads.items() if name != "segmentor"}
    parts = {**grads["segmentor"], **others}
    return {
        f"grad_norm/{name}": optax.tree.norm(part)
        for name, part in sorted(parts.items())
        if jax.tree.leaves(part)
    }
