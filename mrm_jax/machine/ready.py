"""What a process that trains does before JAX compiles."""

from __future__ import annotations

from pathlib import Path

import jax

from mrm_jax import allocator
from mrm_jax.config import Config
from mrm_jax.machine import compile_cache, doctor


def make_ready(config: Config, workdir: Path) -> None:
    """Keeps freed memory on a CPU, and compiled programs beside `workdir` unless the config says
    no. Raises UsageError where JAX would run on another kind of device than is wanted."""
    doctor.require_platform(config)
    allocator.keep_memory(jax.default_backend())
    if config.train.compile_cache:
        compile_cache.keep_programs(workdir)
