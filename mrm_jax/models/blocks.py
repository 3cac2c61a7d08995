"""Blocks that are run again in the backward pass, and equal ones that are stored stacked."""

from __future__ import annotations

from typing import Any

import flax.linen as nn


def rematerialised(block: type[nn.Module], remat: str, *, looped: bool) -> type[nn.Module]:
    """`block` as `remat` wants it: computed again in the backward pass unless that is "none".

    `looped`: it runs inside a loop, where nothing can merge the recomputation with the first
    computation; elsewhere XLA would, and has to be kept from it.
    """
    if remat not in ("none", "blocks", "full"):
        raise ValueError(f"remat is {remat!r}; use 'none', 'blocks' or 'full'.")
    return block if remat == "none" else nn.remat(block, prevent_cse=not looped)


def recomputed(module: type[nn.Module], remat: str) -> type[nn.Module]:
    """`module`, called as `(x, static)`, computed again as a whole in the backward pass if `remat`
    is "full". Paths of parameters, values and draws stay the same.
    """
    # 2: the second argument, counted with self, is a Python value and no array.
    return nn.remat(module, static_argnums=(2,)) if remat == "full" else module


def stacked_blocks(
    block: type[nn.Module], *, depth: int, unroll: bool, remat: str, name: str, **fields: Any
) -> Any:
    """`depth` blocks of one shape, stored stacked under `name` (leading axis = block), called as
    `(x, inputs) -> (x, None)`.

    Running averages, moments and what flax's `capture_intermediates` catches are stacked like the
    parameters. `inputs` [depth, ...] is handed
    out one a block (None: nothing is). `unroll` runs them one after the other instead of in a loop
    (faster on CPU, slower to compile); `remat` other than "none" computes each block again in the
    backward pass. Both change only how the blocks run, never the parameters or the values.
    """
    scanned = nn.scan(
        rematerialised(block, remat, looped=not unroll),
        variable_axes={"params": 0, "batch_stats": 0, "moments": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=0,
        length=depth,
        unroll=depth if unroll else 1,
        check_constancy_invariants=False,  # flax's check traces a block once more
    )
    return scanned(name=name, **fields)
