"""Being asked to stop: SIGTERM from a scheduler, Ctrl-C from a person, or another host that was.

The first signal ends a process in order, whatever it does. Where memory holds what the disk does
not (SHUT) it is only noted: who works there saves first. Elsewhere it is raised as `Stopped` in the
main thread. Python does that only between two of its own instructions, and XLA compiles for
minutes: there a thread that the signal wakes says the line and ends the process. The second signal
acts at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, ClassVar, NoReturn

GRACE_SECONDS = 2.0
"""How long the thread waits for the main thread to hear a signal, and after that to be gone."""
POLL_SECONDS = 0.1
SIGNALS = (signal.SIGTERM, signal.SIGINT)
SHUT, LOOKED, RAISED, ENDED = range(4)
"""What a signal may do now: be noted; raise at the next `look`; raise at once; also end the process
from the thread."""


class Stopped(KeyboardInterrupt):
    """The process was asked to stop, and may."""


class Stop:
    """The wish that this process stop, which is there once (`heard`).

    received: the signal. asked: another host was asked. doing, saved: of a run, for its last words:
    what it is at, and the last step on disk, if any. code: the exit code, where it does not depend
    on that.
    """

    running: ClassVar[Stop | None] = None

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.asked = False
        self.doing = ""
        self.saved: int | None = None
        self.code: int | None = None
        self._mode = ENDED
        self._before: dict[signal.Signals, Any] = {}
        self._last: list[Callable[[], None]] = []
        self._taken = threading.Lock()  # by who ends the process, the main thread or ours

    @contextmanager
    def within(self, mode: int) -> Iterator[None]:
        """What a signal may do for as long as the context is open. Raises Stopped at once where it
        may, for one that came before."""
        before, self._mode = self._mode, mode
        try:
            if mode > LOOKED:
                self.look()
            yield
        finally:
            self._mode = before

    def look(self) -> None:
        """Raises Stopped where somebody was asked to stop and it may be raised."""
        if (self.received or self.asked) and self._mode > SHUT:
            raise Stopped

    @contextmanager
    def before_end(self, act: Callable[[], None]) -> Iterator[None]:
        """What the thread has to do before it ends the process, for as long as the context is open;
        the main thread leaves the context instead."""
        self._last.append(act)
        try:
            yield
        finally:
            self._last.remove(act)

    def last_words(self) -> tuple[str, int]:
        """What to say of a process that was stopped, and its exit code: 0 for a run of which some
        steps are saved."""
        who = self.received.name if self.received else "another host" if self.asked else "Ctrl-C"
        if not self.doing:
            return f"stopped by {who}.", self._exit_code()
        stands = "nothing is saved yet; the same command starts again."
        if self.saved:
            stands = f"step {self.saved} is saved; the same command goes on from there."
        return f"stopped by {who} while {self.doing}; {stands}", self._exit_code()

    def _exit_code(self) -> int:
        return int(not self.saved) if self.code is None else self.code

    def install(self) -> None:
        """Hears from now on; in other threads than the main one Python hears nothing."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def restore(self) -> None:
        """Signals act as before."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _receive(self, number: int, _: FrameType | None) -> None:
        self._taken.acquire()  # for good: where the thread has it, this one waits for the end
        self.received = signal.Signals(number)
        self.restore()  # the next one acts at once, as without us
        if self._mode >= RAISED:
            raise Stopped

    @contextmanager
    def woken(self) -> Iterator[None]:
        """With the thread that ends the process where the main thread does not hear; for processes
        that are this command's own. What hangs after a stop is cut short."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        # Python writes there as the signal comes, whatever the main thread is at.
        before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._listen, args=(read,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(write)
            thread.join()
            os.close(read)

    def _listen(self, pipe: int) -> None:
        count = 0
        while byte := os.read(pipe, 1):
            if byte[0] not in SIGNALS:
                continue
            count += 1
            if count == 1:
                threading.Thread(target=self._end, args=(byte[0],), daemon=True).start()
            else:
                self._leave("stopped for the second time; nothing more was saved.", 1)

    def _end(self, number: int) -> None:
        """Ends the process where that may be and the main thread hears nothing for
        `GRACE_SECONDS`."""
        since = time.monotonic()
        while time.monotonic() - since < GRACE_SECONDS:
            time.sleep(POLL_SECONDS)
            if self._taken.locked():
                return
            if self._mode < ENDED:
                since = time.monotonic()
        if not self._taken.acquire(blocking=False):
            return
        self.received = signal.Signals(number)
        for act in reversed(self._last):
            with suppress(Exception):  # nobody is left to tell but by the line
                act()
        self._leave(*self.last_words())

    def _leave(self, line: str, code: int) -> NoReturn:
        if "multiprocessing" in sys.modules:
            import multiprocessing

            for child in multiprocessing.active_children():
                child.kill()
        # Not through sys.stdout, which the main thread may hold.
        to = 1 if self.doing else 2
        shown = "\x1b[?25h\n" if os.isatty(to) else ""  # a progress bar hides the cursor
        with suppress(OSError):
            os.write(to, f"{shown}{line if self.doing else f'mrm_jax: {line}'}\n".encode())
        os._exit(code)

    def cut_short(self, code: int) -> None:
        """Ends the process with `code` soon, where it was stopped and something, such as a disk
        that hangs, holds it up on its way out."""
        if self.received:
            timer = threading.Timer(GRACE_SECONDS, os._exit, (code,))
            timer.daemon = True
            timer.start()


@contextmanager
def heard() -> Iterator[Stop]:
    """The process's wish to stop: the one that is listened to, or a new one for as long as the
    context is open."""
    if Stop.running is not None:
        yield Stop.running
        return
    stop = Stop()
    stop.install()
    Stop.running = stop
    try:
        yield stop
    finally:
        Stop.running = None
        stop.restore()


def look() -> None:
    """`Stop.look` of the process, between two parts of what may be made up for later."""
    if Stop.running is not None:
        Stop.running.look()


@contextmanager
def before_end(act: Callable[[], None]) -> Iterator[None]:
    """`Stop.before_end` of the process."""
    if Stop.running is None:
        yield
        return
    with Stop.running.before_end(act):
        yield


def _forget() -> None:
    """A process forked from this one is asked for itself."""
    if Stop.running is not None:
        Stop.running.restore()
        Stop.running = None
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
