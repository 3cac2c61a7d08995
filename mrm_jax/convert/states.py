"""PyTorch's state dicts <-> our parameter trees, without importing either library.

`import_torch` reads a mapping of arrays under one of the name layouts in `tables.KINDS`,
`export_torch` writes it back bit for bit, `describe` says what the tensors show. Sizes are always
read from the tensors. Nothing is converted unless every tensor is used or dropped by a named rule,
every leaf is filled once and every shape fits; otherwise one ValueError names all that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from mrm_jax.convert.complete import PUBLISHED_GRID, synthesise
from mrm_jax.convert.engine import Plan, convert, invert, plan_export, plan_import, unclaimed
from mrm_jax.convert.layouts import TRACKED, Layout, LayoutKind, Part
from mrm_jax.convert.rebuilder import position_table
from mrm_jax.convert.rules import CLOSED, Drop, Row
from mrm_jax.convert.tables import KINDS

CONCAT_ORDERS = ("c1..c4", "c4..c1")
_VARIANT = ("allow_missing", "complete", "concat_order", "copy", "eps", "grid", "heads")


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
    they are checked and change nothing here; `allow_missing` is a list of regular expressions:
    leaves whose path ("decoder/classifier/kernel") fully matches one and which lack a tensor are
    left out of the tree.
    The tree hangs under `encoder` and `decoder` for kinds that hold both, else at the root of the
    one module.
    Misfit (a ValueError) lists every tensor that is missing, not expected or of a wrong shape.
    """
    found, plan = _understand(state, kind, variant)
    _refuse(plan, f"the state dict does not fit kind {kind!r}")
    _check_heads(variant, found)
    return _nested(convert(plan, state))


def export_torch(variables: Mapping[str, Any], kind: str, **variant: Any) -> dict[str, np.ndarray]:
    """The state dict that `import_torch` turns into these variables, bit for bit; inverse of it.

    variables: `{"params": tree, "batch_stats": tree}` of any array type.   variant: as for
    `import_torch`; `copy` puts that prefix before every name, and `grid` (cells a side, Rebuilder
    only) writes the fixed position table as well. `complete=True` adds all that an import drops
    and a strict load wants: `synthesise`. Hugging Face's hub names are written.
    timm's DINOv2 with registers adds the class token's position to the token: an equal network.
    Misfit as in `import_torch`.
    """
    row = _kind(kind)
    _check_variant(variant)
    tree = leaves(variables)
    base = f"{variant['copy'].rstrip('.')}." if variant.get("copy") else ""
    row = _unwrapped(row, lambda part: any(p.startswith(f"params/{part.root}") for p in tree))
    chosen = _chosen(row, lambda part, layout: layout.holds(f"params/{part.root}", tree))
    for choice in chosen:
        tree = choice.layout.folded(f"params/{choice.part.root}", tree)
    plan = plan_export(_rows(row, chosen, base, variant), tree)
    known = {leaf.path for leaf in plan.leaves}
    plan.problems += [f"not expected {path}" for path in tree if path not in known]
    _check_sizes(row, chosen, plan)
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
    found, plan = _understand(state, kind, variant)
    _refuse(plan, f"the state dict does not fit kind {kind!r}")
    return {"kind": kind, **found}


def detect(state: Mapping[str, Any]) -> str:
    """The kind whose names a state dict has: of those whose first tensors are there, the one that
    uses most tensors. Kinds of one size (`mit_b5`) are not among them.

    ValueError, with the kinds and the first names, where none or more than one fits.
    """
    used: dict[str, int] = {}
    for kind, row in KINDS.items():
        if row.sizes:
            continue
        try:
            _, plan = _understand(state, kind, {}, marked=True)
        except ValueError:
            continue
        keys = {key for leaf in plan.leaves for block in leaf.keys for key in block}
        used[kind] = len(keys & state.keys())
    best = [kind for kind, count in used.items() if count and count == max(used.values())]
    if len(best) == 1:
        return best[0]
    names = ", ".join(list(state)[:3])
    if not best:
        raise ValueError(f"no kind has these names ({names}, ...); kinds: {', '.join(KINDS)}")
    raise ValueError(f"the names ({names}, ...) fit {' and '.join(best)}; say which by its kind")


