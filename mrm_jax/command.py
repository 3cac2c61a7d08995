"""The `--config` flags of a command line: which file, which text after its colon, which fields.

    --config configs/x.py[:recipe] [--config.a.b=c ...]

Mistakes become UsageErrors with the nearest right name, because ml_collections raises on an unknown
key before anything of ours runs.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from mrm_jax.checks import from_config_dict
from mrm_jax.config import Config
from mrm_jax.errors import UsageError
from mrm_jax.options import nearest


def split_config_flags(words: list[str]) -> tuple[list[str], list[str]]:
    """(`--config` flags, all other words); `--config FILE` and `--config=FILE` mean the same."""
    ours, others = [], []
    rest = iter(words)
    for word in rest:
        name, equals, _ = word.partition("=")
        if name == "--config" or name.startswith(("--config.", "--noconfig.")):
            value = None if equals or name != "--config" else next(rest, None)
            ours.append(word if value is None else f"{word}={value}")
        else:
            others.append(word)
    return ours, others


def load_config(
    words: list[str], unread: Mapping[str, Any] = MappingProxyType({})
) -> Config | None:
    """The checked config that `--config` flags ask for, None without any.

    unread: dotted fields that the caller has no use for, with what stands for them where they are
    not set. Raises UsageError naming the file, key or value and the nearest right one.
    """
    if not words:
        return None
    module, text = load_module(words)
    try:
        config = module.get_config(text or None)
    except UsageError:
        raise
    except Exception as error:
        raise _failed(module, error) from error
    values = _override(config, [w for w in words if not w.startswith("--config=")])
    for field, stand_in in unread.items():
        *groups, name = field.split(".")
        group = functools.reduce(dict.__getitem__, groups, values)
        if group[name] is None:
            group[name] = stand_in
    return from_config_dict(values)


def load_module(words: list[str]) -> tuple[ModuleType, str]:
    """The Python file that `--config=FILE:TEXT` names, loaded, and the text.

    Raises UsageError where there is no such file or it fails.
    """
    file = next((w.partition("=")[2] for w in words if w.startswith("--config=")), "")
    name, _, text = file.partition(":")
    path = Path(name)
    if not file:
        raise UsageError(
            f"{words[0]} changes a config, but none is given:",
            "add --config FILE.",
            field="--config",
        )
    if not path.is_file() or path.suffix != ".py":
        there = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise UsageError.at("--config", f": there is no file '{path}'.{nearest(str(path), there)}")
    spec = importlib.util.spec_from_file_location("mrm_jax_config", path)
    if spec is None or spec.loader is None:
        raise UsageError.at("--config", f": '{path}' is no Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UsageError:
        raise
    except Exception as error:
        raise _failed(module, error) from error
    return module, text


def _failed(module: ModuleType, error: Exception) -> UsageError:
    return UsageError.at("--config", f": {module.__file__} fails: {type(error).__name__}: {error}")


def _override(config: config_dict.ConfigDict, words: list[str]) -> dict[str, Any]:
    """`config` as a plain mapping after `--config.a.b=c` flags, read by ml_collections."""
    for word in words:
        name, equals, _ = word.partition("=")
        boolean = _check_key(name.partition(".")[2], config)
        if not equals and not boolean:
            raise UsageError.at(name, " needs a value:", f"write {name}=VALUE.")
    values = flags.FlagValues()
    arguments = ["mrm_jax", *words]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
    except (flags.Error, ValueError, TypeError) as error:
        line = str(error).splitlines()[0]
        flag = re.search(r"--[\w.]+", line)
        raise UsageError(line, field=flag[0] if flag else "") from error
    return config.to_dict()


def _check_key(key: str, config: config_dict.ConfigDict) -> bool:
    """Whether the field `key` is a boolean; raises UsageError where there is no such field."""
    here, below = config, config
    for part in key.split("."):
        if not isinstance(below, config_dict.ConfigDict) or part not in below:
            hint = nearest(key, _leaves(config)) or nearest(part, list(here))
            raise UsageError.at(f"--config.{key}", f" is not an option.{hint}")
        here, below = below, below.get(part)
    if isinstance(below, config_dict.ConfigDict):
        example = f"{key}.{next(iter(below))}"
        raise UsageError.at(
            f"--config.{key}", " is a group of options", f"set one of them, say {example}."
        )
    return isinstance(below, bool)


def _leaves(config: config_dict.ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for key in config:
        value = config.get(key)
        if isinstance(value, config_dict.ConfigDict):
            names += _leaves(value, f"{prefix}{key}.")
        else:
            names.append(prefix + key)
    return names
