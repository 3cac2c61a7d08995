"""The command line: `mrm-jax [verb] --config FILE[:recipe] [--config.a.b=c] ...`, or
`python -m mrm_jax.main` for `mrm-jax`.

Finds the verb's module, resolves the config and turns mistakes into one line; nothing else.
Exit codes: 0, 1 (the run failed), 2 (the command is wrong).
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import sys
import textwrap
from typing import Any, NoReturn

from absl import flags

import mrm_jax
from mrm_jax import backend, children
from mrm_jax.cli.resolve import load_config, to_stderr
from mrm_jax.command import is_config, packaged, remark, split_config_flags
from mrm_jax.config import Config
from mrm_jax.errors import RunError, UsageError
from mrm_jax.options import declared, did_you_mean, nearest, nearest_paths
from mrm_jax.paths import of_bucket, shown, what_is_wrong
from mrm_jax.stop import heard

VERBS = {
    "train": "train a network, or go on where the workdir stopped",
    "evaluate": "score a run or a checkpoint on labelled pictures",
    "predict": "segment pictures of your own",
    "submit": "write what a benchmark's server takes, or say why it would refuse a zip",
    "convert": "convert weights from PyTorch files, and back",
    "export": "write a trained network as files that run elsewhere, with a model card",
    "report": "write report.html of a workdir again",
    "ablate": "compare arms over seeds: a table and a plot from one command",
    "prepare": "turn a downloaded data set into one that training reads fast",
    "check": "find what is wrong with a data set, and how to fix it",
    "doctor": "check that this machine can run a config",
    "options": "list the options of a config, or those that contain a word",
    "config": "print the values of a config, or how it differs from another",
    "plan": "estimate memory and time on devices that are not here",
    "bench": "time a step on random pictures",
}


class _Parser(argparse.ArgumentParser):
    def __init__(self, **more: Any) -> None:
        super().__init__(**more, allow_abbrev=False)
        self.color = False  # from Python 3.14 on FORCE_COLOR would colour its help in files too

    def error(self, message: str) -> NoReturn:
        flag = re.search(r"--\w+", message)
        end = "" if message.endswith(("?", ".")) else "."
        line = f"{self.prog.partition(' ')[2]}: {message}{end}"
        raise UsageError(line, field=flag[0] if flag else "")

    def check_flags(self, words: list[str]) -> None:
        """Raises UsageError for an unknown flag, before argparse misses what it stood for."""
        known = [name for action in self._actions for name in action.option_strings]
        for word in words:
            name = word.partition("=")[0]
            if name.startswith("--") and name not in known:
                self.error(f"{name} is not a flag.{_meant(name, known)}")

    def check_first(self, words: list[str]) -> None:
        """Raises UsageError for a config in the first place of a verb that takes flags alone."""
        flags_alone = all(action.option_strings for action in self._actions)
        if flags_alone and words and is_config(words[0]):
            self.check_rest(words)

    def check_rest(self, words: list[str]) -> None:
        """Raises UsageError for words that are left over."""
        for word in words:
            if is_config(word):
                self.error(f"'{word}' is not understood; a config is given by --config {word}")
        if words:
            self.error(f"unexpected words: {' '.join(words)}")


def _meant(name: str, known: list[str]) -> str:
    """A hint at the flag that an unknown one may stand for: an option of the config by its name,
    another flag of the verb, or an option whose name is near."""
    name, paths = name.lstrip("-"), list(declared(Config))
    options = [f"--config.{path}" for path in nearest_paths(name, paths)]
    exact = [flag for flag in options if f".{flag}".endswith(f".{name.replace('-', '_')}")]
    return did_you_mean(exact) or nearest(f"--{name}", known[1:]) or did_you_mean(options)


def help_screen() -> str:
    """What there is, on one screen."""
    return "\n".join(
        [
            "usage: mrm-jax [VERB] --config FILE[:RECIPE] [--config.a.b=c ...] [flags]",
            "",
            *(f"  {verb:9} {meaning}" for verb, meaning in VERBS.items()),
            "",
            "Without a verb it trains. Configs are files of your own, or these by name:",
            *textwrap.wrap(", ".join(packaged()), 76, initial_indent="  ", subsequent_indent="  "),
            "To begin: mrm-jax --config quickstart --workdir runs/quickstart",
            "More: mrm-jax VERB --help, mrm-jax options [WORD], mrm-jax --version",
        ]
    )


def run(words: list[str]) -> int:
    """Runs a command line; raises UsageError or RunError with one line for the user."""
    for stream in (sys.stdout, sys.stderr):  # file names that are no text, or none of the locale's
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not words:
        print(help_screen(), file=sys.stderr)
        return 2
    if words[0] in ("-h", "--help", "help"):
        print(help_screen())
        return 0
    if words[0] == "--version":
        print(f"mrm_jax {mrm_jax.__version__}")
        return 0
    verb, words = (words[0], words[1:]) if words[0][:1] != "-" else ("train", words)
    if verb not in VERBS:
        if is_config(verb):
            raise UsageError(
                f"'{verb}' is not a verb; a config is given by --config {verb}.", field="--config"
            )
        raise UsageError(
            f"'{verb}' is not a verb; there are {', '.join(VERBS)}.{nearest(verb, VERBS)}",
            field="mrm_jax",
            value=verb,
        )
    config_words, others = split_config_flags(words)
    module = importlib.import_module(f"mrm_jax.cli.{verb}")
    parser = _Parser(prog=f"mrm-jax {verb}", description=VERBS[verb])
    parser.add_argument(
        "--config",
        metavar="FILE[:RECIPE]",
        help=f"a file of your own, or one of {', '.join(packaged())}; --config.a.b=c sets one of "
        "its options, which `mrm-jax options` lists",
    )
    module.add_arguments(parser)
    parser.check_flags(others)
    parser.check_first(others)
    arguments, rest = parser.parse_known_args(others)
    parser.check_rest(rest)
    arguments.config_words = config_words  # for a verb that edits them: ablate, config
    if getattr(module, "RESOLVES", False):
        return module.run(arguments, None)
    if line := remark(config_words):
        print(line, file=sys.stderr)
    unread = getattr(module, "UNREAD", {})
    return module.run(arguments, load_config(config_words, unread, say=to_stderr))


def entry() -> None:
    """Console script `mrm-jax`: `run`, with mistakes as one line on stderr and an exit code."""
    children.follow()
    flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags
    with heard() as stop, stop.woken():
        code = _answered()
        stop.cut_short(code)
        sys.exit(code)


def _answered() -> int:
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        with heard() as stop:
            code = _complain(*stop.last_words())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        line = backend.device_refusal(error) or error  # whatever it was taken for on its way here
        if isinstance(line, UsageError | RunError):
            code = _complain(line, 2 if isinstance(line, UsageError) else 1)
        elif of_bucket(error):
            code = _complain(f"A bucket could not be read or written: {what_is_wrong(error)}.", 1)
        else:
            raise
    return code


def _complain(error: Exception | str, code: int) -> int:
    print(f"mrm_jax: {shown(' '.join(str(error).split()))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    entry()
