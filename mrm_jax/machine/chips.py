"""Accelerators as their makers describe them, and slices of them by name."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from mrm_jax.errors import UsageError
from mrm_jax.options import nearest

GIB = 2**30


class Chip(NamedTuple):
    """What one chip can do at most: bytes of memory, dense operations a second in bfloat16 and, as
    JAX multiplies by default, in float32 (TPU: one pass of bfloat16; NVIDIA from Ampere on: TF32),
    bytes a second from its memory and over its links to other chips (all of them together)."""

    memory: int
    bfloat16: float
    float32: float
    bandwidth: float
    links: float

    def operations(self, dtype: str) -> float:
        """A second, of a network that computes in `dtype`."""
        return self.bfloat16 if dtype == "bfloat16" else self.float32


CHIPS = {
    # cloud.google.com/tpu/docs: v4, v5e, v5p, v6e
    "v4": Chip(32 * GIB, 275e12, 275e12, 1228e9, 300e9),
    "v5e": Chip(16 * GIB, 197e12, 197e12, 819e9, 200e9),
    "v5p": Chip(95 * GIB, 459e12, 459e12, 2765e9, 600e9),
    "v6e": Chip(32 * GIB, 918e12, 918e12, 1638e9, 448e9),
    # NVIDIA's data sheets, SXM, NVLink
    "v100-16": Chip(16 * GIB, 15.7e12, 15.7e12, 900e9, 300e9),
    "v100": Chip(32 * GIB, 15.7e12, 15.7e12, 900e9, 300e9),
    "a100-40": Chip(40 * GIB, 312e12, 156e12, 1555e9, 600e9),
    "a100": Chip(80 * GIB, 312e12, 156e12, 2039e9, 600e9),
    "h100": Chip(80 * GIB, 989e12, 495e12, 3350e9, 900e9),
    "h200": Chip(141 * GIB, 989e12, 495e12, 4800e9, 900e9),
    # NVIDIA's data sheets and its GA102 and AD102 papers; the links are PCIe, both directions
    "t4": Chip(16 * GIB, 8.1e12, 8.1e12, 300e9, 32e9),
    "rtx3090": Chip(24 * GIB, 71e12, 35.6e12, 936e9, 64e9),
    "a10g": Chip(24 * GIB, 70e12, 35e12, 600e9, 64e9),
    "a6000": Chip(48 * GIB, 154.8e12, 77.4e12, 768e9, 64e9),
    "rtx4090": Chip(24 * GIB, 165.2e12, 82.6e12, 1008e9, 64e9),
    "l4": Chip(24 * GIB, 121e12, 60e12, 300e9, 64e9),
}
"""V100 and T4 have no bfloat16 units: XLA multiplies in float32 there."""

TPUS = ("v4", "v5e", "v5p", "v6e")

_GPUS = {
    # kind: (compute capability, multiprocessors, threads, float32 units and bytes of shared memory
    # of each, of a block at most, bytes of L2, GHz, CUDA's name); CUDA programming guide and data
    # sheets
    "v100-16": ("7.0", 80, 2048, 64, 98_304, 98_304, 6 * 2**20, 1.53, "Tesla V100-SXM2-16GB"),
    "v100": ("7.0", 80, 2048, 64, 98_304, 98_304, 6 * 2**20, 1.53, "Tesla V100-SXM2-32GB"),
    "a100-40": (
        ("8.0", 108, 2048, 64, 167_936, 166_912, 40 * 2**20, 1.41, "NVIDIA A100-SXM4-40GB")
    ),
    "a100": ("8.0", 108, 2048, 64, 167_936, 166_912, 40 * 2**20, 1.41, "NVIDIA A100-SXM4-80GB"),
    "h100": ("9.0", 132, 2048, 128, 233_472, 232_448, 50 * 2**20, 1.98, "NVIDIA H100 80GB HBM3"),
    "h200": ("9.0", 132, 2048, 128, 233_472, 232_448, 50 * 2**20, 1.98, "NVIDIA H200"),
    "t4": ("7.5", 40, 1024, 64, 65_536, 65_536, 4 * 2**20, 1.59, "Tesla T4"),
    "rtx3090": (
        ("8.6", 82, 1536, 128, 102_400, 101_376, 6 * 2**20, 1.70, "NVIDIA GeForce RTX 3090")
    ),
    "a10g": ("8.6", 80, 1536, 128, 102_400, 101_376, 6 * 2**20, 1.71, "NVIDIA A10G"),
    "a6000": ("8.6", 84, 1536, 128, 102_400, 101_376, 6 * 2**20, 1.80, "NVIDIA RTX A6000"),
    "rtx4090": (
        ("8.9", 128, 1536, 128, 102_400, 101_376, 72 * 2**20, 2.52, "NVIDIA GeForce RTX 4090")
    ),
    "l4": ("8.9", 58, 1536, 128, 102_400, 101_376, 48 * 2**20, 2.04, "NVIDIA L4"),
}

UTILISATION = (0.05, 0.35)
"""Shares of a chip's peak between which steps like these are expected; `bench` measures.

By their authors' hours and our count of operations, the published PyTorch code reached 13 % (HRDA
on a Titan RTX, 32 h) and 22 % (DAFormer on an RTX 2080 Ti, 16 h) of float32 peaks; units for
bfloat16 wait longer for memory.
"""

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
    r"Tesla V100-\S+-16GB": "v100-16",
    r"Tesla V100-\S+-32GB": "v100",
    r"(Tesla|NVIDIA) T4": "t4",
    r"NVIDIA GeForce RTX 3090": "rtx3090",
    r"NVIDIA A10G": "a10g",
    r"NVIDIA RTX A6000": "a6000",
    r"NVIDIA GeForce RTX 4090": "rtx4090",
    r"NVIDIA L4": "l4",
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
        capability, cores, threads, units, shared, block, cache, clock, name = _GPUS[self.kind]
        major, minor = capability.split(".")
        info = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "threads_per_core_limit": threads,
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
            f"gpu_device_info {{ {fields} "
            f"cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
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
