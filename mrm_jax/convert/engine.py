"""Runs rows: matches them with a state dict or a tree, solves the sizes, and moves the values
either way.

Planning reads names and shapes only and collects everything that does not fit; converting follows
a plan that has no problems.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mrm_jax.convert.rules import CLOSED, OPEN, OPS, Drop, Row, Symbols


@dataclass(frozen=True)
class Leaf:
    """A row with its indices filled in. `keys[block][part]` are the tensors."""

    row: Row
    path: str
    keys: tuple[tuple[str, ...], ...]
    indices: dict[str, int]
    stacked: bool

    def sizes(self, spec: str) -> list[str]:
        """The sizes of a shape with this leaf's indices filled in."""
        return spec.format(**self.indices).split()


@dataclass
class Plan:
    """What a table makes of a state or a tree: leaves, solved symbols, and all that does not
    fit. `absent`: leaves that lack a tensor and were allowed to."""

    leaves: list[Leaf] = field(default_factory=list)
    absent: list[Leaf] = field(default_factory=list)
    symbols: Symbols = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)


def plan_import(
    rows: Iterable[Row], state: Mapping[str, Any], may_lack: Callable[[str], bool] | None = None
) -> Plan:
    """Matches rows with the tensors of a state dict (anything with `.shape`). Reads shapes only.

    may_lack: whether a leaf's path may be left out where a tensor of it is missing; default: none.
    """
    tops = _tops(state)
    plan = Plan()

    def top(row: Row, index: dict[str, int]) -> int:
        return tops.get(_head(row.sources[0], index), -1)

    for leaf in _expand(rows, top, lambda leaf: any(k in state for ks in leaf.keys for k in ks)):
        lacks = any(key not in state for block in leaf.keys for key in block)
        left_out = lacks and may_lack is not None and may_lack(leaf.path)
        (plan.absent if left_out else plan.leaves).append(leaf)
    for leaf in plan.leaves:
        for key in (key for block in leaf.keys for key in block):
            if key not in state:
                plan.problems.append(f"missing {key}")
                continue
            spec = leaf.sizes(leaf.row.shape)
            if leaf.row.take is not None:
                spec[0] = leaf.row.take[2].format(**leaf.indices)
            elif len(leaf.row.sources) > 1:
                spec[0] = _divided(spec[0], len(leaf.row.sources))
            _solve(plan, key, tuple(state[key].shape), spec)
            dtype = getattr(state[key], "dtype", np.dtype(np.float32))
            if getattr(dtype, "kind", "") != "f" and str(dtype) != "bfloat16":
                plan.problems.append(f"{key} holds {dtype}, expected floating-point numbers")
        _bind_count(plan, leaf)
    plan.problems += _overlaps(plan)
    return plan


def plan_export(rows: Iterable[Row], tree: Mapping[str, Any]) -> Plan:
    """Matches rows with the leaves of a tree flattened to `collection/path`. Reads shapes only."""
    tops = _tops(tree)
    plan = Plan()

    def top(row: Row, index: dict[str, int]) -> int:
        name = _open_index(row)
        if "{" + name + "}" in row.path:
            return tops.get(_head(f"{row.collection}/{row.path}", index), -1)
        found = tree.get(f"{row.collection}/{row.path.format(**index)}")
        return OPEN[name] - 1 + (found.shape[0] if found is not None and found.shape else 0)

    plan.leaves = _expand(rows, top, lambda leaf: leaf.path in tree)
    for leaf in plan.leaves:
        if leaf.path not in tree:
            plan.problems.append(f"missing {leaf.path}")
            continue
        shape, op = tuple(tree[leaf.path].shape), OPS[leaf.row.op]
        inner = shape[1:] if leaf.stacked else shape
        if len(inner) != op.rank:
            plan.problems.append(f"{leaf.path} has {len(shape)} axes, {op.rank + leaf.stacked} fit")
            continue
        torch_shape = op.inverse(np.broadcast_to(np.float32(0), inner)).shape
        _solve(plan, leaf.path, torch_shape, leaf.sizes(leaf.row.shape))
        _bind_count(plan, leaf)
    plan.problems += _overlaps(plan)
    return plan


