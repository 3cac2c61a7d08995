"""Tensors that a PyTorch module has and our tree has not, made anew so that it loads strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from mrm_jax.convert.rebuilder import position_table

PUBLISHED_GRID = 16
"""Cells a side of the released Rebuilder's position table."""
_UNUSED_WIDTH = 128
"""Input channels of the layer that SegFormer's head has and never calls. Source: peer,
configs of SegFormer (decode_head.channels)."""


def synthesise(
    state: Mapping[str, np.ndarray], *, grid: int = PUBLISHED_GRID
) -> dict[str, np.ndarray]:
    """What `state` lacks for a strict load: BatchNorm's counters (0), the layer `conv_seg` of
    SegFormer's mmseg head (zeros; it is never called), the Rebuilder's fixed position table, the
    mask token's second name in VFM-UDA's network.

    grid: cells a side of that table.
    """
    added: dict[str, np.ndarray] = {}
    for name, value in state.items():
        if name.endswith(".running_var"):
            counter = name.removesuffix("running_var") + "num_batches_tracked"
            added[counter] = np.zeros((), np.int64)
        if found := re.fullmatch(r"(|.*\.)linear_fuse\.conv\.weight", name):
            classes = state[f"{found[1]}linear_pred.weight"].shape[0]
            shape = (classes, _UNUSED_WIDTH, 1, 1)
            added[f"{found[1]}conv_seg.weight"] = np.zeros(shape, value.dtype)
            added[f"{found[1]}conv_seg.bias"] = np.zeros(classes, value.dtype)
        found = re.fullmatch(r"(|.*\.)encoder\.mask_token", name)
        if found and f"{found[1]}upscale.0.weight" in state:
            added[f"{found[1]}token_masking.mask_token"] = value
        if found := re.fullmatch(r"(|.*\.)transformer\.mask_token", name):
            table = position_table(grid, value.size)[None]
            added[f"{found[1]}transformer.pos_embed"] = table.astype(value.dtype)
    return {name: value for name, value in added.items() if name not in state}
