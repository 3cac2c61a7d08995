"""PyTorch's state dicts <-> our parameter trees, without importing either library.

`import_torch` reads a mapping of arrays under one of the name layouts in `tables.KINDS`,
`export_torch` writes it back bit for bit, `describe` says what the tensors show. Sizes are always
read from the tensors. Nothing is converted unless every tensor is used or dropped by a named rule,
every leaf is filled once and every shape fits; otherwise one ValueError names all that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mrm_jax.convert.complete import PUBLISHED_GRID, synthesise
from mrm_jax.convert.engine import Plan, convert, invert, plan_export
from mrm_jax.convert.layouts import folded, layout_of_tree
from mrm_jax.convert.matching import (
    check_sizes,
    fitting_parts,
    has_paths,
    kind_row,
    layouts_of,
    rows_of,
    understand,
)
from mrm_jax.convert.rebuilder import position_table
from mrm_jax.convert.variant import check_heads, check_variant


class Misfit(ValueError):
    """Tensors or leaves that do not fit a kind; `problems` has a phrase for each of them."""

    def __init__(self, what: str, problems: list[str]):
        super().__init__(f"{what}, {len(problems)} problem(s): {'; '.join(problems)}")
        self.what, self.problems = what, problems


@dataclass(frozen=True)
class Trace:
    """Where the tensors of a state dict go. `moves`: (names, torch's shape, our path, op);
    `dropped`: name -> reason; `absent`: our paths that `allow_missing` leaves out; `problems`: what
    does not fit, empty where the import works."""

    found: dict[str, Any]
    moves: list[tuple[tuple[str, ...], tuple[int, ...], str, str]]
    dropped: dict[str, str]
    absent: list[str]
    problems: list[str]


def import_torch(
    state: Mapping[str, np.ndarray], kind: str, **variant: Any
) -> dict[str, dict[str, Any]]:
    """Our variables, `{"params": tree, "batch_stats": tree}`, with the values of a PyTorch state
    dict.

    state: name -> array in PyTorch's layout; dtypes are kept.   kind: a name in KINDS.
    variant: what tensors cannot show. `copy` picks one of several copies in a file ("model",
    "ema_model", "imnet_model"; the first present otherwise); `concat_order` "c1..c4" or "c4..c1"
    is the order in which this file's SegFormer head concatenates the stages (ours is always
    c1..c4; Hugging Face's is c4..c1); `heads` and `eps` belong to the network, not to its tensors:
    they are checked and change nothing here; `classifier=True` keeps that of an encoder whose
    module may have one (`models.build.build_classifier`); `allow_missing` is a list of regular
    expressions: leaves whose path ("decoder/classifier/kernel") fully matches one and which lack a
    tensor are left out of the tree.
    The tree hangs under `encoder` and `decoder` for kinds that hold both, else at the root of the
    one module.
    Misfit (a ValueError) lists every tensor that is missing, not expected or of a wrong shape.
    """
    found, plan = understand(state, kind, variant)
    _refuse(plan, f"the state dict does not fit kind {kind!r}")
    check_heads(variant, found)
    return _nested(convert(plan, state))


def export_torch(variables: Mapping[str, Any], kind: str, **variant: Any) -> dict[str, np.ndarray]:
    """The state dict that `import_torch` turns into these variables, bit for bit; inverse of it.

    variables: `{"params": tree, "batch_stats": tree}` of any array type.   variant: as for
    `import_torch`; `copy` puts that prefix before every name, and `grid` (cells a side, Rebuilder
    only) writes the fixed position table as well. `complete=True` adds all that an import drops
    and a strict load wants: `synthesise`. A classifier that is in the tree is written. Hugging
    Face's hub names are written. timm's DINOv2 with registers adds the class token's position to
    the token: an equal network.
    Misfit as in `import_torch`.
    """
    row = kind_row(kind)
    check_variant(variant)
    tree = leaves(variables)
    base = f"{variant['copy'].rstrip('.')}." if variant.get("copy") else ""
    row = fitting_parts(row, lambda part: any(p.startswith(f"params/{part.root}") for p in tree))
    chosen = layouts_of(row, lambda part, layout: has_paths(part, layout, tree))
    chosen = [replace(x, layout=layout_of_tree(x.layout, tree, x.part.root)) for x in chosen]
    for choice in chosen:
        tree = folded(choice.layout, tree, choice.part.root)
    plan = plan_export(rows_of(row, chosen, base, variant), tree)
    known = {leaf.path for leaf in plan.leaves}
    plan.problems += [f"not expected {path}" for path in tree if path not in known]
    check_sizes(row, chosen, plan)
    _refuse(plan, f"the variables do not fit kind {kind!r}")
    state = invert(plan, tree)
    if kind == "rebuilder" and variant.get("grid"):
        table = position_table(variant["grid"], plan.symbols["D"])
        state[f"{base}transformer.pos_embed"] = table[None]
    if variant.get("complete"):
        state |= synthesise(state, grid=variant.get("grid") or PUBLISHED_GRID)
    return state


def describe(state: Mapping[str, Any], kind: str, **variant: Any) -> dict[str, Any]:
    """What the tensors of a state dict show: layouts, widths, depths, classes, concat order. Reads
    shapes only.

    `{"kind", "copy", "encoder": {"layout", "dims", "depths", ...}, "decoder": {...}}` with the
    parts that the kind has; `concat_order` is the file's own. ValueError as in `import_torch`.
    """
    found, plan = understand(state, kind, variant)
    _refuse(plan, f"the state dict does not fit kind {kind!r}")
    return {"kind": kind, **found}


def trace(state: Mapping[str, Any], kind: str, **variant: Any) -> Trace:
    """Where every tensor would go, without converting and without refusing. Reads shapes only."""
    found, plan = understand(state, kind, variant)
    moves = []
    for leaf in plan.leaves:
        names = tuple(key for block in leaf.keys for key in block) or ("-",)
        shape = next((tuple(state[key].shape) for key in names if key in state), ())
        moves.append((names, shape, leaf.path, leaf.row.op))
    absent = [leaf.path for leaf in plan.absent]
    return Trace({"kind": kind, **found}, moves, plan.dropped, absent, plan.problems)


def _refuse(plan: Plan, what: str) -> None:
    if plan.problems:
        raise Misfit(what, plan.problems)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested tree as path -> leaf, with slashes."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        below = isinstance(value, Mapping)
        flat |= leaves(value, f"{prefix}{name}/") if below else {f"{prefix}{name}": value}
    return flat


def _nested(flat: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    tree: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}}
    for path, value in flat.items():
        node: dict[str, Any] = tree
        *parents, leaf = path.split("/")
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    return tree
