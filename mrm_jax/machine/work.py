"""Something that is timed, by whichever library."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

Whats = Collection[str]
"""Of inference, forward, backward, step and parts."""


@dataclass(frozen=True)
class Call:
    """run() returns when all is done; costs: what the compiler counts of it."""

    run: Callable[[], object]
    costs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What can be timed. make() prepares it (compiles).

    what: inference, forward, backward or step; part: of what part of the network or the step, ""
    for all of it. times: how often the network holds such a part, one after the other.
    """

    what: str
    part: str = ""
    times: int = 1
    make: Callable[[], Call] = lambda: Call(lambda: None)


WARM_UP = 1
"""Calls that are not timed: the first one also loads code and allocates."""


def timed(run: Callable[[], object], count: int, warm_up: int = WARM_UP) -> dict[str, list[float]]:
    """Seconds of each of `count` calls by the clock (`wall`) and of all this process's threads
    (`cpu`)."""
    found: dict[str, list[float]] = {"wall": [], "cpu": []}
    for number in range(warm_up + count):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        if number >= warm_up:
            found["wall"].append(time.perf_counter() - wall)
            found["cpu"].append(time.process_time() - cpu)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """{median, min, max, count}."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "count": len(values),
    }


def costs(compiled: Any) -> dict[str, float | None]:
    """`flops`, `bytes_accessed` and `peak_bytes` of a compiled program, by XLA, on one device.

    `peak_bytes`: what XLA says the peak is; where it does not say, arguments, outputs that share no
    memory with them, and temporaries.
    """
    counted = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    peak = None
    if memory is not None:
        # Some back ends report a peak without the arguments, or none at all.
        given = memory.argument_size_in_bytes + memory.output_size_in_bytes
        whole = given - memory.alias_size_in_bytes + memory.temp_size_in_bytes
        peak = max(whole, getattr(memory, "peak_memory_in_bytes", 0))
    return {
        "flops": counted.get("flops"),
        "bytes_accessed": counted.get("bytes accessed"),
        "peak_bytes": peak,
    }


def cores() -> int:
    """Threads that a program computes with: those of this process's cores; NPROC, which XLA's CPU
    client reads too, says fewer."""
    given = os.environ.get("NPROC", "")
    return int(given) if given.isdigit() and int(given) else len(os.sched_getaffinity(0))
