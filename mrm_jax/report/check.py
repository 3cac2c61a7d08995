"""What `check` found as one HTML file and a PNG a split, which need nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from mrm_jax.config import Classes
from mrm_jax.data.checked import Checked
from mrm_jax.paths import below, write_bytes, write_text
from mrm_jax.report.page import page
from mrm_jax.report.panels import contact_sheet

NAME = "check.html"


def write_check(
    to: Path, title: str, facts: Sequence[str], classes: Classes, found: Sequence[Checked]
) -> Path:
    """Writes check.html and contact_sheet_<split>.png into `to`; returns the page's path."""
    to.mkdir(parents=True, exist_ok=True)
    sheets = {}
    for checked in found:
        if checked.shown:
            sheet = contact_sheet(checked.shown, classes, f"{title}, {checked.split}")
            png = io.BytesIO()
            Image.fromarray(sheet).save(png, "PNG")
            sheets[checked.split] = png.getvalue()
            write_bytes(below(to, f"contact_sheet_{checked.split}.png"), png.getvalue())
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [f'<p class="faint">{escape(fact)}</p>' for fact in facts]
    parts.append(_findings(found))
    for checked in found:
        parts += [f"<h2>{escape(checked.split)}</h2>", _split(checked, classes)]
        if checked.split in sheets:
            data = base64.b64encode(sheets[checked.split]).decode()
            parts.append(
                f'<figure class="sheet"><img alt="contact sheet of {escape(checked.split)}" '
                f'src="data:image/png;base64,{data}"></figure>'
            )
    write_text(to / NAME, page(title, "\n".join(parts)))
    return to / NAME


def _findings(found: Sequence[Checked]) -> str:
    every = [finding for checked in found for finding in checked.findings]
    if not every:
        return '<div class="card"><p>Nothing was found.</p></div>'
    rows = "".join(
        f'<tr><td><span class="badge {"bad" if f.severity == "error" else "warn"}">{f.severity}'
        f"</span></td><td>{escape(f.split)}</td><td>{escape(f.what)}</td><td>{f.count}</td>"
        f"<td>{escape(f.example)}</td><td>{escape(f.fix)}</td></tr>"
        for f in sorted(every, key=lambda f: f.severity)
    )
    head = "".join(f"<th>{n}</th>" for n in ("", "split", "what", "how many", "example", "fix"))
    return f'<div class="card scroll"><table class="plain"><tr>{head}</tr>{rows}</table></div>'


def _split(checked: Checked, classes: Classes) -> str:
    sizes = ", ".join(f"{h} x {w} ({n})" for (h, w), n in checked.sizes.most_common(4))
    of = f" of {checked.expected} official" if checked.expected else ""
    line = f"{checked.pictures} pictures{of}, {checked.read} read; height x width px: {sizes}"
    if not checked.counted:
        return f'<div class="card"><p>{escape(line)}; no labels</p></div>'
    line += f"; {checked.ignored:.1%} of the labels' pixels are ignored"
    share = checked.pixels / max(int(checked.pixels.sum()), 1)
    rows = ""
    for name, colour, part, held in zip(
        classes.names, classes.colours, share, np.asarray(checked.holding), strict=True
    ):
        fill = f"background:rgb({','.join(map(str, colour))})"
        width = f"width:{100 * part / max(share.max(), 1e-9):.1f}%"
        rows += (
            f'<tr><td><i class="swatch" style="{fill}"></i>{escape(name)}</td>'
            f'<td><div class="value"><span>{100 * part:.2f}</span><div class="bar">'
            f'<i style="{width};{fill}"></i></div></div></td><td>{held}</td></tr>'
        )
    head = "<tr><th>class</th><th>% of the counted pixels</th><th>pictures with it</th></tr>"
    table = f'<table class="iou">{head}{rows}</table>'
    return f'<div class="card scroll"><p>{escape(line)}</p>{table}</div>'
