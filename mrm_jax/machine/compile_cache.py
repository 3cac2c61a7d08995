"""Where compiled programs are kept, so that a run that starts again does not compile again."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE, NAME = "JAX_COMPILATION_CACHE_DIR", "jax_compilation_cache_dir"
FOLDER = ".jax_cache"
"""Folder beside the workdirs of a machine's runs."""


def keep_programs(workdir: Path) -> str:
    """Turns JAX's persistent cache on, in `FOLDER` beside `workdir`; returns where it is.

    What the user has set by the environment variable of JAX stays. To be called before the first
    compilation.
    """
    import jax

    there = getattr(jax.config, NAME)  # the environment variable, if any
    if there or VARIABLE in os.environ:
        return there or "off"
    folder = os.fspath((workdir if workdir.parent != workdir else workdir / "x").parent / FOLDER)
    jax.config.update(NAME, folder)
    return folder
