"""Keeps glibc from handing XLA's buffers back to the system between two steps on a CPU.

Without it every step faults its memory in again: 16,000 page faults a step of the quickstart, and
900 with it, which took 0.15 s of processor time a step where it had taken 0.19 s. The price is
that the process keeps the most memory that it ever used. Accelerators hold their buffers
themselves, so there nothing is changed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

SWITCH = "MRM_JAX_NO_MALLOC"
"""Environment variable that turns this off; so does any variable MALLOC_* of the user's own."""

# (parameter of mallopt, value), from malloc.h: no block by mmap, trim only above 2 GiB free at the
# top, grow by 256 MiB, one arena for all threads.
_SETTINGS = ((-4, 0), (-1, 2**31 - 1), (-2, 2**28), (-8, 1))


def keep_memory(device_platform: str) -> bool:
    """Applies it where it helps (CPU as the device, glibc); returns whether it did."""
    taken = SWITCH in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    if device_platform != "cpu" or taken or not glibc:
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(parameter, value) == 1 for parameter, value in _SETTINGS)
