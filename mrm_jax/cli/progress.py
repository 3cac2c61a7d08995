"""How far long work is: a bar on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mrm_jax import terminal

EVERY = 15.0  # seconds between lines in a log


def say(text: str) -> None:
    """A line on stderr, at once: stdout is for results."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(what: str, total: int, *, lines: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on stderr, gone at its end; gives `advance(done)`.

    Where there is no terminal it prints nothing, or with `lines` a line now and then.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    console = terminal.console(stderr=True)
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn(what), MofNCompleteColumn(), BarColumn(), rate, Remaining())
    began = told = time.monotonic()

    def advance(done: int) -> None:
        nonlocal told
        now = time.monotonic()
        pace = done / max(now - began, 1e-9)
        shown.update(task, completed=done, rate=f"{pace:.3g} a second")
        if lines and not console.is_terminal and now - told >= EVERY:
            told = now
            left = (total - done) / max(pace, 1e-9)
            print(
                f"{done} of {total} {what}, {pace:.3g} a second, about {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    shown = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with shown:
        task = shown.add_task(what, total=total, rate="")
        yield advance
