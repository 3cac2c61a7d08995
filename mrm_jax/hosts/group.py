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
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from mrm_jax.config import Config
from mrm_jax.errors import RunError, UsageError
from mrm_jax.hosts.meeting import meet
from mrm_jax.hosts.watch import AGAIN, HostWatch, LastWords, is_loss, line_of, parts_of
from mrm_jax.paths import is_remote
from mrm_jax.stop import Stopped, before_end

_T = TypeVar("_T")

JOIN_SECONDS = 300
"""How long a host waits for the others at the start."""
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
"""What JAX reads of Slurm."""
_FOREVER_MS = 10**9  # whoever waits is ended by the watch, not by a timeout


def found(config: Config, environment: Mapping[str, str] | None = None) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is to be given, {} where it sees the cluster by itself;
    None where this process trains alone.

    Raises UsageError for a `config.mesh` that names part of the hosts, or a count of Slurm's that
    is none.
    """
    mesh, environment = config.mesh, os.environ if environment is None else environment
    if mesh.hosts == "off":
        return None
    if mesh.hosts == "explicit" or mesh.coordinator is not None:
        return _explicit(config)
    return {} if _in_slurm_step(environment) or _on_cloud_tpu(environment) else None


def _explicit(config: Config) -> dict[str, Any] | None:
    address, count, index = (
        getattr(config.mesh, name) for name in ("coordinator", "process_count", "process_index")
    )
    if address is None or count is None or index is None:
        raise UsageError.at(
            "config.mesh",
            ": explicit hosts need all of coordinator=HOST:PORT (of host 0), process_count "
            f"and process_index; they are {address}, {count} and {index}.",
        )
    if not re.fullmatch(r".+:\d+", address):
        raise UsageError.at("config.mesh.coordinator", f" is '{address}'", "write HOST:PORT.")
    if not 0 <= index < count:
        raise UsageError.of(
            "config.mesh.process_index", index, "", f"it must lie in 0..{count - 1}."
        )
    if count == 1:
        return None
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


def _in_slurm_step(environment: Mapping[str, str]) -> bool:
    # Under srun, not in the batch script around it, which is one process.
    if any(name not in environment for name in _SLURM):
        return False
    tasks = environment["SLURM_NTASKS"]
    if not tasks.isdigit():
        raise UsageError.of(
            "SLURM_NTASKS", tasks, ", not a number", "start by srun, or set config.mesh.hosts=off."
        )
    return int(tasks) > 1


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
    UsageError as `found`, and as `meet` for hosts that do not fit together.
    """
    wanted = found(config)
    if wanted is None:
        yield
        return
    if meeting := _meeting(wanted, os.environ):
        import jax  # what takes seconds comes before the others are told that host 0 is ready

        meet(*meeting, seconds=JOIN_SECONDS)
    words = LastWords()
    with before_end(words.close):
        several = _join(config, wanted, words)
    if not several:
        yield
        return
    import jax

    watch = HostWatch(config, words)
    HostWatch.running = watch
    words.set(
        f"Host {watch.index} of {watch.count} ended without a message: it was killed, or "
        f"JAX ended it since another host is gone. {AGAIN}"
    )
    watch.start()
    try:
        with before_end(lambda: watch.end(Stopped())):
            yield
        together(lambda: None)
    except BaseException as error:  # all of them end the process
        watch.end(error)
    watch.stop()
    jax.distributed.shutdown()
    words.close()
    HostWatch.running = None


