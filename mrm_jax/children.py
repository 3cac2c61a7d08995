"""Child processes: none outlives this one, however it ends, and none hears the signals that are
meant for it.

A child watches a pipe whose other end its parent holds: it closes when the parent is gone. Linux's
parent-death signal would not do, since it comes when the *thread* that started the child ends, and
grain starts its loaders from threads that do.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection, resource_tracker, util
from pathlib import Path

LIFELINE = "MRM_JAX_LIFELINE"
"""The environment variable that names the file descriptor of the pipe to a command of ours that
another process of ours started."""
GRACE_SECONDS = 120.0
"""How long such a command may take to save and end once whoever started it is gone."""
_REMOVE = """trap '' INT TERM; read -r word; [ "$word" = keep ] || rm -rf -- "$1\""""
_STOPS = (signal.SIGINT, signal.SIGTERM)


def serve() -> None:
    """What a worker process of `multiprocessing` calls first: it ends with its parent, and leaves
    Ctrl-C and SIGTERM, which reach a whole group of processes, to it.
    """
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "only worker processes serve"
    _in_background(_end_with, parent.sentinel)


def _in_background(what: Callable[..., None], *given: object) -> None:
    threading.Thread(target=what, args=given, daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


@contextmanager
def starting() -> Iterator[None]:
    """Around the start of worker processes: they, and those that threads started within start,
    do not hear Ctrl-C or SIGTERM before they `serve`. None is waited for at the exit.
    """
    _quiet_tracker()
    _end_all_at_exit()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@functools.cache
def _end_all_at_exit() -> None:
    # multiprocessing ends its workers by SIGTERM and waits. Those that are in order are gone before
    # (grain's priority is 1, the larger first).
    util.Finalize(None, _end_all, exitpriority=0)


def _end_all() -> None:
    for child in multiprocessing.active_children():
        child.kill()


@functools.cache
def _quiet_tracker() -> None:
    """Starts the process with which Python takes back shared memory whose owner was killed: it
    prints a warning about each, in the middle of the line that says what happened."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    try:
        resource_tracker.ensure_running()
    finally:
        del os.environ["PYTHONWARNINGS"]
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


@contextmanager
def lifeline() -> Iterator[tuple[int, dict[str, str]]]:
    """For commands of ours that this process starts within: the file descriptor to pass on, and
    what their environment needs. They are asked to stop when this process is gone.
    """
    theirs, mine = os.pipe()  # `mine` is closed in every child
    try:
        yield theirs, {LIFELINE: str(theirs)}
    finally:
        os.close(theirs)
        os.close(mine)


def follow() -> None:
    """What a command of ours calls first: if another process of ours started it, it is asked to
    stop when that one is gone, as by SIGTERM, and ended `GRACE_SECONDS` later.
    """
    text = os.environ.pop(LIFELINE, "")
    if text.isdigit():
        os.set_inheritable(int(text), False)
        _in_background(_stop_with, int(text))


def _stop_with(pipe: int) -> None:
    with suppress(OSError):
        while os.read(pipe, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os._exit(1)


@contextmanager
def passing_folder() -> Iterator[tuple[Path, Callable[[], None]]]:
    """A new folder, which is removed when the context is left, and also when this process is killed
    in it; with it what to call for it to stay.
    """
    folder = Path(tempfile.mkdtemp(prefix="mrm_jax_"))
    shell = subprocess.Popen(
        ["sh", "-c", _REMOVE, "sh", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    kept = False

    def keep() -> None:  # at once: a process that is ended by os._exit leaves no context
        nonlocal kept
        kept = True
        with suppress(OSError, ValueError):
            assert shell.stdin is not None
            shell.stdin.write("keep\n")
            shell.stdin.flush()

    try:
        yield folder, keep
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            shell.communicate("keep\n")
