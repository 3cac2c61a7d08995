"""The command line: `python -m mrm_jax.main [verb] --config FILE[:recipe] [--config.a.b=c] ...`.

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
from typing import NoReturn

from absl import flags

from mrm_jax import children
from mrm_jax.command import load_config, split_config_flags
from mrm_jax.errors import RunError, UsageError
from mrm_jax.options import nearest
from mrm_jax.paths import of_bucket, shown, what_is_wrong
from mrm_jax.stop import heard

VERBS = {
    "train": "train a network, or go on where the workdir stopped",
    "evaluate": "score a run or a checkpoint on labelled pictures",
    "predict": "segment pictures of your own",
    "convert": "bring weights from PyTorch's files here, or back",
    "report": "write report.html of a workdir again",
    "ablate": "compare arms over seeds: a table and a plot from one command",
    "prepare": "turn a downloaded data set into one that training reads fast",
    "check": "find what is wrong with a data set, and how to put it right",
    "doctor": "say whether this machine can run, before hours are spent on finding out",
    "options": "list the options of a config, or those that a word is found in",
    "plan": "say what a step needs on devices that are not rented yet",
    "bench": "time a step on random pictures, and what XLA says it costs",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        flag = re.search(r"--\w+", message)
        line = f"{self.prog.partition(' ')[2]}: {message.rstrip('.')}."
        raise UsageError(line, field=flag[0] if flag else "")

    def check_flags(self, words: list[str]) -> None:
        """Raises UsageError for an unknown flag, before argparse misses what it stood for."""
        known = [name for action in self._actions for name in action.option_strings]
        for word in words:
            name = word.partition("=")[0]
            if name.startswith("--") and name not in known:
                self.error(f"{name} is not a flag.{nearest(name, known)}".rstrip("."))


def run(words: list[str]) -> int:
    """Runs a command line; raises UsageError or RunError with one line for the user."""
    for stream in (sys.stdout, sys.stderr):  # file names that are no text, or none of the locale's
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if words and words[0] in ("-h", "--help", "help"):
        print(
            (__doc__ or "").splitlines()[0], *(f"  {v:10}{d}" for v, d in VERBS.items()), sep="\n"
        )
        return 0
    verb, words = (words[0], words[1:]) if words and words[0][:1] != "-" else ("train", words)
    if verb not in VERBS:
        raise UsageError(
            f"'{verb}' is no verb; there are {', '.join(VERBS)}.{nearest(verb, VERBS)}",
            field="mrm_jax",
            value=verb,
        )
    config_words, others = split_config_flags(words)
    module = importlib.import_module(f"mrm_jax.cli.{verb}")
    parser = _Parser(prog=f"mrm_jax {verb}", description=VERBS[verb], allow_abbrev=False)
    module.add_arguments(parser)
    parser.check_flags(others)
    arguments = parser.parse_args(others)
    arguments.config_words = config_words  # for a verb that edits them: ablate
    unread = getattr(module, "UNREAD", {})
    return module.run(arguments, load_config(config_words, unread))


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
    except UsageError as error:
        code = _complain(error, 2)
    except RunError as error:
        code = _complain(error, 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if of_bucket(error):
            code = _complain(f"A bucket could not be read or written: {what_is_wrong(error)}.", 1)
        else:
            raise
    return code


def _complain(error: Exception | str, code: int) -> int:
    print(f"mrm_jax: {shown(' '.join(str(error).split()))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    entry()
