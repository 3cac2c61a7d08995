"""The scores of an evaluation as a table for people."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from rich.table import Table

from mrm_jax.evaluation.scores import EvaluationResult


def score_table(step: int, found: Mapping[str, EvaluationResult]) -> Table:
    """One row a class, one column a network, means below."""
    table = Table(title=f"Evaluation at step {step}, IoU in %", title_justify="left")
    table.add_column("class")
    for name in found:
        table.add_column(name, justify="right")
    columns = [evaluation.per_class() for evaluation in found.values()]
    for row in columns[0]:
        table.add_row(row, *(_percent(column[row]) for column in columns))
    table.add_section()
    means = {"mIoU": [e.mean_iou for e in found.values()]}
    for name in next(iter(found.values())).also:
        means[name] = [e.also[name] for e in found.values()]
    for name, values in means.items():
        table.add_row(name, *map(_percent, values), style="bold")
        over = [e.covered()[name] for e in found.values()]
        table.add_row("  over classes", *(f"{classes} of {of}" for classes, of in over))
    table.add_row("pixel accuracy", *(_percent(e.pixel_accuracy) for e in found.values()))
    errors = (_percent(e.calibration_error) for e in found.values())
    table.add_row("calibration error (ECE)", *errors)
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.1%}".rstrip("%")
