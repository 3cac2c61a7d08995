"""The config of a command line, with what the folders that it names say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mrm_jax import command
from mrm_jax.config import Config


def load_config(
    words: list[str],
    unread: Mapping[str, Any] = MappingProxyType({}),
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Config | None:
    """`command.load_config`, with a target of one's own taken as one (`data.own`); `say` is given
    the line that says so. Raises UsageError.
    """
    config = command.load_config(words, unread)
    if config is None:
        return None
    from mrm_jax.data.own import LAYOUT, own_target

    if command.given(words, *(f"data.target.{name}" for name in LAYOUT)):
        return config
    evaluation = (f"data.evaluation.{name}" for name in ("path", *LAYOUT))
    config, line = own_target(config, as_written=not command.given(words, *evaluation))
    if line:
        say(line)
    return config
