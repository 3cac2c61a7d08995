"""Operations of which backends run different forms fast: the one place that picks the form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jax import lax

_PORTABLE = ContextVar("portable", default=False)


def by_platform(*operands: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """`cpu(*operands)` where the program runs on CPUs, else `default(*operands)`; both forms are
    equal in value, and the choice is made when the program is compiled for a platform."""
    if is_portable():
        return default(*operands)
    return lax.platform_dependent(*operands, cpu=cpu, default=default)


def is_portable() -> bool:
    """Whether what is traced now has to do without what other formats lack: see `portable`."""
    return _PORTABLE.get()


@contextmanager
def portable() -> Iterator[None]:
    """Programs traced in this context hold the form for every platform alone, for formats that know
    no choice between them. What was jitted and traced before keeps what it has."""
    token = _PORTABLE.set(True)
    try:
        yield
    finally:
        _PORTABLE.reset(token)
