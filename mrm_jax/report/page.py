"""What every page is made of: its frame, and tables of text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mrm_jax import __version__
from mrm_jax.report.theme import CSS


def page(title: str, body: str, remark: str = "") -> str:
    """An HTML file that needs nothing else; `remark` is HTML that ends the line at its foot."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>\n{body}\n"
        f"<footer>Written by mrm_jax {escape(__version__)}{remark or '.'}</footer>\n"
        "</main></body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text in a card, which scrolls where it is wider than the page."""
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return (
        f'<div class="card scroll"><table class="plain lines"><tr>{cells}</tr>{lines}</table></div>'
    )
