"""A run's report: one HTML file that needs nothing else, made from the files of its workdir."""

from __future__ import annotations

import base64
import math
from contextlib import suppress
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from mrm_jax import stop
from mrm_jax.errors import RunError
from mrm_jax.paths import what_is_wrong, write_text
from mrm_jax.report import facts, record, scores, selection
from mrm_jax.report.facts import drawn_mark
from mrm_jax.report.page import page
from mrm_jax.report.record import RunRecord

NAME = "report.html"


def write_report(workdir: str | Path) -> Path:
    """Writes `report.html` of a run into its workdir and returns its path.

    Reads config.json, environment.json, metrics.jsonl, evaluation.json and views/*.png; what is
    missing or torn is left out. The file is replaced in one step. Raises FileNotFoundError when
    there is no such folder, RunError where a file's values are none that a run writes, and where
    the folder cannot be written.
    """

    found = record.read_record(workdir)
    path = found.workdir / NAME
    try:
        text = report_page(found)
    except _ODD as error:
        raise RunError.at(
            found.workdir / _odd_file(found),
            f" holds a value that no run writes ({type(error).__name__}: {error})",
            "repair it or move it away, then give the same command again.",
        ) from error
    try:
        write_text(path, text)
    except OSError as error:
        raise RunError.at(path, f" cannot be written: {what_is_wrong(error)}.") from error
    return path


_ODD = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    OSError,
)
"""What comes of values of other types, and of pictures that cannot be read."""


def _odd_file(found: RunRecord) -> str:
    """The file without which a report can be written."""
    parts: dict[str, dict[str, Any]] = {
        "metrics.jsonl": {"lines": ()},
        "config.json": {"config": {}},
        "environment.json": {"environment": {}},
        "evaluation.json": {"evaluation": {}},
        "views": {"sheets": {}},
    }
    for name, without in parts.items():
        with suppress(*_ODD):
            report_page(replace(found, **without))
            return name
    return "."


def report_page(run: RunRecord) -> str:
    """The report as HTML text: no scripts, no addresses, pictures inside."""
    sections = (
        _title,
        _headline,
        _alarms,
        _command,
        selection.checkpoints,
        scores.network_class_table,
        scores.curves,
        _pictures,
        facts.confusion,
        facts.configuration,
        facts.time_and_memory,
        facts.environment_rows,
    )
    parts = []
    for section in sections:
        stop.look()
        parts.append(section(run))
    body = "\n".join(part for part in parts if part)
    return page(_name(run), body, f" from the files in this run's workdir.{_unread(run)}")


def _name(run: RunRecord) -> str:
    return run.workdir.resolve().name or "run"


def _unread(run: RunRecord) -> str:
    if not run.unread:
        return ""
    lines = "1 line" if run.unread == 1 else f"{run.unread} lines"
    return f" {lines} of metrics.jsonl could not be read and left out."


def _method(run: RunRecord) -> str:
    parts = [str(run.option("method.kind", ""))]
    if run.option("method.mrm.enabled"):
        parts.append("MRM")
    if run.option("method.augmented_source"):
        parts.append("augmented source")
    return " + ".join(part for part in parts if part)


def _steps(run: RunRecord) -> tuple[int | None, int | None]:
    """(last step seen, steps planned)."""
    planned = run.option("train.steps")
    return run.last_step(), planned if isinstance(planned, int) else None


def _title(run: RunRecord) -> str:
    done, planned = _steps(run)
    badges = []
    if drawn := run.drawn():
        badges.append(("drawn", f"drawn data: {', '.join(drawn)}"))
    if method := _method(run):
        badges.append(("", method))
    if (seed := run.option("seed")) is not None:
        badges.append(("", f"seed {seed}"))
    if done is None:
        badges.append(("warn", "no metrics yet"))
    elif planned and done < planned:
        badges.append(("warn", f"stopped at step {done} of {planned}"))
    else:
        badges.append(("", f"{done} steps"))
    marks = "".join(f'<span class="badge {kind}">{escape(text)}</span>' for kind, text in badges)
    return f'<h1>{escape(_name(run))}</h1><div class="badges">{marks}</div>'


