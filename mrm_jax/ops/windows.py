"""The grid of overlapping windows that sliding evaluation reads."""

from __future__ import annotations

import numpy as np


def starts(length: int, window: int, stride: int) -> np.ndarray:
    """First positions i64[n] of the windows that cover `length`, in order; the last is shifted back
    to end there.

    `window` may be longer than `length`: then there is one, at 0.
    Source: HRDA sec. 3.4; peer: mmseg `slide_inference` (n = max(length - window + stride - 1, 0)
    // stride + 1).
    """
    if min(length, window, stride) < 1:
        raise ValueError(
            f"windows: length {length}, window {window} and stride {stride} have to be positive."
        )
    if stride > window:
        raise ValueError(
            f"windows: stride {stride} is larger than the window {window}, which leaves gaps; "
            f"use at most {window}."
        )
    count = max(length - window + stride - 1, 0) // stride + 1
    return np.minimum(np.arange(count) * stride, max(length - window, 0))


def grid(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """(corners i32[n,2] of (top, left), row by row; (height, width) of every window, at most
    `size`).
    """
    tops = starts(size[0], window[0], stride[0])
    lefts = starts(size[1], window[1], stride[1])
    corners = [(top, left) for top in tops for left in lefts]
    extent = (min(size[0], window[0]), min(size[1], window[1]))
    return np.asarray(corners, np.int32), extent
