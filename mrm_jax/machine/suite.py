"""One prepared check of an accelerator that nothing was run on yet: `bench --suite accelerator`.

It reads no data and needs jax, flax, optax, numpy and ml_collections alone. Each piece
(`suite_pieces.py`) is a process of its own, so that a compilation that takes too long can be ended
and the device's memory is free for the next one. Loads no jax: the device is the pieces'.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import mrm_jax
from mrm_jax.children import lifeline, passing_folder
from mrm_jax.errors import UsageError
from mrm_jax.options import nearest
from mrm_jax.paths import write_text

SECONDS = 300.0
"""How long all pieces may take together."""
COMMAND = (sys.executable, "-m", "mrm_jax.machine.suite_pieces")
_LEAST = 2.0  # seconds; with less left a piece is not begun


class Piece(NamedTuple):
    """A part of the check and the seconds that it may take."""

    name: str
    limit: float
    what: str


PIECES = (
    Piece("device", 30, "what the device is, which versions, how fast its products"),
    Piece("parity", 75, "losses and gradient norms of narrow networks against a CPU's"),
    Piece("daformer", 90, "a step of DAFormer + MRM, MiT-B5"),
    Piece("dinov2", 60, "a step of DACS + MRM, DINOv2 ViT-B with a light head"),
    Piece("mic", 120, "a step of MIC + MRM, MiT-B5"),
    Piece("inference", 60, "a picture of 512 x 1024 through MiT-B5 with SegFormer's head"),
    Piece("inference_torch", 60, "the same by PyTorch, eager and compiled"),
    Piece("dinov2_fused", 60, "dinov2 with cuDNN's attention"),
)
"""The most valuable first."""


def chosen(names: str | None) -> tuple[Piece, ...]:
    """The pieces `names` (with commas between; None: all), in their order. Raises UsageError."""
    known = {piece.name: piece for piece in PIECES}
    wanted = list(known) if names is None else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise UsageError.of(
                "--pieces", name, f"; there are {', '.join(known)}.{nearest(name, known)}"
            )
    return tuple(piece for piece in PIECES if piece.name in wanted)


def run_suite(
    to: Path,
    pieces: Collection[Piece],
    *,
    limit: float = SECONDS,
    small: bool = False,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Runs `pieces` one after the other in `limit` seconds; what is found so far is in the file
    `to` after each of them:

    `suite`, `version` (of mrm_jax), `small`, `limit_seconds`, `seconds` and `pieces`, for each of
    them `what`, `status` (waiting, running; done; failed with `error`; stopped: it ran over its
    limit; left out: no time was left), `limit_seconds`, `seconds`, `doing`, the last thing that it
    began, and `found`, which a failed or stopped piece may have part of.

    small: tiny networks and pictures, to try the check itself out. Raises UsageError for a file
    that cannot be written.
    """
    began = time.monotonic()
    rows = {piece.name: {"what": piece.what, "status": "waiting"} for piece in pieces}
    report: dict[str, Any] = {
        "suite": "accelerator",
        "version": mrm_jax.__version__,
        "small": small,
        "limit_seconds": limit,
        "seconds": 0.0,
        "pieces": rows,
    }

    def write() -> None:
        report["seconds"] = round(time.monotonic() - began, 2)
        _write(to, report)

    write()
    for piece in pieces:
        left = min(piece.limit, limit - (time.monotonic() - began))
        row = rows[piece.name]
        if left < _LEAST:
            row["status"] = "left out"
            continue
        row |= {"status": "running", "limit_seconds": round(left, 1)}
        write()
        say(f"{piece.name}: {piece.what}; at most {left:.0f} s ...")
        row |= _run(piece, left, small)
        write()
        say(f"{piece.name}: {row['status']} after {row['seconds']} s")
    write()
    return report


def _write(to: Path, report: dict[str, Any]) -> None:
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        write_text(to, json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise UsageError.at(
            "--json", f" cannot be written: {error.strerror or error}.", value=to
        ) from error


def _run(piece: Piece, limit: float, small: bool) -> dict[str, Any]:
    """A piece in a process of its own, ended after `limit` seconds with all that it started."""
    words = [*COMMAND, piece.name, *["--small"] * small]
    began, root = time.monotonic(), str(Path(mrm_jax.__file__).parents[1])
    with passing_folder() as (folder, _), lifeline() as (pipe, more):
        out, err = folder / "out", folder / "err"
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        with out.open("wb") as stdout, err.open("wb") as stderr:
            child = subprocess.Popen(
                words,
                env=os.environ | more | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(pipe,),
                start_new_session=True,
            )
        code = None
        try:
            with suppress(subprocess.TimeoutExpired):
                code = child.wait(limit)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        told = _told(out.read_text(errors="replace"))
        last = err.read_text(errors="replace").strip().splitlines()[-20:]
    if code is None:
        told["status"] = "stopped"
    elif code != 0 and "error" not in told:  # it could not say why itself
        told |= {"status": "failed", "error": f"exit code {code}", "stderr": last}
    else:
        told["status"] = "failed" if "error" in told else "done"
    return told | {"seconds": round(time.monotonic() - began, 2)}


def _told(text: str) -> dict[str, Any]:
    """What a piece wrote, an object a line; a line that was cut off, or another's, is none."""
    told: dict[str, Any] = {"found": {}}
    for line in text.splitlines():
        with suppress(ValueError):
            parts = json.loads(line)
            if isinstance(parts, dict):
                told["found"] |= parts.pop("found", {})
                told |= parts
    return told


def suite_text(report: dict[str, Any]) -> str:
    """A report for people: a line a piece."""
    rows = []
    for name, row in report["pieces"].items():
        end = row.get("error") or (f"while {row['doing']}" if row["status"] == "stopped" else "")
        rows.append(f"  {name:16}{row['status']:10}{row.get('seconds', 0):7.1f} s  {end}".rstrip())
    return "\n".join([f"{report['suite']}: {report['seconds']:.1f} s", *rows])
