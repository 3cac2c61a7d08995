"""The config of a run, as config.json and its checkpoints keep it, for a later version.

A run outlives the version that wrote it: options that came later have the value that it computed
with, those that were renamed are found, and ranges are not asked about: they hold for runs that
start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import mrm_jax
from mrm_jax.config import Config
from mrm_jax.errors import UsageError
from mrm_jax.options import declared, edited

WRITER = "mrm_jax"
"""Key, beside the options, of the version that wrote config.json."""

RENAMED: dict[str, str] = {"model.encoder.mlp_ratio": "model.encoder.mlp_ratios"}
"""Dotted path that an option had -> the one that it has."""


def _in_each_stage(value: Any, values: Mapping[str, Any]) -> Any:
    dims = values.get("model.encoder.dims", Config().model.encoder.dims)
    return [value] * len(dims) if isinstance(dims, list | tuple) else value


CONVERTED: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "model.encoder.mlp_ratio": _in_each_stage
}
"""Dotted path of a renamed option -> (its value, all values by path) -> the value of today."""

REMOVED: dict[str, Any] = {}
"""Dotted path that an option had -> its one value that this version still computes with."""


class StoredConfig(NamedTuple):
    """A config as this version understands it, and one line about what it does not understand;
    empty: nothing. With such a line a run may be looked at but not gone on with."""

    config: Config
    remark: str


def open_config(values: Any, where: str, writer: str | None = None) -> StoredConfig:
    """The config in `values`, parsed JSON out of `where`, which `writer` wrote if it does not say.

    Raises UsageError in one line where `values` has not the shape of a config.
    """
    if not isinstance(values, Mapping):
        raise UsageError.at(
            where, f" holds no config: {str(values)[:60]!r} is no group of options."
        )
    writer = values.get(WRITER, writer)
    by = f"mrm_jax {writer}" if writer else "an earlier mrm_jax"
    known, given, strange = declared(Config), {}, {}
    found = dict(_leaves({k: v for k, v in values.items() if k != WRITER}, ""))
    for path, value in found.items():
        name = RENAMED.get(path, path)
        if name in known:
            given[name] = CONVERTED[path](value, found) if path in CONVERTED else value
        elif path not in REMOVED or value != REMOVED[path]:
            strange[path] = value
    if not given and not strange:
        raise UsageError(f"{where} holds no config: none of its keys is an option.", field=where)
    for path, option in known.items():
        before = option.default if option.since is None else option.since.value
        value = given.get(path, before)
        try:
            given[path] = option.typed(value)
        except UsageError as error:
            line = f"{where}, written by {by}: {error}"
            raise UsageError(line, field=error.field, value=error.value) from error
    for path in strange:
        inside = next((name for name in known if path.startswith(f"{name}.")), None)
        group = any(name.startswith(f"{path}.") for name in known)
        if inside or group:
            what = (
                f"a group, and config.{inside} is one option" if inside else "no group of options"
            )
            raise UsageError(
                f"{where}, written by {by}: config.{path} is {what}.", field=f"config.{path}"
            )
    return StoredConfig(edited(Config(), given), _remark(where, by, strange))


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _remark(where: str, by: str, strange: Mapping[str, Any]) -> str:
    if not strange:
        return ""
    path, value = next(iter(strange.items()))
    more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
    what = f"computes only as with {REMOVED[path]!r}" if path in REMOVED else "does not know"
    return (
        f"{where} was written by {by} with config.{path}={value!r}{more}, which this version, "
        f"{mrm_jax.__version__}, {what}. To train there, use the version that wrote it."
    )
