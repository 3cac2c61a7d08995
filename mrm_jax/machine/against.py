"""Another library beside ours: each in a process of its own, since their threads get in each
other's way, and timed by turns, since what else a machine does comes and goes."""

from __future__ import annotations

import importlib
import importlib.util
import math
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from mrm_jax import children
from mrm_jax.config import Config
from mrm_jax.errors import RunError, UsageError
from mrm_jax.machine.work import Whats, cores, spread, timed

SIDES = {"ours": "mrm_jax.machine.bench", "torch": "mrm_jax.machine.torch_peer.works"}
"""Modules with `works(config, whats)` and `versions()`."""

TURN_SECONDS = 0.2
"""A side's turn in a pair takes about so long at least: short calls are repeated, and averaged."""

Key = tuple[str, str]
"""(what, part) of a `Work`."""


class Side(Protocol):
    """One of the two that are compared."""

    listed: dict[Key, int]
    """What it can time, and how often the network holds it."""
    versions: dict[str, str]

    def prepare(self, key: Key) -> dict[str, Any]:
        """Compiles and runs once: `compile_seconds` of both, `peak_bytes` since the process began,
        and `products_seconds`, see `bench` (None: not counted)."""
        ...

    def calls(self, count: int) -> dict[str, Any]:
        """Seconds `wall` and `cpu` of each of so many calls of what was prepared last, and
        `peak_bytes` while they ran (None: not known)."""
        ...


def check_counterpart(config: Config) -> None:
    """Raises UsageError where PyTorch's side is not installed or has no counterpart of a config."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise UsageError.at(
                "--against",
                f" needs the package {name}, which is not installed",
                "pip install 'mrm-jax[torch]'.",
                value="torch",
            )
    model, method = config.model, config.method
    offered: tuple[tuple[str, Any, tuple], ...] = (
        ("model.encoder.kind", model.encoder.kind, ("mit", "resnet")),
        ("model.decoder.kind", model.decoder.kind, ("daformer", "segformer", "deeplabv2")),
        ("model.multires.enabled", model.multires.enabled, (False,)),
        ("model.dtype", model.dtype, ("float32",)),
        ("method.kind", method.kind, ("dacs", "daformer", "mic")),
        ("method.mrm.enabled", method.mrm.enabled, (False,)),
        ("method.mim.weight", method.mim.weight, (0.0,)),
        ("method.contrast.weight", method.contrast.weight, (0.0,)),
        ("method.augmented_source", method.augmented_source, (False,)),
        ("method.teacher_dtype", method.teacher_dtype, ("float32",)),
        ("method.teacher_flip", method.teacher_flip, (False,)),
        ("method.weight_over", method.weight_over, ("batch",)),
        ("method.mix_classes_of", method.mix_classes_of, ("batch",)),
        ("method.objectives", method.objectives, ((),)),
        ("train.microbatches", config.train.microbatches, (1,)),
    )
    if method.kind == "mic":
        offered += (
            ("method.mic.images", method.mic.images, ("target",)),
            ("method.mic.hide", method.mic.hide, ("pixels",)),
        )
    for field, value, known in offered:
        if value not in known:
            raise UsageError.of(
                f"config.{field}",
                value,
                ", which --against torch has no counterpart of",
                f"it knows {', '.join(map(str, known))}.",
            )


def measure_against(
    config: Config, whats: Whats, *, label: str, repeats: int, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """A report for each thing that both sides can time, in our order; see `compared`. label: what
    the config is called there. Raises UsageError, or RunError where a side fails."""
    check_counterpart(config)
    load = os.getloadavg()[0]
    # PyTorch's threads wait by spinning, on cores that others need: with a load of 11 on two cores
    # a step of 0.1 s took 12 s. What the user says holds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with opened("torch", config, whats) as theirs, opened("ours", config, whats) as ours:
        both = [key for key in ours.listed if key in theirs.listed]
        facts = {"config": label, "versions": {**ours.versions, **theirs.versions}}
        for number, key in enumerate(both, 1):
            say(f"{' '.join(filter(None, key[::-1]))} ({number} of {len(both)}) ...")
            yield {**compared(ours, theirs, key, repeats, say), **facts, "machine": machine(load)}


def compared(
    ours: Side, theirs: Side, key: Key, repeats: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """What two sides took for the same thing, JSON as it is.

    `against`, `what`, `part`, `times` (see `Work`); `pairs`: seconds a call of both, pair by pair;
    `ratio` and `cpu_ratio` {median, min, max, count} of the pairs' ours / torch; `seconds`,
    `cpu_seconds`, `compile_seconds` and `peak_bytes` of each side, the last as `first` (compiled
    and run once, since the process began) and `calls` (while the pairs ran); `products_seconds`:
    what our matrix products and convolutions alone would take, at the rate of a large product.
    """
    sides = {"ours": ours, "torch": theirs}
    first = {}
    for name, side in sides.items():
        first[name] = side.prepare(key)
        say(f"  {name}: ready in {first[name]['compile_seconds']:.1f} s")
    counts = {
        name: max(1, math.ceil(TURN_SECONDS / max(side.calls(1)["wall"][0], 1e-9)))
        for name, side in sides.items()
    }
    pairs, highest = [], dict.fromkeys(sides, 0)
    for number in range(repeats):
        pair = {}
        # Whoever was second is first now, so that neither always follows the other.
        for name in sorted(sides, reverse=bool(number % 2)):
            # One call that is not timed: a step of a MiT-B5 that came after the other side's took
            # 12 s, and one after its own 9.5, as all of a run do.
            sides[name].calls(1)
            told = sides[name].calls(counts[name])
            pair[name] = {clock: sum(told[clock]) / counts[name] for clock in ("wall", "cpu")}
            highest[name] = max(highest[name], told["peak_bytes"] or 0)
        pairs.append(pair)
        say(f"  pair {number + 1} of {repeats}: {ratios([pair], 'wall')[0]:.2f}")
    return {
        "against": "torch",
        "what": key[0],
        "part": key[1],
        "times": ours.listed[key],
        "ratio": spread(ratios(pairs, "wall")),
        "cpu_ratio": spread(ratios(pairs, "cpu")),
        "seconds": {name: spread([pair[name]["wall"] for pair in pairs]) for name in sides},
        "cpu_seconds": {name: spread([pair[name]["cpu"] for pair in pairs]) for name in sides},
        "products_seconds": first["ours"]["products_seconds"],
        "compile_seconds": {name: first[name]["compile_seconds"] for name in sides},
        "peak_bytes": {
            name: {"first": first[name]["peak_bytes"], "calls": highest[name] or None}
            for name in sides
        },
        "pairs": pairs,
    }


def ratios(pairs: list[dict[str, Any]], clock: str) -> list[float]:
    """Ours over torch's, pair by pair: what slows the machine down for a while slows both."""
    return [pair["ours"][clock] / max(pair["torch"][clock], 1e-12) for pair in pairs]


