"""Keeps glibc from handing XLA's buffers back to the system between two steps on a CPU, and hands
back what compiling took.

Without it every step faults its memory in again: 16,000 page faults a step of the quickstart, and
900 with it, which took 0.15 s of processor time a step where it had taken 0.19 s. The price is
that the process keeps the most memory that it ever used. Accelerators hold their buffers
themselves, so there nothing is changed.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys

SWITCH = "MRM_JAX_NO_MALLOC"
"""Environment variable that turns this off; so does any variable MALLOC_* of the user's own."""

# (parameter of mallopt, value), from malloc.h: no block by mmap, never trim, grow by 256 MiB, one
# arena for all threads. What is free at the top would be trimmed after each step: a MiT-B5's at
# 256 px has 1.6 GB there.
_SETTINGS = ((-4, 0), (-1, -1), (-2, 2**28), (-8, 1))


def keep_memory(device_platform: str) -> bool:
    """Applies it where it helps (CPU as the device, glibc); returns whether it did."""
    taken = SWITCH in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    library = _glibc()
    if device_platform != "cpu" or taken or library is None:
        return False
    return all(library.mallopt(parameter, value) == 1 for parameter, value in _SETTINGS)


def release() -> None:
    """Hands back what is free now. To be called when a large program is compiled: of a MiT-B2's
    gradient at 256 px 2.6 GB were held by then, of which the program needs 0.8."""
    gc.collect()  # programs that ran once are held by cycles
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    return ctypes.CDLL(None) if glibc else None
