"""AdamW with one table of parameter groups and the reference's schedule.

Source: DAFormer sec. 4 (peer: mmcv `DefaultOptimizerConstructor`, `LinearWarmup` + `PolyLr`):
linear decay to 0 with linear warm-up, ten times the rate for the decoder, no weight decay on the
encoder's norms, no clipping. The Rebuilder has a rate of its own (MRM sec. 4). The reference finds
its groups by substrings of names; here each leaf's path meets one row.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mrm_jax.config import Config, Optimizer
from mrm_jax.registry import ENCODER_KINDS
from mrm_jax.types import Array, Metrics, Scalars

WARMUP_START = 1e-6
"""Share of the rate that the warm-up starts from."""

Rate = Literal["encoder", "decoder", "rebuilder"]

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


def _row(path: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, name in table:
        if re.fullmatch(pattern, path):
            return name
    raise ValueError(f"No row of the optimiser's table covers the parameter {path}; add one.")


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in found]


def learning_rate(step: Array, base: Array, warmup: Array, total: Array) -> jax.Array:
    """The rate f[] of step 0, 1, ...: base * (1 - step / total), times a rise from 1e-6 to 1 over
    `warmup` steps.

    `base`, `warmup` and `total` are f[]; no warm-up where `warmup` is 0.
    """
    base = jnp.asarray(base)
    done = jnp.asarray(step).astype(base.dtype)
    # (total - step) / total keeps the last steps' few digits, which 1 - step / total would cancel
    # in float32.
    decayed = base * (total - done) / total
    rise = done / jnp.maximum(warmup, 1)
    return jnp.where(done < warmup, decayed * (rise + (1 - rise) * WARMUP_START), decayed)


def rates(step: Array, scalars: Scalars) -> dict[Rate, jax.Array]:
    """The learning rate f[] of each kind at `step`."""
    encoder, steps = scalars["optimizer.learning_rate"], scalars["train.steps"]
    unit = learning_rate(step, jnp.ones_like(encoder), scalars["optimizer.warmup"], steps)
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

    A leaf moves by -rate * (moment + decay * leaf): the decay is decoupled and scaled by the rate,
    as in PyTorch.
    """
    table, rate = groups(params, config), rates(step, scalars)
    moments, opt_state = adam(config.optimizer).update(grads, opt_state, params)

    def moved(path: Any, leaf: jax.Array, moment: jax.Array) -> jax.Array:
        group = table[jax.tree_util.keystr(path, simple=True, separator="/")]
        if group.decayed:
            moment = moment + scalars["optimizer.weight_decay"].astype(leaf.dtype) * leaf
        return leaf - rate[group.rate].astype(leaf.dtype) * moment.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(moved, params, moments), opt_state


def gradient_norms(grads: Any) -> Metrics:
    """Euclidean norm f[] of the gradient of every part there is (encoder, its neck, decoder,
    HRDA's attention, Rebuilder, auxiliary heads): `grad_norm/...`.
    """
    others = {name: part for name, part in grads.items() if name != "segmentor"}
    parts = {**grads["segmentor"], **others}
    return {
        f"grad_norm/{name}": optax.tree.norm(part)
        for name, part in sorted(parts.items())
        if jax.tree.leaves(part)
    }