# --- A side in a process of its own -------------------------------------------------------------


class Process:
    """A `Side` behind a pipe."""

    def __init__(self, name: str, pipe: Connection):
        self._name, self._pipe = name, pipe
        self.listed, self.versions = self._answer()

    def prepare(self, key: Key) -> dict[str, Any]:
        """See `Side`."""
        return self._ask("prepare", key)

    def calls(self, count: int) -> dict[str, Any]:
        """See `Side`."""
        return self._ask("calls", count)

    def _ask(self, what: str, given: Any) -> Any:
        self._pipe.send((what, given))
        return self._answer()

    def _answer(self) -> Any:
        try:
            well, answer = self._pipe.recv()
        except EOFError:
            raise RunError(
                f"The process of {self._name} ended before it was done; was there enough memory?",
                field="--against",
            ) from None
        if isinstance(answer, UsageError | RunError):
            raise answer
        if not well:
            raise RunError(f"{self._name} failed: {answer}", field="--against")
        return answer


@contextmanager
def opened(name: str, config: Config, whats: Whats) -> Iterator[Process]:
    """A side of `SIDES` in a new process, which ends with the context."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(theirs, SIDES[name], config, tuple(whats)), daemon=True
    )
    with children.starting():
        process.start()
    theirs.close()
    try:
        yield Process(name, mine)
    finally:
        mine.close()
        process.join(5)
        process.kill()
        process.join()


def _serve(pipe: Connection, module: str, config: Config, whats: Whats) -> None:
    children.serve()
    try:
        side = importlib.import_module(module)
        works = {(work.what, work.part): work for work in side.works(config, whats)}
        pipe.send((True, ({key: work.times for key, work in works.items()}, side.versions())))
        call = None
        while True:
            what, given = pipe.recv()
            if what == "prepare":
                call = None  # the memory of what came before is free
                began = time.perf_counter()
                call = works[given].make()
                call.run()
                seconds = time.perf_counter() - began
                answer = {
                    "compile_seconds": seconds,
                    "peak_bytes": peak_bytes(),
                    "products_seconds": call.costs.get("products_seconds"),
                }
            else:
                assert call is not None, "prepared first"
                known = forget_peak()
                seconds = timed(call.run, given, warm_up=0)
                answer = {**seconds, "peak_bytes": peak_bytes() if known else None}
            pipe.send((True, answer))
    except EOFError:  # the other end is closed: done
        return
    except (UsageError, RunError) as error:
        pipe.send((False, error))
    except Exception as error:
        pipe.send((False, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"))


def peak_bytes() -> int:
    """The most memory that this process held since it began or since `forget_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def forget_peak() -> bool:
    """Begins `peak_bytes` anew at what the process holds; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


# --- The machine --------------------------------------------------------------------------------


def machine(load: float) -> dict[str, Any]:
    """`cores` that this process may use, `instructions` (the widest set of vectors), and `load`:
    the average of a minute `before` and `now`, our own work in it."""
    return {
        "cores": cores(),
        "instructions": instructions(),
        "load": {"before": round(load, 2), "now": round(os.getloadavg()[0], 2)},
    }


def instructions() -> str:
    """The widest set of vector instructions, by Linux; elsewhere the kind of processor."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    flags = set(text.replace("\t", " ").split())
    known = ("amx_tile", "avx512f", "avx2", "avx", "sse4_2", "sve", "asimd")
    return next((name for name in known if name in flags), platform.machine())