def _headline(run: RunRecord) -> str:
    student, teacher = run.scores("student"), run.scores("teacher")
    if not student and not teacher:
        return '<div class="card"><p>No evaluation has been written yet.</p></div>'
    network, found = ("student", student) if student else ("teacher", teacher)
    final, others = found[-1], []
    if student and teacher:
        others.append((_percent(teacher[-1].mean_iou), f"teacher, step {teacher[-1].step}"))
    if len(found) > 1 and (top := record.best(found)):
        others.append(
            (
                _percent(top.mean_iou),
                f"best {network}, step {top.step}: the highest of {len(found)} evaluations, "
                "chosen by the labels it is scored on, so the score is too high",
            )
        )
    accuracy = dict(run.series(f"eval/{network}/pixel_accuracy")).get(final.step)
    if accuracy is not None:
        others.append((_percent(accuracy), f"pixel accuracy of the {network}, step {final.step}"))
    extra = "".join(
        f'<div><b>{v}</b><span class="small faint">{escape(t)}</span></div>' for v, t in others
    )
    number = "–" if math.isnan(final.mean_iou) else f"{100 * final.mean_iou:.1f}"
    done, planned = _steps(run)
    last = "final step" if planned is not None and final.step >= planned else "last evaluation"
    return (
        f'<div class="card head"><div><div class="big">{number}<small>% mIoU</small></div>'
        f'<span class="faint">over {escape(run.covered(final))}</span><br>'
        f'<span class="faint">{network}, {last} '
        f"({final.step}){drawn_mark(run, 'evaluation')}</span></div>"
        f'<div class="others">{extra}</div><p class="protocol '
        f'small">{escape(_protocol(run))}</p></div>'
    )


def _protocol(run: RunRecord) -> str:
    """How the scores were computed: evaluation.json's sentence, or what config.json implies."""
    if sentence := _recorded_protocol(run):
        return f"Protocol: {sentence}."
    if not run.config:
        return "Protocol unknown: the workdir has no config.json."
    kind = run.option("data.evaluation.kind")
    if kind == "drawn":
        look, split = run.option("data.evaluation.look"), run.option("data.evaluation.split")
        where = f"{run.option('data.evaluation.count')} drawn scenes ({look}, {split})"
    else:
        where = (
            f"pictures of {run.option('data.evaluation.path') or run.option('data.target.path')}"
        )
    if limit := run.option("evaluation.limit"):
        where = f"the first {limit} {where.removeprefix(str(limit)).strip()}"
    names = run.option("data.classes.names") or []
    counted = run.option("evaluation.classes") or names
    of = f" of {len(names)}" if len(counted) != len(names) else ""
    if run.option("evaluation.mode") == "slide":
        window, stride = run.option("evaluation.window"), run.option("evaluation.stride")
        how = f"windows of {_size(window)} every {_size(stride)} px"
    else:
        how = "whole pictures"
    scales = ", ".join(map(str, run.option("evaluation.scales") or ()))
    several = scales not in ("", "1.0")
    return (
        f"Protocol: mean IoU over {len(counted)}{of} classes on {where}, {how}, "
        f"labels at their own size, {f'scales {scales}' if several else 'one scale'}, "
        f"{'mirrored too' if run.option('evaluation.flip') else 'no flips'}."
    )


def _recorded_protocol(run: RunRecord) -> str:
    """The protocol in evaluation.json, where it belongs to the last scores of metrics.jsonl."""
    found = run.scores("student") or run.scores("teacher")
    fields = run.evaluation.get("protocol")
    if not found or run.evaluation.get("step") != found[-1].step or not isinstance(fields, dict):
        return ""
    return str(fields.get("sentence", ""))


def _size(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _percent(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{100 * value:.1f} %"


def _alarms(run: RunRecord) -> str:
    """What the run's sentinel wrote, and classes that the last student never finds."""
    rows = [
        f"step {line['step']}: {line[name]}"
        for line in run.lines
        for name in line
        if name.startswith("alarm/")
    ]
    found = run.scores("student")
    lost = [name for name, value in found[-1].iou.items() if value < 0.005] if found else []
    if lost:
        never = f"the student finds nothing of {', '.join(lost)} (IoU below 0.5 %)"
        rows.append(f"step {found[-1].step}: {never}")
    if not rows:
        return ""
    items = "".join(f"<li>{escape(row)}</li>" for row in rows[-30:])
    return f'<h2>Alarms</h2><div class="card alarm"><ul class="small">{items}</ul></div>'


def _command(run: RunRecord) -> str:
    command = run.environment.get("command")
    if not command:
        return ""
    commit = run.environment.get("commit")
    at = f" at commit <code>{escape(str(commit))}</code>" if commit else ""
    return (
        f"<h2>Command</h2><pre>{escape(str(command))}</pre>"
        f'<p class="small faint">To do it again, run this{at} with the package versions listed '
        "under Environment. Data order and every draw follow from the seed and the step; "
        "on a CPU the figures come back exactly, elsewhere up to rounding.</p>"
    )


def _pictures(run: RunRecord) -> str:
    figures = []
    for kind, sheets in run.sheets.items():
        chosen = dict.fromkeys((sheets[0], sheets[-1]))
        for step, path in chosen:
            title = f"{kind or 'views'}, step {step}".replace("_", " ")
            sets = ("evaluation",) if kind.startswith("eval") else ("source", "target")
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            figures.append(
                f'<figure class="sheet"><figcaption>{escape(title)}'
                f"{drawn_mark(run, *sets)}</figcaption>"
                f'<div class="scroll"><img alt="{escape(title)}" '
                f'src="data:image/png;base64,{data}"></div></figure>'
            )
    return f"<h2>Pictures, first and last</h2>{''.join(figures)}" if figures else ""
