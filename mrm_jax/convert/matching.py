"""Which tensors of a state dict, or leaves of a tree, are a kind's: under which prefix they stand,
in which layouts, and the plan that moves them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from mrm_jax.convert.engine import Plan, plan_import, unclaimed
from mrm_jax.convert.layouts import TRACKED, Layout, LayoutKind, Part, layout_of_state
from mrm_jax.convert.rules import CLOSED, Drop, Row
from mrm_jax.convert.tables import KINDS
from mrm_jax.convert.variant import CONCAT_ORDERS, check_variant


class SeveralError(ValueError):
    """The names of a kind stand under several prefixes; `places` are these."""

    def __init__(self, places: list[str]):
        several = f"{', '.join(places[:-1])} and {places[-1]}"
        super().__init__(
            f"there are networks under {several}; take one, say by convert --copy {places[0]}"
        )
        self.places = places


@dataclass(frozen=True)
class LayoutChoice:
    """The layout that a part of a kind has."""

    part: Part
    layout: Layout


def understand(
    state: Mapping[str, Any], kind: str, variant: Mapping[str, Any], *, marked: bool = False
) -> tuple[dict[str, Any], Plan]:
    """What the state shows, and the plan that imports it with all its problems.

    marked: ValueError unless the first tensors of every part are there.
    """
    row = kind_row(kind)
    check_variant(variant)
    copy = _copy(row, state, variant)
    patterns = tuple(variant.get("allow_missing", ()))

    def may_lack(path: str) -> bool:
        return any(re.fullmatch(pattern, path.partition("/")[2]) for pattern in patterns)

    row, chosen, base, plan = _planned(
        row, state, copy, variant, marked=marked, may_lack=may_lack if patterns else None
    )
    left, refused = unclaimed(plan, state, _drops(row, chosen, copy, base))
    plan.problems += left + refused
    check_sizes(row, chosen, plan)
    found: dict[str, Any] = {"copy": copy.rstrip(".")} if row.copies or copy else {}
    for choice in chosen:
        found[choice.part.role] = {"layout": choice.layout.name, **_facts(choice.layout, plan)}
        if any(r.op == "concat" for r in choice.layout.rows):
            order = variant.get("concat_order", row.concat_order)
            found[choice.part.role]["concat_order"] = order
    return found, plan


def _planned(
    row: LayoutKind,
    state: Mapping[str, Any],
    copy: str,
    variant: Mapping[str, Any],
    *,
    marked: bool,
    may_lack: Callable[[str], bool] | None = None,
) -> tuple[LayoutKind, list[LayoutChoice], str, Plan]:
    """The kind with the parts that lie under the prefix `copy`, their layouts, the prefix with the
    spare one, and the plan that imports them."""
    spare = next((s for s in row.spares if any(key.startswith(copy + s) for key in state)), "")
    base = copy + spare
    row = fitting_parts(row, lambda part: any(key.startswith(base + part.prefix) for key in state))
    row = replace(row, parts=tuple(_as_in(part, base, state) for part in row.parts))
    chosen = layouts_of(
        row,
        lambda part, layout: any(base + part.prefix + mark in state for mark in layout.marks),
        marked=marked,
    )
    classifier = bool(variant.get("classifier"))
    chosen = [
        replace(x, layout=layout_of_state(x.layout, state, base + x.part.prefix, classifier))
        for x in chosen
    ]
    return row, chosen, base, plan_import(rows_of(row, chosen, base, variant), state, may_lack)


def kind_row(kind: str) -> LayoutKind:
    """The kind of that name. Raises ValueError with the nearest one."""
    if kind not in KINDS:
        near = get_close_matches(kind, KINDS, 1) or sorted(KINDS)
        raise ValueError(f"kind {kind!r} is no name layout; try one of {', '.join(near)}")
    return KINDS[kind]


def fitting_parts(row: LayoutKind, there: Callable[[Part], bool]) -> LayoutKind:
    """The kind with the parts that it has: HRDA's if its attention head is there."""
    attention = [part for part in row.wrapped if part.role == "attention"]
    return replace(row, parts=row.wrapped) if any(map(there, attention)) else row


def _as_in(part: Part, base: str, state: Mapping[str, Any]) -> Part:
    """The part without its prefix where that may be missing and is."""
    lacks = part.bare and not any(key.startswith(base + part.prefix) for key in state)
    return replace(part, prefix="") if lacks else part


def _copy(row: LayoutKind, state: Mapping[str, Any], variant: Mapping[str, Any]) -> str:
    """The prefix under which the network lies: the wanted one, the preferred of the known ones, or
    where the first tensors stand under no known one, the only one under which they do.

    Raises SeveralError where they stand under several that are not all known, ValueError where the
    wanted one is not there.
    """
    wanted = variant.get("copy")
    present = [copy for copy in row.copies if any(key.startswith(copy) for key in state)]
    if wanted is None and not present and (not _ends(row) or _stands(row, state, "", variant)):
        return ""
    known = (*row.copies, "mic.")  # MIC's second teacher lies beside them
    found = [*present, *(p for p in _places(row, state, variant) if not p.startswith(known))]
    if wanted is None:
        if len(found) > max(len(present), 1):
            raise SeveralError([place.rstrip(".") for place in found])
        return found[0] if found else ""
    prefix = wanted.rstrip(".") + "."
    if prefix not in found:
        names = ", ".join(copy.rstrip(".") for copy in found) or "none"
        raise ValueError(f"copy {wanted!r} is not in the state dict; copies there: {names}")
    return prefix


def _ends(row: LayoutKind) -> set[str]:
    """How the name of a first tensor of the kind's first part ends."""
    part = row.parts[0]
    before = {start + part.prefix for start in ("", *row.spares)} | ({""} if part.bare else set())
    return {start + mark for layout in part.layouts for mark in layout.marks for start in before}


