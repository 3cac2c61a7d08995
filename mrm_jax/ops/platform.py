"""Operations of which backends run different forms fast: the one place that picks the form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
from jax import lax

_PORTABLE = ContextVar("portable", default=False)


def by_platform(*operands: Any, default: Callable[..., Any], **forms: Callable[..., Any]) -> Any:
    """`forms[p](*operands)` where the program runs on the platform `p` ("cpu", "cuda"), elsewhere
    `default(*operands)`; all forms are equal in value.

    XLA is given the form of the platform that the program is compiled for. To trace the others
    takes a quarter of a step's tracing, so they are left out where the mesh in use says what runs.
    """
    if is_portable():
        return default(*operands)
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        on_cpu = device.device_kind == "cpu"
        default = forms.get("cpu", default) if on_cpu else default
        forms = {p: form for p, form in forms.items() if p != "cpu" and not on_cpu}
    if not forms:
        return default(*operands)
    return lax.platform_dependent(*operands, default=default, **forms)


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
