"""Where numbers go: metrics.jsonl and TensorBoard events.

metrics.jsonl holds one JSON object a line with `step` (steps done) and any of: the losses and
shares of that step, scores (`eval/<student|teacher>/...`), alarms (`alarm/...`, a sentence), rates
and memory (`perf/...`). A number that is not finite is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mrm_jax.paths import write_text

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


class Writer:
    """Appends to metrics.jsonl and TensorBoard of a run that restarts at `step`, whose evaluation
    comes again where it is `unscored`."""

    def __init__(self, workdir: Path, *, step: int, unscored: bool = False):
        from tensorboardX import SummaryWriter

        cut_back(workdir / METRICS, step, unscored=unscored)
        self._file = open(workdir / METRICS, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        # purge_step hides what a killed run wrote beyond the restored step.
        self._events = SummaryWriter(str(workdir), purge_step=step + 1 if step else None)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of numbers and sentences under their metrics.jsonl names, at once visible to
        readers.
        """
        plain = {name: _plain(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        self._file.flush()
        for name, value in plain.items():
            if isinstance(value, str):
                self._events.add_text(name, value, step)
            elif value is not None:
                self._events.add_scalar(name, value, step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """A picture that lies at `path`, for TensorBoard; nothing where there is none."""
        if path.is_file():
            with path.open("rb") as file, Image.open(file) as picture:
                self._events.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def flush(self) -> None:
        """Brings TensorBoard's events to disk; metrics.jsonl is there already."""
        self._events.flush()

    def close(self) -> None:
        """Closes both."""
        self._file.close()
        self._events.close()


def _plain(value: Any) -> float | int | str | None:
    if isinstance(value, str | int):
        return value
    return float(value) if math.isfinite(value) else None