def _stands(
    row: LayoutKind, state: Mapping[str, Any], place: str, variant: Mapping[str, Any]
) -> bool:
    """Whether the first tensors of all parts and half of all tensors stand under a prefix."""
    try:
        *_, plan = _planned(row, state, place, variant, marked=True)
    except ValueError:
        return False
    keys = {key for leaf in plan.leaves for block in leaf.keys for key in block}
    return not place or 2 * len(keys & state.keys()) >= len(keys)


def _places(row: LayoutKind, state: Mapping[str, Any], variant: Mapping[str, Any]) -> list[str]:
    """The prefixes, ending in a dot, under which the kind stands, none below another one."""
    ends = tuple(f".{end}" for end in _ends(row))
    marked = [name.removesuffix(end) + "." for name in state for end in ends if name.endswith(end)]
    found: list[str] = []
    for place in sorted(dict.fromkeys(marked), key=lambda place: place.count(".")):
        if not place.startswith(tuple(found)) and _stands(row, state, place, variant):
            found.append(place)
    return found


def layouts_of(
    row: LayoutKind, fits: Callable[[Part, Layout], bool], *, marked: bool = False
) -> list[LayoutChoice]:
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
        chosen.append(LayoutChoice(part, found or next(iter(part.layouts))))
    return chosen


def has_paths(part: Part, layout: Layout, tree: Mapping[str, Any]) -> bool:
    """Whether a tree has the leaves by which a layout is known."""
    return all(f"params/{part.root}{path}" in tree for path in layout.paths)


def rows_of(
    row: LayoutKind, chosen: list[LayoutChoice], base: str, variant: Mapping[str, Any]
) -> list[Row]:
    """The rows of the chosen layouts, under the prefix of a state and the roots of our tree."""
    order = variant.get("concat_order", row.concat_order)
    concat = "conv1x1" if order == CONCAT_ORDERS[0] else "conv1x1_reversed"
    rows = []
    for choice in chosen:
        for one in choice.layout.rows:
            placed = one.under(base + choice.part.prefix, choice.part.root)
            rows.append(replace(placed, op=concat) if one.op == "concat" else placed)
    return rows


def _drops(row: LayoutKind, chosen: list[LayoutChoice], copy: str, base: str) -> list[Drop]:
    """Drop rules with the prefixes of this state; those of the kind hold with and without the
    spare prefix."""
    drops = [TRACKED]
    for choice in chosen:
        prefix = re.escape(base + choice.part.prefix)
        drops += [replace(drop, pattern=prefix + drop.pattern) for drop in choice.layout.drops]
    drops += [replace(drop, pattern=re.escape(copy) + drop.pattern) for drop in row.drops]
    if copy:
        outside = rf"(?!{re.escape(copy)}).*"
        drops.append(Drop(outside, f"not under {copy.rstrip('.')}, as the network is"))
    return drops


def _facts(layout: Layout, plan: Plan) -> dict[str, Any]:
    """What the solved symbols say; a ratio that no tensor shows is 1."""
    if layout.shows is not None:
        return layout.shows(plan.symbols)
    facts: dict[str, Any] = {}
    for name, symbol in layout.facts:
        if "{s}" not in symbol:
            facts[name] = plan.symbols.get(symbol)
        else:
            facts[name] = tuple(plan.symbols.get(symbol.format(s=s), 1) for s in CLOSED["s"])
    return facts


def check_sizes(row: LayoutKind, chosen: list[LayoutChoice], plan: Plan) -> None:
    """Adds to the plan's problems where sizes do not go together, or are not the kind's."""
    for choice in chosen:
        wrong = choice.layout.relation and choice.layout.relation(plan.symbols)
        plan.problems += [wrong] if wrong else []
    if not row.sizes:
        return
    facts = _facts(chosen[0].layout, plan)
    for name, wanted in row.sizes:
        if facts[name] != wanted:
            plan.problems.append(f"{name} are {facts[name]}, expected {wanted}")


def detect(state: Mapping[str, Any], copy: str | None = None) -> str:
    """The kind whose names a state dict has: of those whose first tensors are there, the one that
    uses most tensors. Kinds of one size (`mit_b5`) are not among them. copy: as for
    `import_torch`; one that no kind has is left out.

    ValueError, with the kinds and the first names, where none or more than one fits.
    """
    used: dict[str, int] = {}
    several: list[SeveralError] = []
    variant = {"copy": copy} if copy else {}
    for kind, row in KINDS.items():
        if not row.found:
            continue
        try:
            _, plan = understand(state, kind, variant, marked=True)
        except SeveralError as error:
            several.append(error)
            continue
        except ValueError:
            continue
        keys = {key for leaf in plan.leaves for block in leaf.keys for key in block}
        used[kind] = len(keys & state.keys())
    best = [kind for kind, count in used.items() if count and count == max(used.values())]
    if len(best) == 1:
        return best[0]
    if not best and copy:
        return detect(state)
    names = ", ".join(list(state)[:3])
    if not best and several:
        raise min(several, key=lambda error: len(error.places))
    if not best:
        raise ValueError(
            f"no kind has these names ({names}, ...), which begin with {_beginnings(state)}; "
            f"kinds: {', '.join(KINDS)}"
        )
    raise ValueError(f"the names ({names}, ...) fit {' and '.join(best)}; say which by its kind")


def _beginnings(state: Mapping[str, Any]) -> str:
    """The first parts of all names with how many have each, the most frequent first."""
    counted = Counter(name.partition(".")[0] for name in state).most_common()
    shown = [f"{name} ({count})" for name, count in counted[:8]]
    return ", ".join([*shown, *([f"{len(counted) - 8} more"] if len(counted) > 8 else [])])
