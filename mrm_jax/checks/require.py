"""How a check refuses."""

from __future__ import annotations

from mrm_jax.errors import UsageError


def require(condition: bool, message: str) -> None:
    """Raises UsageError with `message` unless the condition holds."""
    if not condition:
        raise UsageError(message)
