"""Where numbers go: metrics.jsonl and a tracker, which is TensorBoard unless another one is opened
(`trackers`).

metrics.jsonl holds one JSON object a line with `step` (steps done) and any of: the losses and
shares of that step, scores (`eval/<student|teacher>/...`), alarms (`alarm/...`, a sentence), rates
and memory (`perf/...`). A number that is not finite is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
from PIL import Image

from mrm_jax.paths import write_text
from mrm_jax.stop import Stopped

METRICS = "metrics.jsonl"


_EVALUATED = ("eval/", "select/", "alarm/IoU/")
"""What an evaluation writes."""


def cut_back(path: Path, step: int, *, unscored: bool = False) -> int:
    """Drops the lines of metrics.jsonl after `step`, where `unscored` also those of its evaluation,
    and torn ones; returns how many went.

    What a killed run wrote after its last checkpoint is computed again, and must not stand there
    twice. A link becomes a file of its own: what is appended stays in the folder.
    """
    if path.is_symlink() and not path.exists():
        path.unlink()
    if not path.exists():
        return 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line for line in lines if _step(line) <= step]
    if unscored:
        kept = [line for line in kept if _step(line) < step or not _of_evaluation(line)]
    torn = bool(lines) and not path.read_bytes().endswith(b"\n")
    if len(kept) < len(lines) or torn or path.is_symlink():
        write_text(path, "".join(line + "\n" for line in kept))
    return len(lines) - len(kept)


def _step(line: str) -> float:
    """The step of a line; infinite for one that is not whole."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _of_evaluation(line: str) -> bool:
    return any(name.startswith(_EVALUATED) for name in json.loads(line))


Plain = float | int | str | None
"""A value as metrics.jsonl holds it; None: a number that is not finite."""
Ending = Literal["finished", "stopped", "failed"]
"""How a run ends; a stopped one is to go on."""


class Tracker(Protocol):
    """What shows a run elsewhere while it trains."""

    def write(self, step: int, values: Mapping[str, Plain]) -> None:
        """What metrics.jsonl is given."""

    def picture(self, step: int, name: str, path: Path) -> None:
        """The picture that lies at `path`."""

    def flush(self) -> None:
        """Brings to disk what is kept in this process."""

    def close(self, ending: Ending) -> None:
        """Says how the run ended."""


OpenTracker = Callable[[Path, int], Tracker]
"""(folder of a run, step that it restarts at) -> its tracker; metrics.jsonl is cut back by then."""


class TensorBoard:
    """Event files in the folder of a run.

    The first line, what compiling took, waits for the second: the import of tensorboardX takes half
    a second that the first step would wait for, and 3 where PyTorch is installed, since it imports
    that.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        self._workdir, self._step = workdir, step
        self._waiting: list[tuple[int, Mapping[str, Plain]]] = []

    @cached_property
    def _events(self) -> Any:
        from tensorboardX import SummaryWriter

        # purge_step hides what a killed run wrote beyond the restored step.
        events = SummaryWriter(
            str(self._workdir), purge_step=self._step + 1 if self._step else None
        )
        for step, values in self._waiting:
            _put(events, step, values)
        return events

    def write(self, step: int, values: Mapping[str, Plain]) -> None:
        """Sentences as texts, numbers as scalars."""
        if self._waiting or "_events" in vars(self):
            _put(self._events, step, values)
        else:
            self._waiting.append((step, values))

    def picture(self, step: int, name: str, path: Path) -> None:
        """The picture, decoded."""
        with path.open("rb") as file, Image.open(file) as picture:
            self._events.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def flush(self) -> None:
        """Brings the events to disk."""
        self._events.flush()

    def close(self, ending: Ending) -> None:
        """Ends the files; they hold nothing about the end of a run."""
        del ending
        self._events.close()


def _put(events: Any, step: int, values: Mapping[str, Plain]) -> None:
    for name, value in values.items():
        if isinstance(value, str):
            events.add_text(name, value, step)
        elif value is not None:
            events.add_scalar(name, value, step)


class Writer:
    """Appends to metrics.jsonl and to the tracker of a run that restarts at `step`, whose
    evaluation comes again where it is `unscored`. As a context it ends both."""

    def __init__(
        self,
        workdir: Path,
        *,
        step: int,
        unscored: bool = False,
        tracker: OpenTracker = TensorBoard,
    ):
        cut_back(workdir / METRICS, step, unscored=unscored)
        self._file = open(workdir / METRICS, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._tracker = tracker(workdir, step)
        self._ending: Ending = "finished"

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of numbers and sentences under their metrics.jsonl names, at once visible to
        readers.
        """
        plain = {name: _plain(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        self._file.flush()
        self._tracker.write(step, plain)

    def picture(self, step: int, name: str, path: Path) -> None:
        """A picture that lies at `path`, for the tracker; nothing where there is none."""
        if path.is_file():
            self._tracker.picture(step, name, path)

    def flush(self) -> None:
        """Brings the tracker's files to disk; metrics.jsonl is there already."""
        self._tracker.flush()

    def stopped(self) -> None:
        """Notes that the run ends before its last step, to go on later."""
        self._ending = "stopped"

    def close(self, ending: Ending | None = None) -> None:
        """Closes both."""
        self._file.close()
        self._tracker.close(ending or self._ending)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed = kind is not None and not issubclass(kind, Stopped)
        self.close("failed" if failed else "stopped" if kind else None)


def _plain(value: Any) -> Plain:
    if isinstance(value, str | int):
        return value
    return float(value) if math.isfinite(value) else None
