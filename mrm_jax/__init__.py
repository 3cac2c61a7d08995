"""Unsupervised domain-adaptive semantic segmentation with Masked Representation Modeling.

`load(PATH)` opens a trained network; nothing heavy is imported before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrm_jax.opening import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from mrm_jax.opening import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
