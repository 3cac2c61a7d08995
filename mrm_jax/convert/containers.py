"""Where in a file its tensors lie: under which keys, beside which other things."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

WRAPPERS = ("state_dict", "model", "params", "model_state_dict")
"""Keys under which a file's network is looked for first, whatever lies beside them."""
PREFIXES = ("module.", "_orig_mod.", "net.")
"""What DataParallel, torch.compile and Lightning put before all names."""
DEEPEST = 5


def unwrapped(found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tensors by name, numbers and texts beside them) of a nest of mappings.

    Of `WRAPPERS` the first is opened. Else the mapping with weights is taken, under whatever key it
    lies; of several each puts its key before its names, for `import_torch` to tell which is meant.
    An optimizer's state, which knows its "param_groups", is none.
    """
    meta: dict[str, Any] = {}
    while inner := next((name for name in WRAPPERS if isinstance(found.get(name), Mapping)), None):
        meta |= _beside(found, inner)
        found = found[inner]
    holders = dict(_holders(found, ()))
    if holders and () not in holders:
        meta |= _beside(found, *(place[0] for place in holders))
    elif len(holders) < 2:
        holders = {(): found}
    tensors = {
        ".".join((*place, name) if len(holders) > 1 else (name,)): value
        for place, values in holders.items()
        for name, value in values.items()
        if hasattr(value, "shape")
    }
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in tensors)), ""):
        if not tensors:
            break
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors, meta


def _holders(
    found: Mapping[str, Any], place: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """(keys on the way, mapping) of all that hold a matrix or a kernel."""
    if "param_groups" in found or len(place) > DEEPEST:
        return
    if any(len(getattr(value, "shape", ())) > 1 for value in found.values()):
        yield place, found
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _holders(value, (*place, name))


def _beside(found: Mapping[str, Any], *inner: str) -> dict[str, Any]:
    others = _plain({name: value for name, value in found.items() if name not in inner})
    more = others.get("meta")  # mmcv's meta holds classes and the step
    return {**others, **(more if isinstance(more, Mapping) else {})}


def _plain(value: Any) -> Any:
    """Numbers, texts, lists and mappings of such; other entries of a mapping are left out."""
    if isinstance(value, Mapping):
        kept = {str(name): _plain(entry) for name, entry in value.items()}
        return {name: entry for name, entry in kept.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str | int | float) else None
