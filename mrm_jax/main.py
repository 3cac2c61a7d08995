"""The command line: `python -m mrm_jax.main [verb] --config FILE[:recipe] [--config.a.b=c] ...`.

Finds the verb's module, resolves the config and turns mistakes into one line; nothing else.
Exit codes: 0, 1 (the run failed), 2 (the command is wrong).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_dict, config_flags

from mrm_jax.checks import from_config_dict
from mrm_jax.config import Config, UsageError
from mrm_jax.options import nearest

VERBS = {
    "train": "train a network, or go on where the workdir stopped",
    "evaluate": "score a run or a checkpoint on labelled pictures",
    "predict": "segment pictures of your own",
    "convert": "bring weights from PyTorch's files here, or back",
    "report": "write report.html of a workdir again",
    "bench": "time a step on random pictures, and what XLA says it costs",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog.partition(' ')[2]}: {message}.")

    def check_flags(self, words: list[str]) -> None:
        """Raises UsageError for an unknown flag, before argparse misses what it stood for."""
        known = [name for action in self._actions for name in action.option_strings]
        for word in words:
            name = word.partition("=")[0]
            if name.startswith("--") and name not in known:
                self.error(f"{name} is not a flag.{nearest(name, known)}".rstrip("."))


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


def load_config(words: list[str]) -> Config | None:
    """The checked config that `--config` flags ask for, None without any.

    Raises UsageError naming the file, key or value and the nearest right one.
    """
    if not words:
        return None
    file = next((w.partition("=")[2] for w in words if w.startswith("--config=")), "")
    path = Path(file.partition(":")[0])
    if not file:
        raise UsageError(f"{words[0]} changes a config, but none is given: add --config FILE.")
    if not path.is_file() or path.suffix != ".py":
        there = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise UsageError(f"--config: there is no file '{path}'.{nearest(str(path), there)}")
    spec = importlib.util.spec_from_file_location("mrm_jax_config", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--config: '{path}' is no Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(file.partition(":")[2] or None)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"--config: {path} fails: {type(error).__name__}: {error}") from error
    return from_config_dict(_override(config, [w for w in words if not w.startswith("--config=")]))


def _override(config: config_dict.ConfigDict, words: list[str]) -> dict[str, Any]:
    """`config` as a plain mapping after `--config.a.b=c` flags, read by ml_collections."""
    for word in words:
        name, equals, _ = word.partition("=")
        boolean = _check_key(name.partition(".")[2], config)
        if not equals and not boolean:
            raise UsageError(f"{name} needs a value: write {name}=VALUE.")
    values = flags.FlagValues()
    arguments = ["mrm_jax", *words]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
    except (flags.Error, ValueError, TypeError) as error:
        raise UsageError(f"{str(error).splitlines()[0]}") from error
    return config.to_dict()


def _check_key(key: str, config: config_dict.ConfigDict) -> bool:
    """Whether the field `key` is a boolean; raises UsageError where there is no such field."""
    here, below = config, config
    for part in key.split("."):
        if not isinstance(below, config_dict.ConfigDict) or part not in below:
            hint = nearest(key, _leaves(config)) or nearest(part, list(here))
            raise UsageError(f"--config.{key} is not an option.{hint}")
        here, below = below, below.get(part)
    if isinstance(below, config_dict.ConfigDict):
        example = f"{key}.{next(iter(below))}"
        raise UsageError(f"--config.{key} is a group of options; set one of them, say {example}.")
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


def run(words: list[str]) -> int:
    """Runs a command line; raises UsageError or RunError with one line for the user."""
    if words and words[0] in ("-h", "--help", "help"):
        print(
            (__doc__ or "").splitlines()[0], *(f"  {v:10}{d}" for v, d in VERBS.items()), sep="\n"
        )
        return 0
    verb, words = (words[0], words[1:]) if words and words[0][:1] != "-" else ("train", words)
    if verb not in VERBS:
        raise UsageError(
            f"'{verb}' is no verb; there are {', '.join(VERBS)}.{nearest(verb, VERBS)}"
        )
    config_words, others = split_config_flags(words)
    module = importlib.import_module(f"mrm_jax.cli.{verb}")
    parser = _Parser(prog=f"mrm_jax {verb}", description=VERBS[verb], allow_abbrev=False)
    module.add_arguments(parser)
    parser.check_flags(others)
    arguments = parser.parse_args(others)
    return module.run(arguments, load_config(config_words))


def entry() -> None:
    """Console script `mrm-jax`: `run`, with mistakes as one line on stderr and an exit code."""
    flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags
    try:
        code = run(sys.argv[1:])
    except UsageError as error:
        code = _complain(error, 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if type(error).__name__ != "RunError":
            raise
        code = _complain(error, 1)
    sys.exit(code)


def _complain(error: Exception, code: int) -> int:
    print(f"mrm_jax: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    entry()