def _meeting(
    wanted: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[str, int, int] | None:
    """Address of host 0, how many there are and which this is; None where only JAX can say."""
    if wanted:
        names = ("coordinator_address", "num_processes", "process_id")
        address, count, index = (wanted[name] for name in names)
        return address, count, index
    if not _in_slurm_step(environment) or _on_cloud_tpu(environment):
        return None
    from jax._src.clusters.slurm_cluster import SlurmCluster

    port = environment.get("JAX_COORDINATOR_PORT")
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    address = address or SlurmCluster.get_coordinator_address(JOIN_SECONDS, port)
    return address, SlurmCluster.get_process_count(), SlurmCluster.get_process_id()


def _join(config: Config, wanted: dict[str, Any], words: LastWords) -> bool:
    """Whether there are others."""
    import jax
    from jax._src.distributed import global_state

    words.set(
        f"The hosts did not find each other within {JOIN_SECONDS} s: start the same command on all "
        "of them, or set config.mesh.hosts=off."
    )
    if hasattr(jax.config, "jax_enable_preemption_service"):
        # It would take SIGTERM away from stop.StopSignal, through which all hosts agree on a step.
        jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **wanted,
            initialization_timeout=JOIN_SECONDS,
            # Late enough for ours to come first, which say which host it is.
            heartbeat_timeout_seconds=3 * config.mesh.heartbeat,
        )
    except Exception as error:  # sockets, metadata servers and JAX raise unrelated types
        words.close()
        raise RunError(
            f"The hosts could not be joined: {line_of(error)}",
            "Set config.mesh.coordinator, process_count and process_index, or "
            "config.mesh.hosts=off for this machine alone.",
            field="config.mesh",
        ) from error
    several = (global_state.num_processes or 1) > 1
    if not several:
        words.close()
    return several


def host_index() -> int:
    """Which host this is; 0 where there is one."""
    return 0 if HostWatch.running is None else HostWatch.running.index


def host_count() -> int:
    """How many hosts there are."""
    return 1 if HostWatch.running is None else HostWatch.running.count


def is_main() -> bool:
    """Whether this is host 0, which alone writes what is not a checkpoint."""
    return host_index() == 0


def raise_loss(error: Exception) -> None:
    """Raises `error` where it says that another host is gone, not that something is wrong here."""
    if HostWatch.running is not None and is_loss(error):
        raise error


def beat(step: int, doing: str) -> None:
    """Notes that this host has got on: `config.mesh.patience` counts from the last call. All hosts
    go through the same ones, but within an evaluation."""
    if HostWatch.running is not None:
        HostWatch.running.beat(step, doing)


_rounds = itertools.count()


def together(make: Callable[[], _T]) -> list[_T]:
    """Runs `make()` on every host and gives each host the list of all answers, host 0's first.

    Every host has to call it at the same point of the program, and waits there for the others.
    `make` returns what JSON can hold. Where it raises on one host, that host raises its error and
    the others a RunError of the same parts, so that none goes on alone; after a Stopped on any host
    those without an error raise Stopped. With one host it is `[make()]`.
    """
    watch = HostWatch.running
    if watch is None:
        return [make()]

    error, value = None, None
    try:
        value = make()
    except (Exception, Stopped) as raised:
        error = raised
    number = next(_rounds)
    stopped = isinstance(error, Stopped)
    said = json.dumps([value, None if error is None or stopped else parts_of(error), stopped])
    watch.client.key_value_set(f"mrm_jax_round/{number}/{watch.index}", said)
    told = [
        json.loads(watch.client.blocking_key_value_get(f"mrm_jax_round/{number}/{h}", _FOREVER_MS))
        for h in range(watch.count)
    ]
    if number:  # whoever is in this round has read all of the one before
        watch.client.key_value_delete(f"mrm_jax_round/{number - 1}/{watch.index}")
    if error is not None:
        raise error
    for host, (_, parts, _) in enumerate(told):
        if parts is not None:
            raise RunError.told(parts, f"Host {host}: ")
    if any(stopped for *_, stopped in told):
        raise Stopped
    return [value for value, *_ in told]


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
        raise UsageError.at(
            what,
            f" is {first} on host {host_index()} and {other} on host {host}",
            "it must be the same.",
        )


def check_shared(mark: Path) -> None:
    """Raises UsageError on all hosts unless all see the file `mark` that host 0 writes in the
    folder of the run."""
    folder = mark.parent

    def write() -> str:
        token = uuid.uuid4().hex
        if not is_remote(folder):  # a bucket is one for all
            mark.write_text(token)
        return token

    token = from_main(write)

    def see() -> None:
        if not is_remote(folder) and (not mark.is_file() or mark.read_text() != token):
            raise UsageError.at(
                "--workdir",
                " is not the folder that host 0 sees; all hosts need one shared folder, or a "
                "bucket.",
                value=folder,
            )

    together(see)