def convert(plan: Plan, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The leaves of a plan without problems, as a flat tree. Values keep their dtype; nothing is
    rounded."""
    tree: dict[str, np.ndarray] = {}
    made: dict[str, tuple[int, ...]] = {}
    for leaf in plan.leaves:
        op, start, stop = OPS[leaf.row.op], *_window(plan, leaf)
        if not leaf.row.sources:
            made[leaf.path] = tuple(_size(plan, text) for text in leaf.sizes(leaf.row.shape))
            continue
        blocks = [
            op.forward(np.concatenate([np.asarray(state[key])[start:stop] for key in block]))
            for block in leaf.keys
        ]
        tree[leaf.path] = np.stack(blocks) if leaf.stacked else np.ascontiguousarray(blocks[0])
    kept = np.result_type(np.float16, *tree.values()) if made else None
    return tree | {path: np.zeros(shape, kept) for path, shape in made.items()}


def invert(plan: Plan, tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict that `convert` turns into this flat tree, in the order of the rows."""
    parts: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    for leaf in plan.leaves:
        if not leaf.row.sources:
            continue
        value = np.asarray(tree[leaf.path])
        start, _ = _window(plan, leaf)
        for block, keys in zip(value if leaf.stacked else [value], leaf.keys, strict=True):
            pieces = np.split(OPS[leaf.row.op].inverse(block), len(keys))
            for key, piece in zip(keys, pieces, strict=True):
                parts[key][start or 0] = piece
    return {key: np.concatenate([rows[at] for at in sorted(rows)]) for key, rows in parts.items()}


def unclaimed(
    plan: Plan, state: Mapping[str, Any], drops: Iterable[Drop]
) -> tuple[list[str], list[str]]:
    """Names of the state that no row uses and no drop rule names, and what drop rules refuse.

    Tensors that are dropped are noted in `plan.dropped`, name -> reason.
    """
    used = {key for leaf in plan.leaves for block in leaf.keys for key in block}
    torn = {key for leaf in plan.absent for block in leaf.keys for key in block}
    left, refused = [], []
    for key in state:
        if key in used:
            continue
        rule = next((drop for drop in drops if re.fullmatch(drop.pattern, key)), None)
        if rule is not None or key in torn:
            plan.dropped[key] = rule.reason if rule else "a part of a leaf that is left out"
        if rule is None and key in torn:
            continue
        if rule is None:
            left.append(f"not expected {key}")
        elif rule.check is not None and (wrong := rule.check(state[key])):
            refused.append(f"{key} {wrong}")
    return left, refused


# Largest value of a row's open index under the given closed ones; below the first value where
# there is none.
Top = Callable[[Row, dict[str, int]], int]


def _expand(rows: Iterable[Row], top: Top, present: Callable[[Leaf], bool]) -> list[Leaf]:
    leaves: list[Leaf] = []
    groups: dict[str, bool] = defaultdict(bool)
    for row in rows:
        for index in _closed_values(row):
            for leaf in _leaves(row, index, top):
                leaves.append(leaf)
                groups[row.group.format(**leaf.indices)] |= present(leaf)
    return [x for x in leaves if not x.row.group or groups[x.row.group.format(**x.indices)]]


def _leaves(row: Row, index: dict[str, int], top: Top) -> list[Leaf]:
    name, path = _open_index(row), f"{row.collection}/{row.path}"
    if not name:
        keys = tuple(source.format(**index) for source in row.sources)
        return [Leaf(row, path.format(**index), (keys,), index, False)]
    first = OPEN[name]
    values = range(first, max(top(row, index), first) + 1)
    keys = [tuple(s.format(**index, **{name: v}) for s in row.sources) for v in values]
    if "{" + name + "}" not in row.path:
        return [Leaf(row, path.format(**index), tuple(keys), index, True)]
    return [
        Leaf(row, path.format(**index, **{name: v}), (k,), {**index, name: v}, False)
        for v, k in zip(values, keys, strict=True)
    ]


def _closed_values(row: Row) -> list[dict[str, int]]:
    text = " ".join((*row.sources, row.path, row.shape))
    if "{s}" in text or "{z}" in text:
        return [{"s": s, "p": s - 1, "z": s - 1} for s in CLOSED["s"]]
    if "{i}" in text:
        return [{"i": i, "n": i + 1} for i in CLOSED["i"]]
    return [{}]


def _open_index(row: Row) -> str:
    first = next(iter(row.sources), "")
    return next((name for name in OPEN if "{" + name + "}" in first), "")


def _head(template: str, index: dict[str, int]) -> str:
    """The part of a name before its open index."""
    cut = min(at for name in OPEN if (at := template.find("{" + name + "}")) >= 0)
    return template[:cut].format(**index)


def _tops(names: Iterable[str]) -> dict[str, int]:
    """The largest number that follows each prefix: {"block1.": 2, "block1.0.norm": 2, ...}.

    No larger than the count of names: whoever numbers beyond it has left numbers out, and a table
    of what is missing up to 10**9 would not end.
    """
    names, tops = list(names), {}
    for name in names:
        for found in re.finditer(r"\d+(?=[./]|$)", name):
            head, digits = name[: found.start()], found.group()
            number = int(digits) if len(digits) < 10 else len(names)
            tops[head] = max(tops.get(head, -1), min(number, len(names)))
    return tops


def _token(text: str) -> tuple[int, str]:
    found = re.fullmatch(r"(\d*)([A-Za-z]\w*)?", text)
    if found is None:
        raise ValueError(f"size {text!r} in a conversion row is no number, symbol or multiple")
    return int(found.group(1) or 1), found.group(2) or ""


def _size(plan: Plan, text: str) -> int:
    times, symbol = _token(text)
    return times * plan.symbols[symbol] if symbol else times


def _divided(text: str, parts: int) -> str:
    times, symbol = _token(text)
    return f"{times // parts}{symbol}"


def _solve(plan: Plan, name: str, shape: tuple[int, ...], spec: list[str]) -> None:
    tokens = [_token(text) for text in spec]
    fits = len(shape) == len(tokens) and all(shape)
    for size, (times, symbol) in zip(shape, tokens, strict=False):
        if fits and symbol and symbol not in plan.symbols and size % times == 0:
            plan.symbols[symbol] = size // times
        fits = fits and size == times * (plan.symbols.get(symbol, -1) if symbol else 1)
    if not fits:
        wanted = [
            str(t * plan.symbols[s]) if s in plan.symbols else f"{t if t > 1 or not s else ''}{s}"
            for t, s in tokens
        ]
        plan.problems.append(f"{name} has shape {shape}, expected ({', '.join(wanted)})")


def _overlaps(plan: Plan) -> list[str]:
    """Leaves filled by two rows, and tensors whose rows are used twice or not at all."""
    problems, seen = [], set()
    windows: dict[str, list[tuple[int, int]]] = defaultdict(list)
    wholes: dict[str, int] = {}
    for leaf in plan.leaves:
        if leaf.path in seen:
            problems.append(f"{leaf.path} is filled twice")
        seen.add(leaf.path)
        if leaf.row.take is not None and not plan.problems:
            times, symbol = _token(leaf.row.take[2].format(**leaf.indices))
            whole = times * plan.symbols.get(symbol, 1)
            start, stop = _window(plan, leaf)
        else:
            start, stop, whole = 0, 1, 1
        for key in (key for block in leaf.keys for key in block):
            windows[key].append((start or 0, stop or 0))
            wholes[key] = whole
    for key, taken in windows.items():
        edges = [0, *(edge for window in sorted(taken) for edge in window), wholes[key]]
        if not plan.problems and any(a != b for a, b in zip(edges[::2], edges[1::2], strict=True)):
            problems.append(f"{key} is not used exactly once")
    return problems


def _bind_count(plan: Plan, leaf: Leaf) -> None:
    if not leaf.row.count:
        return
    symbol = leaf.row.count.format(**leaf.indices)
    name = _open_index(leaf.row)
    found = OPEN[name] + len(leaf.keys) if leaf.stacked else leaf.indices[name] + 1
    if leaf.stacked and plan.symbols.setdefault(symbol, found) != found:
        plan.problems.append(f"{leaf.path} has {found} blocks, others have {plan.symbols[symbol]}")
    plan.symbols[symbol] = max(plan.symbols.get(symbol, 0), found)


def _window(plan: Plan, leaf: Leaf) -> tuple[int | None, int | None]:
    """First and last row that this leaf takes from its tensor; None for all of it."""
    if leaf.row.take is None:
        return None, None
    start, stop, _ = (text.format(**leaf.indices) for text in leaf.row.take)
    return _size(plan, start), _size(plan, stop)
