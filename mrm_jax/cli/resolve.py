"""The config of a command line, with what the folders that it names say."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mrm_jax import command
from mrm_jax.checks import resolved
from mrm_jax.config import Config
from mrm_jax.errors import UsageError
from mrm_jax.paths import shown


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
    return None if config is None else _with_target(config, words, say)


def unchecked(words: list[str], *, say: Callable[[str], None] = lambda line: None) -> Config:
    """What `load_config` gives, for verbs that tell themselves what forbids training with it.
    Raises UsageError for a config that cannot be read."""
    config = resolved(command.load_values(words))
    try:
        return _with_target(config, words, say)
    except UsageError:  # a target in a bucket that nothing installed opens: told where it is opened
        return config


def to_stderr(line: str) -> None:
    """Says a line about a config, as text that any terminal can show."""
    print(shown(line), file=sys.stderr)


def _with_target(config: Config, words: list[str], say: Callable[[str], None]) -> Config:
    from mrm_jax.data.own import LAYOUT, own_target

    if command.given(words, *(f"data.target.{name}" for name in LAYOUT)):
        return config
    evaluation = (f"data.evaluation.{name}" for name in ("path", *LAYOUT))
    config, line = own_target(config, as_written=not command.given(words, *evaluation))
    if line:
        say(line)
    return config
