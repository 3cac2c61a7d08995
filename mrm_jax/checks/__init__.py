"""From a ConfigDict or config.json to a checked `Config`: what cannot work together is refused.

Like `config` it loads no jax, so that a mistake is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ml_collections import ConfigDict

from mrm_jax.checks.alternatives import check_alternatives
from mrm_jax.checks.data import check_data, check_rare_class
from mrm_jax.checks.method import check_method, check_selection
from mrm_jax.checks.model import check_crops, check_model
from mrm_jax.checks.run import check_profile
from mrm_jax.checks.stored import WRITER
from mrm_jax.config import Config
from mrm_jax.errors import UsageError
from mrm_jax.options import check_ranges, from_mapping


def from_config_dict(values: Mapping[str, Any] | ConfigDict) -> Config:
    """The checked `Config` of a ConfigDict or of a plain mapping (config.json).

    Raises UsageError naming the field, its value and the way out.
    """
    config = resolved(values)
    check_config(config)
    return config


def resolved(values: Mapping[str, Any] | ConfigDict) -> Config:
    """The `Config` of a ConfigDict or of a plain mapping, not yet checked. Raises UsageError for
    names and types that are wrong."""
    plain = values.to_dict() if isinstance(values, ConfigDict) else dict(values)
    plain.pop(WRITER, None)
    return _own_pictures(from_mapping(Config, plain, "config"))


def _own_pictures(config: Config) -> Config:
    """A path given for drawn scenes means the pictures in that folder: `images` and `labels` of a
    source or an evaluation set, anything below the path for a target.
    """
    data = config.data
    for name in ("source", "target", "evaluation"):
        domain = getattr(data, name)
        if domain.kind == "drawn" and domain.path:
            labelled = {} if name == "target" else {"images": "images", "labels": "labels"}
            data = replace(data, **{name: replace(domain, kind="folder", **labelled)})
    return replace(config, data=data)


_TESTS = (
    check_ranges,
    check_model,
    check_crops,
    check_data,
    check_rare_class,
    check_method,
    check_selection,
    check_alternatives,
    check_profile,
)


def check_config(config: Config) -> None:
    """Raises UsageError for the first combination that cannot work, with the way out."""
    for test in _TESTS:
        test(config)


def problems(config: Config) -> list[UsageError]:
    """All that `check_config` would raise, one after the other: the first of each of its tests."""
    found = []
    for test in _TESTS:
        try:
            test(config)
        except UsageError as error:
            found.append(error)
    return found
