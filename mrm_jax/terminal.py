"""Whether people look at what is printed: bars and colours are for them alone."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

KERNEL = "JPY_PARENT_PID"
"""Environment variable of what a notebook's kernel starts. A cell's `!command` has a terminal that
shows every redrawn bar as one more line. Source: jupyter_client/launcher.py."""


def is_terminal(stream: Any) -> bool:
    """Whether a stream ends at a terminal that can redraw, whatever FORCE_COLOR says."""
    there = stream is not None and not stream.closed and stream.isatty()
    return there and os.environ.get("TERM") != "dumb" and KERNEL not in os.environ


def console(*, stderr: bool = False, **more: Any) -> Console:
    """rich's console on stdout or stderr: plain text unless stdout is a terminal, and with `stderr`
    that one too. `more`: its other arguments."""
    from rich.console import Console  # a tenth of a second that most commands need not pay

    rich = is_terminal(sys.stdout) and (not stderr or is_terminal(sys.stderr))
    return Console(stderr=stderr, highlight=False, force_terminal=rich, force_jupyter=False, **more)
