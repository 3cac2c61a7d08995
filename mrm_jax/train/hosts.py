"""Several processes ("hosts") that train one network: how they find each other, what they agree on,
and how they end.

The engine is JAX's: its coordination service, run by host 0, finds them and its heartbeats find the
dead; its collectives, in the step, do the work. Here are, on top, small texts in that service's
key-value store: values that all have to know (`together`), how far each host is, and why one ended.
So a host that dies, or hangs while it lives, ends the run on all of them, with one line.

For a single process everything here does nothing. Loads jax only where there are several.
"""

from __future__ import annotations

import glob
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mrm_jax.config import Config, UsageError
from mrm_jax.paths import is_remote
from mrm_jax.train.workdir import LOCK

_T = TypeVar("_T")

JOIN_SECONDS = 300
"""How long a host waits for the others at the start."""
POLL_SECONDS = 1.0
LINGER_SECONDS = 10.0
"""How long host 0, which runs the service, waits at a failure for the others to have read why."""
_FOREVER_MS = 10**9  # whoever waits is ended by the watch, not by a timeout
_AGAIN = "Give the same command on every host again: it goes on from the last checkpoint."
_LOST = re.compile(r"gloo|nccl|connection|socket|peer|unavailable|deadline|aborted", re.IGNORECASE)
"""What a collective says that lost its other end; the back ends raise many types."""


