"""What tensors cannot show and the caller of `import_torch` and `export_torch` says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

CONCAT_ORDERS = ("c1..c4", "c4..c1")
_NAMES = ("allow_missing", "classifier", "complete", "concat_order", "copy", "eps", "grid", "heads")


def check_variant(variant: Mapping[str, Any]) -> None:
    """Raises ValueError for a name or a value that there is not."""
    for name in variant:
        if name not in _NAMES:
            raise ValueError(f"variant {name!r} is unknown; it may be {', '.join(_NAMES)}")
    order = variant.get("concat_order", CONCAT_ORDERS[0])
    if order not in CONCAT_ORDERS:
        raise ValueError(f"concat_order is {order!r}; it may be {' or '.join(CONCAT_ORDERS)}")
    patterns = variant.get("allow_missing", ())
    if isinstance(patterns, str):
        raise ValueError(f"allow_missing is a text; give a list of patterns: [{patterns!r}]")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"allow_missing {pattern!r} is no regular expression: {error}"
            ) from error


def check_heads(variant: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises ValueError where the given heads do not divide the widths that were found."""
    heads, dims = variant.get("heads"), found.get("encoder", {}).get("dims")
    if heads is None or dims is None:
        return
    if len(heads) != len(dims) or any(dim % head for dim, head in zip(dims, heads, strict=False)):
        raise ValueError(f"heads are {tuple(heads)}, which do not divide the widths {dims}")
