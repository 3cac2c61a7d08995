"""A trained network under PyTorch's names, as `convert` and `export` write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mrm_jax.config import Model
from mrm_jax.convert import KINDS, Misfit, export_torch, synthesise
from mrm_jax.convert.tables import decoder_files, encoder_files
from mrm_jax.errors import UsageError
from mrm_jax.registry import DECODER_KINDS


class Outgoing(NamedTuple):
    """`tensors` by name, ready for a strict load; those in `added` were made anew for it."""

    kind: str
    tensors: dict[str, np.ndarray]
    added: dict[str, np.ndarray]


def outgoing(
    variables: Mapping[str, Any], model: Model, kind: str | None = None, **variant: Any
) -> Outgoing:
    """The state dict of `variables` {"params", "batch_stats"} of a network of `model`, in the
    layout `kind` or, without one, that which the network's own code has; variant: as for
    `export_torch`. Raises UsageError for a kind that they do not fit."""
    kind = kind or _natural_kind(model, variables)
    try:
        tree = _part(variables, kind)
        state = export_torch(tree, kind, **variant, **_order(kind, model))
    except Misfit as error:
        more = f" and {len(error.problems) - 1} more" if len(error.problems) > 1 else ""
        raise UsageError(
            f"kind {kind}: {error.problems[0]}{more}.", field="--kind", value=kind
        ) from error
    except ValueError as error:
        raise UsageError(f"kind {kind}: {error}.", field="--kind", value=kind) from error
    added = synthesise(state, **variant)
    return Outgoing(kind, {**state, **added}, added)


def _natural_kind(model: Model, variables: Mapping[str, Any]) -> str:
    if "decoder" in variables["params"]:
        found = decoder_files().get(model.decoder.kind)
        return "segmentor" if found is None else found.natural(model)
    kind = model.encoder.kind
    files = encoder_files().get(kind)
    if files is None:
        raise UsageError(
            f"encoder kind {kind} is registered without names of a weight file.",
            field="config.model.encoder.kind",
            value=kind,
        )
    return files.natural(model.encoder)


def _part(variables: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The module that a kind is about: all, or the encoder or decoder alone."""
    part = KINDS[kind].parts[0] if kind in KINDS else None
    if part is None or part.root or part.role == "rebuilder":
        return dict(variables)
    return {name: tree.get(part.role, {}) for name, tree in variables.items()}


def _order(kind: str, model: Model) -> dict[str, str]:
    """The variant that turns this model's order of concatenation into the kind's."""
    if "concat" not in DECODER_KINDS[model.decoder.kind].shown or kind not in KINDS:
        return {}
    same = KINDS[kind].concat_order == model.decoder.concat
    return {"concat_order": "c1..c4" if same else "c4..c1"}
