"""Accelerators as their makers describe them, and slices of them by name."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from mrm_jax.errors import UsageError
from mrm_jax.options import nearest

GIB = 2**30


class Chip(NamedTuple):
    """What one chip can do at most: bytes of memory, bfloat16 operations a second (dense), bytes a
    second from its memory and over its links to other chips of the slice (all of them together)."""

    memory: int
    flops: float
    bandwidth: float
    links: float


CHIPS = {
    # cloud.google.com/tpu/docs: v4, v5e, v5p, v6e
    "v4": Chip(32 * GIB, 275e12, 1228e9, 300e9),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 200e9),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 600e9),
    "v6e": Chip(32 * GIB, 918e12, 1638e9, 448e9),
    # NVIDIA's data sheets, SXM
    "a100-40": Chip(40 * GIB, 312e12, 1555e9, 600e9),
    "a100": Chip(80 * GIB, 312e12, 2039e9, 600e9),
    "h100": Chip(80 * GIB, 989e12, 3350e9, 900e9),
    "h200": Chip(141 * GIB, 989e12, 4800e9, 900e9),
}
TPUS = ("v4", "v5e", "v5p", "v6e")

_GPUS = {
    # kind: (compute capability, multiprocessors, float32 units and bytes of shared memory of each,
    # of a block at most, bytes of L2, GHz, CUDA's name); CUDA programming guide and data sheets
    "a100-40": (8, 108, 64, 167_936, 166_912, 40 * 2**20, 1.41, "NVIDIA A100-SXM4-40GB"),
    "a100": (8, 108, 64, 167_936, 166_912, 40 * 2**20, 1.41, "NVIDIA A100-SXM4-80GB"),
    "h100": (9, 132, 128, 233_472, 232_448, 50 * 2**20, 1.98, "NVIDIA H100 80GB HBM3"),
    "h200": (9, 132, 128, 233_472, 232_448, 50 * 2**20, 1.98, "NVIDIA H200"),
}

_KINDS = {
    # JAX's `device_kind`: `CHIPS`
    r"TPU v4": "v4",
    r"TPU v5 lite|TPU v5e": "v5e",
    r"TPU v5p?": "v5p",
    r"TPU v6 lite|TPU v6e": "v6e",
    r"NVIDIA A100.*40GB": "a100-40",
    r"NVIDIA A100.*80GB": "a100",
    r"NVIDIA H100 80GB HBM3": "h100",
    r"NVIDIA H200": "h200",
}


def of_device(kind: str) -> str | None:
    """The name in `CHIPS` of a device that JAX calls `kind`; None where it has no row."""
    return next((name for like, name in _KINDS.items() if re.fullmatch(like, kind)), None)


USABLE = 0.95
"""Share of a chip's memory that a step may take: the runtime keeps some (v5e: 15.75 of 16 GiB)."""


class Slice(NamedTuple):
    """`devices` devices of a `kind` of chip that train together; `shape` of a TPU slice."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def devices(self) -> int:
        """How many chips."""
        return math.prod(self.shape)

    @property
    def chip(self) -> Chip:
        """What one of them can do."""
        return CHIPS[self.kind]

    @property
    def is_tpu(self) -> bool:
        """Whether it is one of Google's."""
        return self.kind in TPUS

    @property
    def target(self) -> str:
        """A GPU as XLA has to know it to compile for it (peer: openxla `GpuTargetConfigProto`)."""
        capability, cores, units, shared, block, cache, clock, name = _GPUS[self.kind]
        info = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "threads_per_core_limit": 2048,
            "registers_per_core_limit": 65_536,
            "registers_per_block_limit": 65_536,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 65_535,
            "block_dim_limit_z": 65_535,
            "core_count": cores,
            "fpus_per_core": units,
            "shared_memory_per_core": shared,
            "shared_memory_per_block": 48 * 1024,
            "shared_memory_per_block_optin": block,
            "l2_cache_size": cache,
            "clock_rate_ghz": clock,
            "memory_bandwidth": int(self.chip.bandwidth),
            "device_memory_size": self.chip.memory,
        }
        fields = " ".join(f"{field}: {value}" for field, value in info.items())
        return (
            f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {capability} }} }} "
            f'platform_name: "CUDA" device_description_str: "{name}" '
            "dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 8 }"
        )


def parse_topology(name: str) -> Slice:
    """`v5e:2x4` (a TPU slice by its shape), `h100:8` (GPUs by their number).

    Raises UsageError for another form, or a kind that has no row in `CHIPS`.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise UsageError.of(
            "--topology", name, f"; known kinds are {', '.join(CHIPS)}.{nearest(kind, CHIPS)}"
        )
    pattern = r"[1-9]\d*(x[1-9]\d*)*" if kind in TPUS else r"[1-9]\d*"
    if not re.fullmatch(pattern, shape):
        example = {"v4": "v4:2x2x1", "v5p": "v5p:2x2x1"}.get(kind, f"{kind}:2x4")
        raise UsageError.of(
            "--topology",
            name,
            "",
            f"write KIND:SHAPE, such as {example if kind in TPUS else f'{kind}:8'}.",
        )
    return Slice(name, kind, tuple(int(side) for side in shape.split("x")))
