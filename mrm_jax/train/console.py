"""What a person sees of a run: a banner, progress with rate and time left, tables of scores.

On a terminal a bar that stays in place; in a file plain lines, one a log interval.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mrm_jax import terminal
from mrm_jax.evaluation.scores import EvaluationResult
from mrm_jax.evaluation.table import score_table
from mrm_jax.types import TrainState

_PASSES = (
    *("source", "augmented", "mixed", "masked", "inpainted"),
    *("reconstructed", "reconstructed_source", "reconstructed_target"),
)
_LOSSES = (
    *("ce", "ce_fused", "ce_detail", "feature_distance"),
    *("contrast", "pixels", "features"),
)
_SHOWN = (
    "total/loss",
    *(f"{name}/{loss}" for name in _PASSES for loss in _LOSSES),
    "teacher/confident_share",
)


class Screen:
    """Prints; `with` it, so that a terminal is left in order whatever happens."""

    def __init__(self, steps: int, console: Console | None = None, *, quiet: bool = False):
        # soft_wrap in `say` leaves lines whole in log files, however narrow rich thinks they are.
        self._console = console or terminal.console(quiet=quiet)
        self._steps = steps
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("train", total=steps, rate="")

    def __enter__(self) -> Screen:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """One line of text."""
        self._console.print(line, markup=False, soft_wrap=True)

    def warn(self, line: str) -> None:
        """One line that should not be overlooked."""
        self._console.print(f"WARNING {line}", markup=False, soft_wrap=True, style="bold yellow")

    def advance(self, step: int, pace: str = "") -> None:
        """Moves the bar to `step`; nothing in a log file."""
        self._bar.update(self._task, completed=step)
        if pace:
            self._bar.update(self._task, rate=pace)

    def metrics(self, step: int, values: Mapping[str, float], pace: str) -> None:
        """The losses of a step; on a terminal the bar already shows the pace."""
        parts = [f"{name} {values[name]:.4g}" for name in _SHOWN if name in values]
        end = "" if self._console.is_terminal or not pace else f"  {pace}"
        self.say(f"step {step}/{self._steps}  {'  '.join(parts)}{end}")

    def picks(self, step: int, found: Mapping[str, float]) -> None:
        """The scores without labels, in one line; nothing where there are none."""
        if not found:
            return
        parts = [f"{name.rpartition('/')[2]} {value:.3f}" for name, value in found.items()]
        self.say(f"step {step}/{self._steps}  without labels: {'  '.join(parts)}")

    def scores(self, step: int, found: Mapping[str, EvaluationResult]) -> None:
        """A table of an evaluation: one row a class, one column a network, the protocol below."""
        self._console.print(score_table(step, found))
        self.say(next(iter(found.values())).sentence())


def pace_text(steps_per_second: float, seconds_left: float) -> str:
    """Rate and time left, such as "3.21 steps/s, 0:01:50 left"."""
    left = datetime.timedelta(seconds=round(seconds_left))
    if steps_per_second >= 0.1:
        return f"{steps_per_second:.2f} steps/s, {left} left"
    return f"{1 / max(steps_per_second, 1e-9):.1f} s/step, {left} left"


def parameters(state: TrainState) -> dict[str, int]:
    """Number of parameters of every part of the network."""
    parts: dict[str, Any] = dict(state.params.get("segmentor", {}))
    for name in ("rebuilder", "auxiliary"):
        if jax.tree.leaves(state.params.get(name, {})):
            parts[name] = state.params[name]
    return {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in parts.items()}


def banner(mesh: Mesh, workdir: str, state: TrainState, start: int) -> list[str]:
    """What runs where, in a few lines."""
    devices = list(mesh.devices.flat)
    kinds = sorted({device.device_kind for device in devices})
    counts = parameters(state)
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    place = f"goes on from step {start}" if start else "starts"
    return [
        f"devices: {len(devices)} x {', '.join(kinds)} ({devices[0].platform}), sharing the batch",
        f"workdir: {workdir} ({place})",
        f"parameters: {sum(counts.values()):,} ({parts})",
    ]
