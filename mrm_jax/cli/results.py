"""The folder that `predict` fills: pictures of results, a table of shares, and whose they are.

`prediction.json` says by which network and options the results there were made. A call with the
same ones goes on with what is missing; another one is refused. `class_shares.csv` has a row for
every picture that is done, written when all of its files are.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrm_jax.errors import RunError, UsageError
from mrm_jax.evaluation.network import Prediction
from mrm_jax.evaluation.pictures import PRODUCTS, VIDEOS, video_suffix, write_png
from mrm_jax.paths import below, replaced, shown, what_is_wrong, write_text
from mrm_jax.report.table import cells

TABLE, STAMP = "class_shares.csv", "prediction.json"
CONFIDENCE = 65535
"""What a confidence of 1 is in its 16-bit picture, and 0 is 0."""


@dataclass(frozen=True)
class Look:
    """What is made of a picture: `products` of `pictures.PRODUCTS`; of overlays the share 0..1 of
    the colours, and whether they have a legend. frames: videos become pictures, too."""

    products: tuple[str, ...]
    opacity: float = 0.5
    legend: bool = False
    frames: bool = False

    def pictures(self, prediction: Prediction) -> dict[str, np.ndarray]:
        """The products as PNGs hold them: u8[H,W], RGB u8[H,W,3] or, of confidence, u16[H,W]."""
        made = {
            "ids": lambda: prediction.ids,
            "colour": prediction.colour,
            "overlay": lambda: prediction.overlay(self.opacity, self.legend),
            "confidence": lambda: np.rint(prediction.confidence * CONFIDENCE).astype(np.uint16),
        }
        return {product: made[product]() for product in self.products}


class Results:
    """The folder `to`, opened for results of `stamp` with the products of `look`."""

    def __init__(self, to: Path, look: Look, classes: Sequence[str], stamp: Mapping[str, Any]):
        """Raises UsageError where other results are there, RunError where none can be written."""
        self.to, self.look, self.classes = to, look, tuple(classes)
        header = cells(["name", "picture", "height", "width", *classes])
        try:
            to.mkdir(parents=True, exist_ok=True)
            rows = self._rows_of_before(stamp, header)
            self.done = {(row[0], row[1]): row for row in rows}
            # The stamp last: a table of before without one is of nobody.
            with replaced(to / TABLE) as new:  # rows go there as they come, under the right name
                # As bytes: fsspec's paths take no newline.
                self._table = io.TextIOWrapper(new.open("wb"), encoding="utf-8", newline="")
            self._rows = csv.writer(self._table)
            self._rows.writerows([header, *self.done.values()])
            self._table.flush()
            write_text(to / STAMP, json.dumps(stamp, indent=1) + "\n")
        except OSError as error:
            raise RunError.at(
                "--to", f" cannot be written: {what_is_wrong(error)}.", value=to
            ) from error

    def _rows_of_before(self, stamp: Mapping[str, Any], header: list) -> list[list[str]]:
        """Rows of pictures whose results are all there."""
        try:
            found = json.loads((self.to / STAMP).read_bytes())
        except FileNotFoundError:
            return []
        except ValueError:
            found = None
        if found != json.loads(json.dumps(stamp)):
            raise UsageError.at(
                "--to",
                f" holds results of {_difference(found, stamp)}",
                "give another folder, or remove that one.",
                value=self.to,
            )
        try:
            text = (self.to / TABLE).read_bytes().decode("utf-8")
            rows = list(csv.reader(io.StringIO(text, newline="")))
        except (FileNotFoundError, ValueError, csv.Error):  # gone or damaged
            return []
        if not rows or rows[0] != header:
            return []
        return [r for r in rows[1:] if len(r) == len(header) and self._is_there(r)]

    def _is_there(self, row: Sequence[str]) -> bool:
        name, picture, height, width, *_ = row
        name, video = name.removeprefix("'"), Path(picture).suffix.lower() in VIDEOS
        try:
            if video and not self.look.frames:
                return self.video(name, (int(height), int(width))).is_file()
            # A row of a video itself follows on those of all its frames.
            alone = video and not name.rpartition("/")[0].endswith("_frames")
            return alone or all(path.is_file() for path in self.files(name).values())
        except (UsageError, ValueError):
            return False

    def has(self, name: str, picture: Path) -> bool:
        """Whether the results called `name` of a picture were there when the folder was opened."""
        return tuple(map(str, cells([name, picture]))) in self.done

    def files(self, name: str) -> dict[str, Path]:
        """Where the products called `name` are."""
        return {p: below(self.to, f"{name}{PRODUCTS[p]}.png") for p in self.look.products}

    def video(self, name: str, size: tuple[int, int]) -> Path:
        """Where the overlay video called `name` of `size` (height, width) is."""
        return below(self.to, f"{name}{PRODUCTS['overlay']}{video_suffix(size)}")

    def write(self, name: str, prediction: Prediction) -> None:
        """Writes the products of a picture. Raises RunError, caused by the OSError."""
        files = self.files(name)
        for product, picture in self.look.pictures(prediction).items():
            write_png(files[product], picture)

    def overlay(self, prediction: Prediction) -> np.ndarray:
        """The overlay RGB u8[H,W,3] as it is asked for."""
        return prediction.overlay(self.look.opacity, self.look.legend)

    def add(self, name: str, picture: Path, size: Sequence[int], shares: np.ndarray | None) -> None:
        """Says that a picture of `size` (height, width) is done, with the classes' shares f[K], or
        None where those of its frames stand before."""
        numbers = [""] * len(self.classes)
        if shares is not None:
            numbers = [f"{share:.6f}" for share in shares]
        self._rows.writerow(cells([name, picture, *size, *numbers]))
        self._table.flush()

    def close(self) -> None:
        """Closes the table."""
        self._table.close()


def shares(ids: np.ndarray, classes: int) -> np.ndarray:
    """The share f64[K] of pixels of each class in train ids u8[H,W]."""
    return np.bincount(ids.ravel(), minlength=classes)[:classes] / ids.size


def _difference(found: Any, stamp: Mapping[str, Any]) -> str:
    """What sets the results there apart from those that are asked for, in a few words."""
    if not isinstance(found, Mapping):
        return "another program"
    other = [key for key in stamp if found.get(key) != json.loads(json.dumps(stamp[key]))]
    if "checkpoint" in other or not other:
        return "another network"
    key = other[0]
    return f"other options ({key}: {shown(found.get(key))} there, {shown(stamp[key])} here)"
