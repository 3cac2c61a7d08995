"""What a run may be put together from, each registered once: one dataclass holds all that the
package asks about it.

`ENCODER_KINDS.register(EncoderKind(...))` and its like, from anywhere, before the config is read: a
config file may do it itself. CONTRIBUTING.md says how. Costs no jax: what needs it is referred to.
"""

from mrm_jax.registry import dinov2 as _dinov2  # noqa: F401 - registers
from mrm_jax.registry.decoders import DECODER_KINDS, DecoderKind
from mrm_jax.registry.encoders import (
    ENCODER_KINDS,
    IMAGENET,
    EncoderKind,
    InputStats,
    Sizes,
    strided,
    total_stride,
)
from mrm_jax.registry.layers import Layers
from mrm_jax.registry.objectives import OBJECTIVE_KINDS, ObjectiveKind, added, judging, target_names
from mrm_jax.registry.table import Reference, Registered, Table, referenced

_TABLES: tuple[Table, ...] = (ENCODER_KINDS, DECODER_KINDS, OBJECTIVE_KINDS)
_OURS = [(name, table[name]) for table in _TABLES for name in table.names()]


def as_shipped() -> bool:
    """Whether nothing is registered but by this package."""
    return [(name, table[name]) for table in _TABLES for name in table.names()] == _OURS


__all__ = [
    "as_shipped",
    "DECODER_KINDS",
    "DecoderKind",
    "ENCODER_KINDS",
    "EncoderKind",
    "IMAGENET",
    "InputStats",
    "Layers",
    "Sizes",
    "strided",
    "target_names",
    "total_stride",
    "OBJECTIVE_KINDS",
    "ObjectiveKind",
    "Reference",
    "Registered",
    "Table",
    "added",
    "judging",
    "referenced",
]
