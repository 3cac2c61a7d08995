"""What a program costs, counted on its jaxpr, before any compiler has seen it: an estimate for
devices that nothing here can compile for.

Products are counted exactly, loops as often as they run. Memory is that of the values that are
alive at a time when equations run in their order and cheap elementwise ones are merged into their
consumers, as XLA merges them; what it further merges, reorders and pads is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

CHEAP = {
    *(
        "add",
        "add_any",
        "sub",
        "mul",
        "neg",
        "square",
        "integer_pow",
        "max",
        "min",
        "clamp",
        "sign",
    ),
    *("and", "or", "xor", "not", "eq", "ne", "ge", "gt", "le", "lt", "is_finite", "select_n"),
    *("convert_element_type", "bitcast_convert_type", "reduce_precision", "stop_gradient", "copy"),
    *("broadcast_in_dim", "expand_dims", "squeeze", "reshape", "transpose", "rev", "iota"),
    *("slice", "split", "pad"),
}
"""Primitives that cost less to repeat than to store."""


def flops(jaxpr: Any) -> int:
    """Floating point operations of all matrix products and convolutions of a (closed) jaxpr; of
    branches the dearest, of a loop without a known length one turn."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in contracted)
            total += 2 * eqn.outvars[0].aval.size * inner
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval
            out = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * eqn.outvars[0].aval.size * (kernel.size // out)
        else:
            inner = [flops(part) for part in _inner_jaxprs(eqn)]
            if inner:
                times = eqn.params.get("length", 1)
                total += max(inner) if name == "cond" else times * sum(inner)
    return total


def live_bytes(jaxpr: Any) -> int:
    """The most that values made by a (closed) jaxpr, its outputs among them and its inputs not,
    hold at one time, bytes."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    behind: dict[Any, frozenset] = {}  # of a value that is not stored: those that it comes from

    def stored(value: Any) -> frozenset:
        if hasattr(value, "val"):  # a literal
            return frozenset()
        return behind.get(value, frozenset((value,)))

    last: dict[Any, int] = {}
    for index, eqn in enumerate(jaxpr.eqns):
        used = frozenset().union(*(stored(value) for value in eqn.invars))
        if eqn.primitive.name in CHEAP:
            behind.update((value, used) for value in eqn.outvars)
        last.update((value, index) for value in used)
    end = len(jaxpr.eqns)
    for value in jaxpr.outvars:
        if not hasattr(value, "val"):
            behind.pop(value, None)  # handed out, so stored after all
            last[value] = end
    made = {value for eqn in jaxpr.eqns for value in eqn.outvars}
    dying: list[list[Any]] = [[] for _ in range(end + 1)]
    for value, index in last.items():
        if value in made:
            dying[index].append(value)
    alive = peak = 0
    for index, eqn in enumerate(jaxpr.eqns):
        inner = max((live_bytes(part) for part in _inner_jaxprs(eqn)), default=0)
        out = sum(_bytes(v) for v in eqn.outvars if v not in behind and v in last)
        peak = max(peak, alive + max(inner, out))
        alive += out - sum(_bytes(value) for value in dying[index] if value not in behind)
    return peak


def _bytes(value: Any) -> int:
    return value.aval.size * value.aval.dtype.itemsize


def _inner_jaxprs(eqn: Any) -> Iterator[Any]:
    """The programs (jaxprs) inside an equation: the body of a scan or a while loop, the branches
    of a cond, the function that a pjit, remat or custom gradient calls. Plain arithmetic has none.
    """
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if hasattr(getattr(part, "jaxpr", part), "eqns"):
                yield part