def trace(state: Mapping[str, Any], kind: str, **variant: Any) -> Trace:
    """Where every tensor would go, without converting and without refusing. Reads shapes only."""
    found, plan = _understand(state, kind, variant)
    moves = []
    for leaf in plan.leaves:
        names = tuple(key for block in leaf.keys for key in block) or ("-",)
        shape = next((tuple(state[key].shape) for key in names if key in state), ())
        moves.append((names, shape, leaf.path, leaf.row.op))
    absent = [leaf.path for leaf in plan.absent]
    return Trace({"kind": kind, **found}, moves, plan.dropped, absent, plan.problems)


@dataclass(frozen=True)
class _Choice:
    part: Part
    layout: Layout


def _understand(
    state: Mapping[str, Any], kind: str, variant: Mapping[str, Any], *, marked: bool = False
) -> tuple[dict[str, Any], Plan]:
    """What the state shows, and the plan that imports it with all its problems.

    marked: ValueError unless the first tensors of every part are there.
    """
    row = _kind(kind)
    _check_variant(variant)
    copy = _copy(row, state, variant.get("copy"))
    spares = (row.spare,) if isinstance(row.spare, str) else row.spare
    spare = next((s for s in spares if any(key.startswith(copy + s) for key in state)), "")
    base = copy + spare
    row = _unwrapped(row, lambda part: any(key.startswith(base + part.prefix) for key in state))
    row = replace(row, parts=tuple(_as_in(part, base, state) for part in row.parts))
    chosen = _chosen(
        row,
        lambda part, layout: layout.names(base + part.prefix, state),
        marked=marked,
    )
    patterns = tuple(variant.get("allow_missing", ()))

    def may_lack(path: str) -> bool:
        return any(re.fullmatch(pattern, path.partition("/")[2]) for pattern in patterns)

    plan = plan_import(_rows(row, chosen, base, variant), state, may_lack if patterns else None)
    left, refused = unclaimed(plan, state, _drops(row, chosen, copy, base))
    plan.problems += left + refused
    _check_sizes(row, chosen, plan)
    found: dict[str, Any] = {"copy": copy.rstrip(".")} if row.copies else {}
    for choice in chosen:
        found[choice.part.role] = {"layout": choice.layout.name, **_facts(choice.layout, plan)}
        if any(r.op == "concat" for r in choice.layout.rows):
            order = variant.get("concat_order", row.concat_order)
            found[choice.part.role]["concat_order"] = order
    return found, plan


def _kind(kind: str) -> LayoutKind:
    if kind not in KINDS:
        near = get_close_matches(kind, KINDS, 1) or sorted(KINDS)
        raise ValueError(f"kind {kind!r} is no name layout; try one of {', '.join(near)}")
    return KINDS[kind]


def _unwrapped(row: LayoutKind, there: Callable[[Part], bool]) -> LayoutKind:
    """The kind with the parts that it has: HRDA's if its attention head is there."""
    attention = [part for part in row.wrapped if part.role == "attention"]
    return replace(row, parts=row.wrapped) if any(map(there, attention)) else row


def _as_in(part: Part, base: str, state: Mapping[str, Any]) -> Part:
    """The part without its prefix where that may be missing and is."""
    lacks = part.bare and not any(key.startswith(base + part.prefix) for key in state)
    return replace(part, prefix="") if lacks else part


def _check_variant(variant: Mapping[str, Any]) -> None:
    for name in variant:
        if name not in _VARIANT:
            raise ValueError(f"variant {name!r} is unknown; it may be {', '.join(_VARIANT)}")
    order = variant.get("concat_order", CONCAT_ORDERS[0])
    if order not in CONCAT_ORDERS:
        raise ValueError(f"concat_order is {order!r}; it may be {' or '.join(CONCAT_ORDERS)}")
    patterns = variant.get("allow_missing", ())
    if isinstance(patterns, str):
        raise ValueError(f"allow_missing is a text; give a list of patterns: [{patterns!r}]")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"allow_missing {pattern!r} is no regular expression: {error}"
            ) from error


