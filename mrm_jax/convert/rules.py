"""Invertible rows between PyTorch's tensors and our parameter tree.

A row says: this tensor (or these) of a state dict is that leaf of the tree, by that rearrangement,
with that shape. Names and shapes carry indices and symbols, which are solved from the tensors
themselves, so one table serves every size and both directions. Nothing is converted before every
tensor and every leaf is accounted for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Symbols = dict[str, int]

# Indices with a known range. `p` and `z` follow `s`: the stage before, and the stage counted from
# 0; `n` is `i` from 1.
CLOSED = {"s": range(1, 5), "i": range(4)}
# Indices counted from the tensors, with their first value.
OPEN = {"j": 0, "b": 1}


@dataclass(frozen=True)
class Op:
    """A rearrangement of one tensor's axes and its inverse, with the rank of what comes out."""

    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]
    rank: int


def _reverse_blocks(kernel: np.ndarray) -> np.ndarray:
    """Turns the order of the four equal blocks of input channels round: c1..c4 <-> c4..c1."""
    stages = len(CLOSED["i"])
    if kernel.shape[0] % stages:
        return kernel
    return kernel.reshape(stages, -1, kernel.shape[1])[::-1].reshape(kernel.shape)


OPS = {
    "vector": Op(lambda x: x, lambda x: x, 1),
    "dense": Op(lambda x: x.T, lambda x: x.T, 2),
    # OIHW <-> HWIO; a depthwise kernel (C, 1, k, k) <-> (k, k, 1, C) is the same permutation.
    "conv": Op(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1), 4),
    "conv1x1": Op(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None], 2),
    "conv1x1_reversed": Op(
        lambda x: _reverse_blocks(x[:, :, 0, 0].T),
        lambda x: _reverse_blocks(x).T[:, :, None, None],
        2,
    ),
    # torch's transposed convolution correlates with the flipped kernel where lax's does not; (in,
    # out, kh, kw) there.
    "deconv": Op(
        lambda x: x.transpose(2, 3, 0, 1)[::-1, ::-1],
        lambda x: x[::-1, ::-1].transpose(2, 3, 0, 1),
        4,
    ),
    "token": Op(lambda x: x.reshape(-1), lambda x: x.reshape(1, -1, 1, 1), 1),
    "row": Op(lambda x: x.reshape(-1), lambda x: x.reshape(1, -1), 1),
    "cls": Op(lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, -1), 1),
    "tokens": Op(lambda x: x[0], lambda x: x[None], 2),
    # A first token that the file has no place for, and that is 0.
    "tokens_after_zero": Op(
        lambda x: np.concatenate([np.zeros_like(x[0, :1]), x[0]]), lambda x: x[None, 1:], 2
    ),
    "zeros": Op(lambda x: x, lambda x: x, 1),
}


@dataclass(frozen=True)
class Row:
    """One leaf of the tree and the tensors it is made of.

    source: name of the tensor, with indices in braces; several names are equal parts, joined along
    torch's first axis; none, (): no tensor of the file holds the leaf, which is 0.
    path: the leaf, with slashes. An open index in `source` that `path` lacks is stacked on a new
    leading axis.
    op: a name in OPS.   shape: torch's shape of the (joined) tensor, each size a number, a symbol
    or a multiple of one.
    take: (start, stop, whole) where the leaf is only those rows of a tensor with `whole` rows;
    other rows take the rest.
    group: rows of one group are all there or all absent.   count: symbol that receives how many
    values the open index has, counted from 0: one more than the largest.
    """

    source: str | tuple[str, ...]
    path: str
    op: str
    shape: str
    take: tuple[str, str, str] | None = None
    group: str = ""
    count: str = ""
    collection: str = "params"

    @property
    def sources(self) -> tuple[str, ...]:
        """The names as a tuple, also where there is one."""
        return (self.source,) if isinstance(self.source, str) else self.source

    def under(self, prefix: str, root: str) -> Row:
        """The same row for a state whose names start with `prefix`, in a tree where it hangs under
        `root`."""
        sources = tuple(prefix + name for name in self.sources)
        source = sources[0] if isinstance(self.source, str) else sources
        return replace(self, source=source, path=root + self.path)


@dataclass(frozen=True)
class Drop:
    """Tensors that have no place in our tree on purpose; `check` may refuse one by returning what
    is wrong with it."""

    pattern: str
    reason: str
    check: Callable[[Any], str | None] | None = None
