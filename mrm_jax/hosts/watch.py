"""What ends a process that trains with others when one of them is gone or all stand still, and what
it says then.

JAX's own heartbeats find a process that is gone, too, and end all others by an abort. This watch is
earlier, says which it was, and also sees a process that lives but does not get on.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

from mrm_jax.config import Config
from mrm_jax.errors import RunError, UsageError
from mrm_jax.stop import Stop, Stopped

POLL_SECONDS = 1.0
LINGER_SECONDS = 3.0
"""How long the host that runs the service waits at a failure for the others to have read why."""
AGAIN = "Give the same command on every host again: it goes on from the last checkpoint."
_LOST = re.compile(r"gloo|nccl|connection|socket|peer|unavailable|deadline|aborted", re.IGNORECASE)
"""What a collective says that lost its other end; the back ends raise many types."""


class LastWords:
    """A line that appears on stderr when this process ends, however it ends: kill -9 leaves no time
    to print, and JAX ends a process whose host 0 is gone by an abort."""

    def __init__(self) -> None:
        shell = 'while read -r line; do last=$line; done; [ -z "$last" ] || echo "$last" >&2'
        self._shell = subprocess.Popen(
            ["sh", "-c", f"trap '' INT TERM; {shell}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def set(self, line: str) -> None:
        """What is to appear instead of the line before."""
        self._write(f"mrm_jax: {line}\n")

    def close(self) -> None:
        """Nothing is to appear any more."""
        self._write("\n")
        with suppress(OSError, subprocess.TimeoutExpired):
            assert self._shell.stdin is not None
            self._shell.stdin.close()
            self._shell.wait(POLL_SECONDS)

    def _write(self, text: str) -> None:
        with suppress(OSError):
            assert self._shell.stdin is not None
            self._shell.stdin.write(text)
            self._shell.stdin.flush()


class HostWatch(threading.Thread):
    """Tells the others how far this host is, and ends this process when one of them has ended, is
    silent for `mesh.heartbeat` s, or when nobody gets on for `mesh.patience` s."""

    running: HostWatch | None = None

    def __init__(self, config: Config, words: LastWords) -> None:
        # The key-value store has no public name. Not jax.process_index(), which would wait for the
        # others' devices before anybody watches.
        from jax._src.distributed import global_state as joined

        super().__init__(daemon=True)
        self.index, self.count = joined.process_id, joined.num_processes or 1
        self.client: Any = joined.client
        self._progress: tuple[int, int, str] = (0, 0, "starting")
        self._serves = joined.service is not None
        self._words, self._over, self._dying = words, threading.Event(), threading.Lock()
        self._heartbeat, self._patience = config.mesh.heartbeat, config.mesh.patience
        self._seen: dict[int, tuple[str, float]] = {}
        self._moved: dict[int, tuple[list[Any], float]] = {}

    def run(self) -> None:
        """The thread: a look at everybody every `POLL_SECONDS`."""
        for tick in itertools.count():
            if self._over.wait(POLL_SECONDS):
                return
            try:
                said = json.dumps([tick, *self._progress])
                self.client.key_value_set(f"mrm_jax/{self.index}", said, allow_overwrite=True)
                beats = dict(self.client.key_value_dir_get("mrm_jax/"))
                ends = dict(self.client.key_value_dir_get("mrm_jax_end/"))
                self._spread_stop()
            except Exception as error:
                self._die(f"Host 0 cannot be reached any more ({line_of(error)}) {AGAIN}")
            if line := self._ended(ends) or self._silent(beats) or self._stuck(beats):
                self._die(line)

    def _spread_stop(self) -> None:
        """A stop that one host was asked for is heard by all between two parts of what all do."""
        if (stop := Stop.running) is None:
            return
        if stop.received and not stop.asked:
            self.client.key_value_set(f"mrm_jax_stop/{self.index}", "1", allow_overwrite=True)
        stop.asked |= bool(self.client.key_value_dir_get("mrm_jax_stop/"))

    def beat(self, step: int, doing: str) -> None:
        """This host has got on, to `doing` something of `step`."""
        before, part, _ = self._progress
        self._progress = (step, part + 1 if step == before else 0, doing)

    def stop(self) -> None:
        """Ends the thread."""
        self._over.set()
        self.join()

    def _ended(self, ends: Mapping[str, str]) -> str | None:
        for name, line in sorted(ends.items()):
            if line and int(name.rpartition("/")[2]) != self.index:
                return f"Host {name.rpartition('/')[2]} has ended: {line}"
        return None

    def _silent(self, beats: Mapping[str, str]) -> str | None:
        now = time.monotonic()
        for host in range(self.count):
            said = beats.get(f"mrm_jax/{host}", "")
            before, since = self._seen.setdefault(host, (said, now))
            if said != before:
                self._seen[host] = said, now
            elif now - since > self._heartbeat:
                return f"Host {host} has been silent for {self._heartbeat} s. {AGAIN}"
        return None

    def _stuck(self, beats: Mapping[str, str]) -> str | None:
        now = time.monotonic()
        for host in range(self.count):
            moved = json.loads(beats.get(f"mrm_jax/{host}", '[0, 0, 0, "starting"]'))[1:]
            if host not in self._moved or moved != self._moved[host][0]:
                self._moved[host] = moved, now
        if any(now - since <= self._patience for _, since in self._moved.values()):
            return None
        last = min(moved[:2] for moved, _ in self._moved.values())
        behind = [f"{h} ({moved[2]})" for h, (moved, _) in self._moved.items() if moved[:2] == last]
        return (
            f"Nothing has moved for {self._patience} s; last comes host {', '.join(behind[:4])} at "
            f"step {last[0]}. {AGAIN}"
        )

    def end(self, error: BaseException) -> NoReturn:
        """Ends the process as the command line would, after telling the others why."""

        line, code = line_of(error), 1
        if isinstance(error, UsageError):
            code = 2
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            line = "it was stopped."
            if isinstance(error, Stopped) and Stop.running is not None:
                line, code = Stop.running.last_words()
        elif not isinstance(error, RunError):
            if is_loss(error):
                time.sleep(3 * POLL_SECONDS)  # the thread may know why
                line = f"Another host, or the way to it, was lost: {line} {AGAIN}"
            else:
                traceback.print_exception(error)
                line = f"{type(error).__name__}: {line}"
        self._die(line, code=code, cause=line)

    def _die(self, line: str, *, code: int = 1, cause: str = "") -> NoReturn:
        self._dying.acquire()  # for good: the other thread has nothing to add
        sys.stderr.write(f"mrm_jax: {line}\n")  # whole, where hosts share a terminal
        sys.stderr.flush()
        with suppress(OSError):  # JAX may abort at any moment, with a trace that would bury it
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        self._words.close()  # only now
        sys.stdout.flush()
        with suppress(Exception):
            self.client.key_value_set(f"mrm_jax_end/{self.index}", cause, allow_overwrite=True)
            # With this process may go the service where the others read why.
            until = time.monotonic() + LINGER_SECONDS
            while self._serves and time.monotonic() < until and len(self._gone()) < self.count:
                time.sleep(POLL_SECONDS / 4)
            time.sleep(self._serves * POLL_SECONDS / 2)  # for the last of them to be out
        os._exit(code)

    def _gone(self) -> list[Any]:
        return self.client.key_value_dir_get("mrm_jax_end/")


def is_loss(error: BaseException) -> bool:
    """Whether an error looks like that of a collective whose other end is gone."""
    return _LOST.search(str(error)) is not None


def parts_of(error: BaseException) -> dict[str, Any]:
    """What other hosts are told of an error, as `UsageError.parts`."""
    known = error if isinstance(error, UsageError | RunError) else RunError("", field="")
    return {**known.parts(), "line": line_of(error)}


def line_of(error: BaseException) -> str:
    """What an error says, on one line that ends in a full stop; of other programs' errors the
    beginning."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UsageError | RunError):
        return text.rstrip(".") + "."
    return (text if len(text) < 300 else text[:297] + "...").rstrip(".") + "."
