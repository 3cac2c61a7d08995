"""Who gets colours and bars: a terminal on stdout, and nobody else."""

import io
import os
import subprocess
import sys

import pytest

from mrm_jax import terminal


class _Tty(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("out", "error", "variables", "wanted"),
    [
        (_Tty, _Tty, {}, True),
        (io.StringIO, _Tty, {"FORCE_COLOR": "1"}, False),
        (_Tty, io.StringIO, {"FORCE_COLOR": "1"}, False),
        (_Tty, _Tty, {"JPY_PARENT_PID": "1"}, False),  # a notebook's !command
        (_Tty, _Tty, {"TERM": "dumb"}, False),
    ],
)
def test_a_bar_on_stderr_needs_terminals_whatever_force_color_says(
    out, error, variables, wanted, monkeypatch
):
    for name in ("FORCE_COLOR", "JPY_PARENT_PID", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", out())
    monkeypatch.setattr(sys, "stderr", error())
    assert terminal.console(stderr=True).is_terminal is wanted


def test_colours_are_not_forced_into_a_pipe():
    code = (
        "from mrm_jax.train.console import Screen\nwith Screen(3) as s: s.warn('x'); s.advance(2)"
    )
    forced = {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TERM": "xterm-color"}
    words = [sys.executable, "-c", code]
    made = subprocess.run(words, capture_output=True, check=True, env=os.environ | forced)
    assert made.stdout == b"WARNING x\n"
