"""The `--config` flags of a command line: which file, which text after its colon, which fields.

    --config FILE[:recipe] [--config.a.b=c ...]

FILE is a path, or the bare name of a config that travels with the package (`packaged`). Mistakes
become UsageErrors with the nearest right name, because ml_collections raises on an unknown key
before anything of ours runs.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from mrm_jax.checks import from_config_dict
from mrm_jax.config import Config
from mrm_jax.errors import UsageError
from mrm_jax.options import declared, did_you_mean, nearest, nearest_paths

CONFIGS = Path(__file__).parent / "configs"
"""The configs that travel with the package: in a checkout a link to its configs/."""


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
    not set. A set that the file has under one path as target and as evaluation is one set: where
    only the target's path is given, the other one follows. Raises UsageError naming the file, key
    or value and the nearest right one.
    """
    if not words:
        return None
    values = load_values(words)
    for field, stand_in in unread.items():
        *groups, name = field.split(".")
        group = functools.reduce(dict.__getitem__, groups, values)
        if group[name] is None:
            group[name] = stand_in
    return from_config_dict(values)


def load_values(words: list[str]) -> dict[str, Any]:
    """The values that `--config` flags ask for, by group and name, not yet checked. Raises
    UsageError as `load_config`."""
    module, text = load_module(words)
    try:
        config = module.get_config(text or None)
    except UsageError:
        raise
    except Exception as error:
        raise _failed(module, error) from error
    place = config.data.target.get("path")
    together = place is not None and place == config.data.evaluation.get("path")
    values = _override(config, [w for w in words if not w.startswith("--config=")])
    if together and not given(words, "data.evaluation.path"):
        values["data"]["evaluation"]["path"] = values["data"]["target"]["path"]
    return values


def given(words: Iterable[str], *fields: str) -> bool:
    """Whether a `--config.` flag sets one of these fields."""
    names = {word.partition("=")[0].partition(".")[2] for word in words}
    return not names.isdisjoint(fields)


def packaged() -> dict[str, Path]:
    """The configs that travel with the package, by their bare names."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.py"))}


def is_config(word: str) -> bool:
    """Whether a word that is no flag looks like what belongs after `--config`."""
    name = word.partition(":")[0]
    return name.endswith(".py") or name in packaged()


def remark(words: list[str]) -> str:
    """A line on which file a bare name stands for, where it is one here and one of the package's;
    else empty."""
    name = _given(words)[0]
    here, own = _here(name), packaged().get(name.removesuffix(".py"))
    if own is None or not here.is_file() or here.samefile(own):
        return ""
    return f"--config {name}: {here} of this folder is taken, not {own} of the package."


def _given(words: list[str]) -> tuple[str, str]:
    """FILE and recipe of `--config=FILE:recipe`."""
    file = next((w.partition("=")[2] for w in words if w.startswith("--config=")), "")
    name, _, text = file.partition(":")
    return name, text


def _here(name: str) -> Path:
    """The file that a name means in this folder; a bare one may do without its ending."""
    bare = Path(name).name == name and not name.endswith(".py")
    return Path(f"{name}.py" if bare else name)


def _found(name: str) -> Path:
    """The file called so here, else the package's of that bare name. Raises UsageError."""
    here = _here(name)
    if here.suffix == ".py" and here.is_file():
        return here
    if len(here.parts) == 1 and here.stem in packaged():
        return packaged()[here.stem]
    if here.stem in packaged():
        hint = f" The package has one: --config {here.stem}."
    else:
        there = sorted(map(str, here.parent.glob("*.py"))) if here.parent.is_dir() else []
        hint = nearest(name, [*there, *packaged()])
    raise UsageError.at("--config", f": there is no file '{name}'.{hint}")


def load_module(words: list[str]) -> tuple[ModuleType, str]:
    """The Python file that `--config=FILE:TEXT` names, loaded, and the text.

    Raises UsageError where there is no such file or it fails.
    """
    name, text = _given(words)
    if not name:
        raise UsageError(
            f"{words[0]} changes a config, but none is given:",
            "add --config FILE.",
            field="--config",
        )
    path = _found(name)
    spec = importlib.util.spec_from_file_location("mrm_jax_config", path)
    if spec is None or spec.loader is None:
        raise UsageError.at("--config", f": '{path}' is not a Python file.")
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
    """`config` as a plain mapping after `--config.a.b=c` flags, read by ml_collections.

    `=` and `=None` leave a field empty that may be.
    """
    empty: set[str] = set()
    for word in words:
        name, equals, value = word.partition("=")
        path = name.partition(".")[2]
        boolean = _check_key(path, config)
        if not equals and not boolean:
            raise UsageError.at(name, " needs a value:", f"write {name}=VALUE.")
        known = declared(Config).get(path)
        if known is not None and known.optional and value in ("", "None"):
            empty.add(path)
            continue
        empty.discard(path)
        values, arguments = flags.FlagValues(), ["mrm_jax", word]
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        try:
            values(arguments)
        except (flags.Error, ValueError, TypeError, SyntaxError) as error:
            raise UsageError.of(
                name, value, "", f"it must be {known.wanted}." if known else str(error)
            ) from error
    found = config.to_dict()
    for path in empty:
        *groups, name = path.split(".")
        functools.reduce(dict.__getitem__, groups, found)[name] = None
    return found


def _check_key(key: str, config: config_dict.ConfigDict) -> bool:
    """Whether the field `key` is a boolean; raises UsageError where there is no such field."""
    here, below = config, config
    for part in key.split("."):
        if not isinstance(below, config_dict.ConfigDict) or part not in below:
            hint = did_you_mean(nearest_paths(key, _leaves(config))) or nearest(part, list(here))
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