def _check_heads(variant: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    heads, dims = variant.get("heads"), found.get("encoder", {}).get("dims")
    if heads is None or dims is None:
        return
    if len(heads) != len(dims) or any(dim % head for dim, head in zip(dims, heads, strict=False)):
        raise ValueError(f"heads are {tuple(heads)}, which do not divide the widths {dims}")


def _copy(row: LayoutKind, state: Mapping[str, Any], wanted: str | None) -> str:
    present = [copy for copy in row.copies if any(key.startswith(copy) for key in state)]
    if wanted is None:
        return present[0] if present else ""
    prefix = wanted.rstrip(".") + "."
    if prefix not in present:
        names = ", ".join(copy.rstrip(".") for copy in present) or "none"
        raise ValueError(f"copy {wanted!r} is not in the state dict; copies there: {names}")
    return prefix


def _chosen(
    row: LayoutKind, fits: Callable[[Part, Layout], bool], *, marked: bool = False
) -> list[_Choice]:
    """The layout of every part. Unless `marked`, an only layout needs no mark, so that all it lacks
    gets listed."""
    chosen = []
    for part in row.parts:
        found = next((layout for layout in part.layouts if fits(part, layout)), None)
        if found is None and part.optional:
            continue
        if found is None and (marked or len(part.layouts) > 1):
            names = "; ".join(
                f"{x.name} ({', '.join(part.prefix + m for m in x.marks)})" for x in part.layouts
            )
            raise ValueError(f"no {part.role} recognised; known by their first tensors: {names}")
        chosen.append(_Choice(part, found or next(iter(part.layouts))))
    return chosen


def _rows(
    row: LayoutKind, chosen: list[_Choice], base: str, variant: Mapping[str, Any]
) -> list[Row]:
    order = variant.get("concat_order", row.concat_order)
    concat = "conv1x1" if order == CONCAT_ORDERS[0] else "conv1x1_reversed"
    rows = []
    for choice in chosen:
        for one in choice.layout.rows:
            placed = one.under(base + choice.part.prefix, choice.part.root)
            rows.append(replace(placed, op=concat) if one.op == "concat" else placed)
    return rows


def _drops(row: LayoutKind, chosen: list[_Choice], copy: str, base: str) -> list[Drop]:
    """Drop rules with the prefixes of this state; those of the kind hold with and without the
    spare prefix."""
    drops = [TRACKED]
    for choice in chosen:
        prefix = re.escape(base + choice.part.prefix)
        drops += [replace(drop, pattern=prefix + drop.pattern) for drop in choice.layout.drops]
    drops += [replace(drop, pattern=re.escape(copy) + drop.pattern) for drop in row.drops]
    if copy:
        others = [re.escape(other) for other in (*row.copies, "mic.") if other != copy]
        drops.append(Drop(f"({'|'.join(others)}).*", f"another copy than {copy.rstrip('.')}"))
    return drops


def _facts(layout: Layout, plan: Plan) -> dict[str, Any]:
    """What the solved symbols say; a ratio that no tensor shows is 1."""
    facts: dict[str, Any] = {}
    for name, symbol in layout.facts:
        if isinstance(symbol, tuple):
            facts[name] = tuple(map(plan.symbols.get, symbol))
        elif "{s}" not in symbol:
            facts[name] = plan.symbols.get(symbol)
        else:
            facts[name] = tuple(plan.symbols.get(symbol.format(s=s), 1) for s in CLOSED["s"])
    return facts


def _check_sizes(row: LayoutKind, chosen: list[_Choice], plan: Plan) -> None:
    for choice in chosen:
        wrong = choice.layout.relation and choice.layout.relation(plan.symbols)
        plan.problems += [wrong] if wrong else []
    if not row.sizes:
        return
    facts = _facts(chosen[0].layout, plan)
    for name, wanted in row.sizes:
        if facts[name] != wanted:
            plan.problems.append(f"{name} are {facts[name]}, expected {wanted}")


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
