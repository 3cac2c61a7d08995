"""Encoders and decoders by name, as they are published: `--config FILE:encoder=mit_b2`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from mrm_jax.config import Decoder, Encoder
from mrm_jax.errors import UsageError
from mrm_jax.registry import DECODER_KINDS, ENCODER_KINDS, Table

T = TypeVar("T")


class _Variants(Mapping[str, T]):
    """The named sizes of all registrations of a table, in order: whatever is registered by the time
    that one is asked for."""

    def __init__(self, table: Table[Any], make: Any) -> None:
        self._table, self._make = table, make

    def __getitem__(self, name: str) -> T:
        for row in self._table:
            if name in row.variants:
                _check_fields(row, f"its variant {name}", row.variants[name], self._make)
                return self._make(kind=row.name, **row.variants[name])
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for row in self._table for name in row.variants)

    def __len__(self) -> int:
        return sum(len(row.variants) for row in self._table)


def _check_fields(row: Any, what: str, values: Mapping[str, Any], make: Any) -> None:
    if unknown := values.keys() - {field.name for field in fields(make)}:
        raise UsageError(
            f"{type(row).__name__} '{row.name}': {what} has {min(unknown)}, which is no option of "
            f"{make.__name__}.",
            field=f"{type(row).__name__} '{row.name}'",
            value=min(unknown),
        )


ENCODERS: Mapping[str, Encoder] = _Variants(ENCODER_KINDS, Encoder)

DECODERS: Mapping[str, Decoder] = _Variants(DECODER_KINDS, Decoder)


def same_size(one: Encoder, other: Encoder) -> bool:
    """Whether the tensors of two encoders have the same shapes, as far as those tell."""
    if one.kind != other.kind:
        return False
    return all(getattr(one, f) == getattr(other, f) for f in ENCODER_KINDS[one.kind].shown)


def decoder_beside(name: str, encoder: Encoder) -> Decoder:
    """The decoder `name` of `DECODERS` as it is published with `encoder`."""
    decoder = DECODERS[name]
    row = DECODER_KINDS[decoder.kind]
    for other, values in row.beside.items():
        if other in ENCODERS and same_size(encoder, ENCODERS[other]):
            _check_fields(row, f"beside {other} it", values, Decoder)
            return replace(decoder, **values)
    return decoder
