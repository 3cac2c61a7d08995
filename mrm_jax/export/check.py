"""An export compared with the network that it was made of: its program, in another process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mrm_jax.data.drawn.scenes import draw_scene
from mrm_jax.errors import RunError
from mrm_jax.export.formats import Exported, Format
from mrm_jax.export.program import probabilities

TOLERANCE = 1e-3
"""Largest difference of a probability: float32 sums in another order, through up to 50 blocks. Two
classes nearer than this tie."""
PICTURES = 2
_RUN = """
import runpy, sys
import numpy as np
segment = runpy.run_path(sys.argv[1])["segment"]
ids, found = segment(np.load(sys.argv[2]))
np.savez(sys.argv[3], ids=np.asarray(ids), probabilities=np.asarray(found))
"""
_OURS = """
import sys
from pathlib import Path
import numpy as np
from mrm_jax.export.reopen import segmenter
ids, found = segmenter(Path(sys.argv[1]).parent)(np.load(sys.argv[2]))
np.savez(sys.argv[3], ids=ids, probabilities=found)
"""


@dataclass(frozen=True)
class Comparison:
    """difference: the largest of a probability. ties: pixels of other classes whose probabilities
    are nearer than `TOLERANCE`. by: what opened the export."""

    difference: float
    ties: int
    pixels: int
    by: str

    def sentence(self) -> str:
        """For people."""
        apart = f"in {self.ties} of {self.pixels} pixels, all of them ties"
        return (
            f"Reopened by {self.by} in another process and compared on {PICTURES} drawn pictures: "
            f"probabilities differ by at most {self.difference:.1e} (tolerance {TOLERANCE:g}), "
            f"classes {apart if self.ties else 'nowhere'}."
        )


def compared(folder: Path, form: Format, exported: Exported, size: tuple[int, int]) -> Comparison:
    """Runs the program of `folder` on drawn pictures of `size` in another process and compares.

    Without the packages that it needs (Hugging Face's alone) this package reads the files instead.
    Raises RunError where that process fails, or what it finds differs.
    """
    pictures = np.stack([_picture(i, size) for i in range(PICTURES)])
    theirs = all(find_spec(name) is not None for name in form.imports)
    ids, found = _elsewhere(_RUN if theirs else _OURS, folder, pictures)
    wanted = probabilities(exported.net, pictures)
    by = "run.py" if theirs else f"mrm_jax ({' and '.join(form.imports)} are not installed here)"
    difference = float(np.abs(found - wanted).max())
    other = ids != wanted.argmax(-1)
    chosen = np.take_along_axis(wanted, ids[..., None].astype(np.int64), -1)[..., 0]
    apart = other & (wanted.max(-1) - chosen > TOLERANCE)
    # Not "difference > TOLERANCE", which is false for NaN.
    if apart.any() or not difference <= TOLERANCE:
        raise RunError(
            f"{by} of the export finds something else than the network: probabilities differ by "
            f"{difference:.1e}, classes that are no ties in {int(apart.sum())} of {ids.size} "
            "pixels; nothing was kept",
            "use another --format, or --no_check to look at the files.",
            field="--format",
        )
    return Comparison(difference, int(other.sum()), ids.size, by)


def _picture(index: int, size: tuple[int, int]) -> np.ndarray:
    """A drawn street u8[H,W,3], a corner of one where that is too small to be drawn."""
    height, width = size
    drawn, _ = draw_scene(0, "val", index, size=(max(height, 32), max(width, 64)))
    return drawn[:height, :width]


def _elsewhere(code: str, folder: Path, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with tempfile.TemporaryDirectory(prefix="mrm_jax_") as place:
        given, found = Path(place) / "pictures.npy", Path(place) / "found.npz"
        np.save(given, pictures)
        words = [sys.executable, "-c", code, str(folder / "run.py"), str(given), str(found)]
        # On the CPU: this process may hold the accelerator, and there products are rounded.
        done = subprocess.run(
            words,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode or not found.is_file():
            last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
            raise RunError(
                f"The export does not run in another process: {last[0][:300]}; nothing was kept",
                "use another --format, or --no_check to look at the files.",
                field="--format",
            )
        with np.load(found) as arrays:
            return arrays["ids"], arrays["probabilities"]