def found(config: Config, environment: Mapping[str, str] | None = None) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is to be given, {} where it sees the cluster by itself;
    None where this process trains alone.

    Raises UsageError for a `config.mesh` that names part of the hosts.
    """
    mesh, environment = config.mesh, os.environ if environment is None else environment
    if mesh.hosts == "off":
        return None
    if mesh.hosts == "explicit" or mesh.coordinator is not None:
        return _explicit(config)
    # Under srun, not in the batch script around it, which is one process.
    slurm = "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1
    return {} if slurm or _on_cloud_tpu(environment) else None


def _explicit(config: Config) -> dict[str, Any] | None:
    address, count, index = (
        getattr(config.mesh, name) for name in ("coordinator", "process_count", "process_index")
    )
    if address is None or count is None or index is None:
        raise UsageError(
            "config.mesh: explicit hosts need all of coordinator=HOST:PORT (of host 0), "
            f"process_count and process_index; they are {address}, {count} and {index}."
        )
    if not re.fullmatch(r".+:\d+", address):
        raise UsageError(f"config.mesh.coordinator is '{address}'; write HOST:PORT.")
    if not 0 <= index < count:
        raise UsageError(f"config.mesh.process_index is {index}; it must lie in 0..{count - 1}.")
    if count == 1:
        return None
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


def _on_cloud_tpu(environment: Mapping[str, str]) -> bool:
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    allowed = environment.get("JAX_PLATFORMS", "")
    wanted = not allowed or "tpu" in allowed
    return bool(chips) and wanted and importlib.util.find_spec("libtpu") is not None


@contextmanager
def joined(config: Config) -> Iterator[None]:
    """This process as one of the hosts that `config.mesh` and its surroundings speak of, for as
    long as the context is open; all leave it together.

    An error ends the process here, with its one line, after the others have been told. Raises
    UsageError as `found`.
    """
    wanted = found(config)
    if wanted is None:
        yield
        return
    words = _LastWords()
    _join(config, wanted, words)
    import jax

    watch = _Watch(config, words)
    _Watch.running = watch
    words.set(
        f"host {watch.index} of {watch.count} ended without a word of its own: it was killed, or "
        f"JAX ended it since another host is gone. {_AGAIN}"
    )
    watch.start()
    try:
        yield
        together(lambda: None)
    except BaseException as error:  # all of them end the process
        watch.end(error)
    watch.stop()
    jax.distributed.shutdown()
    words.set("")
    _Watch.running = None


def _join(config: Config, wanted: dict[str, Any], words: _LastWords) -> None:
    import jax

    from mrm_jax.types import RunError

    words.set(
        f"the hosts did not find each other within {JOIN_SECONDS} s: start the same command on all "
        "of them, or set config.mesh.hosts=off."
    )
    if hasattr(jax.config, "jax_enable_preemption_service"):
        # It would take SIGTERM away from stop.StopSignal, through which all hosts agree on a step.
        jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **wanted,
            initialization_timeout=JOIN_SECONDS,
            # After ours, which says which host it is.
            heartbeat_timeout_seconds=config.mesh.heartbeat + 30,
        )
    except Exception as error:  # sockets, metadata servers and JAX raise unrelated types
        words.set("")
        raise RunError(
            f"The hosts could not be joined: {_line(error)} Set config.mesh.coordinator, "
            "process_count and process_index, or config.mesh.hosts=off for this machine alone."
        ) from error


def index() -> int:
    """Which host this is; 0 where there is one."""
    return 0 if _Watch.running is None else _Watch.running.index


def count() -> int:
    """How many hosts there are."""
    return 1 if _Watch.running is None else _Watch.running.count


def is_main() -> bool:
    """Whether this is host 0, which alone writes what is not a checkpoint."""
    return index() == 0


def beat(step: int, doing: str) -> None:
    """Notes that this host has got on: `config.mesh.patience` counts from the last change."""
    if _Watch.running is not None:
        _Watch.running.progress = (step, doing)


_rounds = itertools.count()


def together(make: Callable[[], _T]) -> list[_T]:
    """`make()` (JSON) of every host, in their order; to be called by all of them.

    Where one raises all raise: that host its error, the others a RunError that tells it. So they
    stay in step.
    """
    watch = _Watch.running
    if watch is None:
        return [make()]
    from mrm_jax.types import RunError  # only now: imports jax

    error, value = None, None
    try:
        value = make()
    except Exception as raised:
        error = raised
    number = next(_rounds)
    said = json.dumps([value, None if error is None else _line(error)])
    watch.client.key_value_set(f"mrm_jax_round/{number}/{watch.index}", said)
    told = [
        json.loads(watch.client.blocking_key_value_get(f"mrm_jax_round/{number}/{h}", _FOREVER_MS))
        for h in range(watch.count)
    ]
    if number:  # whoever is in this round has read all of the one before
        watch.client.key_value_delete(f"mrm_jax_round/{number - 1}/{watch.index}")
    if error is not None:
        raise error
    for host, (_, text) in enumerate(told):
        if text is not None:
            raise RunError(f"Host {host}: {text}")
    return [value for value, _ in told]


def from_main(make: Callable[[], _T]) -> _T:
    """Host 0's `make()` (JSON) on all hosts; the others' is not called."""
    made: Any = together(lambda: make() if is_main() else None)
    return made[0]


def same(what: str, value: Any) -> None:
    """Raises UsageError unless `value` (JSON) is the same on all hosts, naming the first part of
    a mapping that is not."""
    for host, other in enumerate(together(lambda: value)):
        first = json.loads(json.dumps(value))
        if other == first:
            continue
        if isinstance(first, dict) and isinstance(other, dict):
            names = [n for n in {**first, **other} if first.get(n) != other.get(n)]
            what, first, other = f"{what}{names[0]}", first.get(names[0]), other.get(names[0])
        raise UsageError(
            f"{what} is {first} on host {index()} and {other} on host {host}; it must be the same."
        )


def check_shared(folder: Path) -> None:
    """Raises UsageError on all hosts unless all see the `folder` of the run that host 0 holds."""
    mark = folder / LOCK

    def write() -> str:
        token = uuid.uuid4().hex
        if not is_remote(folder):  # a bucket is one for all
            mark.write_text(token)
        return token

    token = from_main(write)

    def see() -> None:
        if not is_remote(folder) and (not mark.is_file() or mark.read_text() != token):
            raise UsageError(
                f"--workdir {folder} is not the folder that host 0 sees; all hosts need one shared "
                "folder, or a bucket."
            )

    together(see)


class _LastWords:
    """A line that appears on stderr when this process ends, however it ends: kill -9 leaves no time
    to print, and JAX ends a process whose host 0 is gone by an abort."""

    def __init__(self) -> None:
        shell = 'while read -r line; do last=$line; done; [ -z "$last" ] || echo "$last" >&2'
        self._shell = subprocess.Popen(
            ["sh", "-c", shell], stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    def set(self, line: str) -> None:
        """What is to appear instead of the line before; "": nothing."""
        with suppress(OSError):
            assert self._shell.stdin is not None
            self._shell.stdin.write(f"mrm_jax: {line}\n" if line else "\n")
            self._shell.stdin.flush()


class _Watch(threading.Thread):
    """Tells the others how far this host is, and ends this process when one of them has ended, is
    silent for `mesh.heartbeat` s, or when nobody gets on for `mesh.patience` s."""

    running: _Watch | None = None

    def __init__(self, config: Config, words: _LastWords) -> None:
        import jax
        from jax._src import distributed  # the key-value store has no public name

        super().__init__(daemon=True)
        self.index, self.count = jax.process_index(), jax.process_count()
        self.client: Any = distributed.global_state.client
        self.progress: tuple[int, str] = (0, "starting")
        self._serves = distributed.global_state.service is not None
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
                said = json.dumps([tick, *self.progress])
                self.client.key_value_set(f"mrm_jax/{self.index}", said, allow_overwrite=True)
                beats = dict(self.client.key_value_dir_get("mrm_jax/"))
                ends = dict(self.client.key_value_dir_get("mrm_jax_end/"))
            except Exception as error:
                self._die(f"Host 0 cannot be reached any more ({_line(error)}) {_AGAIN}")
            if line := self._ended(ends) or self._silent(beats) or self._stuck(beats):
                self._die(line)

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
                return f"Host {host} has been silent for {self._heartbeat} s. {_AGAIN}"
        return None

    def _stuck(self, beats: Mapping[str, str]) -> str | None:
        now = time.monotonic()
        for host in range(self.count):
            moved = json.loads(beats.get(f"mrm_jax/{host}", '[0, 0, "starting"]'))[1:]
            if host not in self._moved or moved != self._moved[host][0]:
                self._moved[host] = moved, now
        if any(now - since <= self._patience for _, since in self._moved.values()):
            return None
        least = min(step for (step, _), _ in self._moved.values())
        behind = [f"{h} ({what})" for h, ((step, what), _) in self._moved.items() if step == least]
        return (
            f"Nothing has moved for {self._patience} s; host {', '.join(behind[:4])} is at step "
            f"{least}. {_AGAIN}"
        )

    def end(self, error: BaseException) -> NoReturn:
        """Ends the process as the command line would, after telling the others why."""
        from mrm_jax.types import RunError

        line, code = _line(error), 1
        if isinstance(error, UsageError):
            code = 2
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            line = "it was stopped."
        elif not isinstance(error, RunError):
            if _LOST.search(line):
                time.sleep(3 * POLL_SECONDS)  # the thread may know why
                line = f"Another host was lost: {line} {_AGAIN}"
            else:
                traceback.print_exception(error)
        self._die(line, code=code, cause=line)

    def _die(self, line: str, *, code: int = 1, cause: str = "") -> NoReturn:
        self._dying.acquire()  # for good: the other thread has nothing to add
        self._words.set("")
        sys.stdout.flush()
        print(f"mrm_jax: {line}", file=sys.stderr, flush=True)
        with suppress(Exception):
            self.client.key_value_set(f"mrm_jax_end/{self.index}", cause, allow_overwrite=True)
            # With this process may go the service where the others read why.
            until = time.monotonic() + LINGER_SECONDS * self._serves
            while time.monotonic() < until and len(self._gone()) < self.count:
                time.sleep(POLL_SECONDS / 4)
        os._exit(code)

    def _gone(self) -> list[Any]:
        return self.client.key_value_dir_get("mrm_jax_end/")


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) < 300 else text[:297] + "...").rstrip(".") + "."
