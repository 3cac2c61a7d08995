"""How a check refuses."""

from __future__ import annotations

from typing import Any

from mrm_jax.errors import UsageError


def require_at(condition: bool, field: str, fault: str, way_out: str = "") -> None:
    """Raises `UsageError.at` the field unless the condition holds."""
    if not condition:
        raise UsageError.at(field, fault, way_out)


def require_value(
    condition: bool, field: str, value: Any, fault: str = "", way_out: str = ""
) -> None:
    """Raises `UsageError.of` the value unless the condition holds."""
    if not condition:
        raise UsageError.of(field, value, fault, way_out)
