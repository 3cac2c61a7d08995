"""Scores of the evidence's final networks where local evidence is taken away.

    python docs/results/evidence/erased.py runs/evidence/synthetic --to synthetic/erased.json

A folder without runs makes the table anew from the JSON file.

If MRM teaches a network to read the surroundings, it should lose less than its control where the
place itself says less. Every picture of the evaluation is spoilt in three ways, each from a seed of
its own (the picture's number), before the network reads it; labels stay as they are:

- occluders: grey rectangles, of a fifth of the picture's sides, over a fourth of it;
- glare: a bright spot that fades out over a third of the picture's height;
- blur: a Gaussian of 3 px (sigma, at 360 x 480).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from mrm_jax import arms
from mrm_jax.data.pipeline import Example, evaluation_set
from mrm_jax.evaluation.evaluator import evaluate_networks
from mrm_jax.opening import opened_networks
from mrm_jax.report.comparison import estimate
from mrm_jax.runs.checkpoint import load_run

ARMS = (
    *("dacs", "dacs + control", "dacs + mrm"),
    *("daformer", "daformer + control", "daformer + mrm"),
    *("mic", "mic + control", "mic + mrm"),
)
COMPARED = (
    ("dacs + mrm", "dacs + control"),
    ("daformer + mrm", "daformer + control"),
    ("mic + mrm", "mic + control"),
    ("mic + mrm", "mic"),
)
COVERED = 0.25


def occluders(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grey rectangles until a fourth of the picture u8[H,W,3] is covered."""
    height, width = image.shape[:2]
    high, wide = height // 5, width // 5
    covered = np.zeros((height, width), bool)
    while covered.mean() < COVERED:
        top, left = rng.integers(height - high + 1), rng.integers(width - wide + 1)
        covered[top : top + high, left : left + wide] = True
    return np.where(covered[..., None], np.uint8(128), image)


def glare(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A white spot in the middle three fifths of the picture, a Gaussian in its brightness."""
    height, width = image.shape[:2]
    y, x = rng.uniform(0.2, 0.8, 2) * (height, width)
    rows, columns = np.mgrid[:height, :width]
    distance = ((rows - y) ** 2 + (columns - x) ** 2) / (height / 6) ** 2
    light = np.exp(-distance / 2)[..., None]
    return (image + light * (255 - image.astype(np.float32))).astype(np.uint8)


def blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every channel smoothed by a Gaussian of 3 px."""
    return ndimage.gaussian_filter(image, (3, 3, 0))


WAYS = {"occluders": occluders, "glare": glare, "blur": blur}


class Spoilt(Sequence):
    """Labelled pictures, spoilt when they are read; a picture is spoilt alike for every network."""

    def __init__(self, examples: Sequence[Example], way: str):
        self._examples, self._way = examples, way

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        example = self._examples[index]
        rng = np.random.default_rng((list(WAYS).index(self._way), index))
        return example._replace(image=WAYS[self._way](example.image, rng))


def scores(folder: Path) -> dict[str, float]:
    """The student's mIoU of a run's last checkpoint under every way of spoiling."""
    net = opened_networks(load_run(folder), "student")["student"]
    examples = evaluation_set(net.config)
    sets = {"clean": examples, **{way: Spoilt(examples, way) for way in WAYS}}
    found = {}
    for way, pictures in sets.items():
        result = evaluate_networks(net.config, net.module, {"student": net.variables}, pictures)
        found[way] = result["student"].mean_iou
    return found


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """In Markdown: mIoU of every arm in %, mean over seeds with its 95 % interval, and what MRM
    changes, seed by seed."""
    rows = [["arm", "clean", *WAYS], ["---"] * (2 + len(WAYS))]
    for arm, seeds in found.items():
        means = [estimate([scores[way] for scores in seeds.values()]) for way in ("clean", *WAYS)]
        rows.append([arm, *(mean.text() for mean in means)])
    for ours, theirs in COMPARED:
        if found.get(ours) and found.get(theirs):
            both = [(found[ours][seed], found[theirs].get(seed)) for seed in found[ours]]
            gains = [
                estimate([one[way] - other[way] for one, other in both if other])
                for way in ("clean", *WAYS)
            ]
            rows.append([f"{ours} − {theirs}", *(gain.text(sign=True) for gain in gains)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    """Scores the runs that the JSON file does not hold yet, and writes the table beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path, help="folder of the comparison")
    parser.add_argument(
        "--to", type=Path, required=True, help="the JSON file, written again after each run"
    )
    given = parser.parse_args()
    found = json.loads(given.to.read_text()) if given.to.exists() else {}
    for arm in arms.read_arms(given.workdir):
        if arm.name not in ARMS:
            continue
        for folder in sorted((given.workdir / arm.folder).glob("seed*")):
            rows = found.setdefault(arm.name, {})
            if folder.name not in rows:
                rows[folder.name] = scores(folder)
                print(arm.name, folder.name, rows[folder.name], flush=True)
                given.to.write_text(json.dumps(found, indent=1) + "\n")
    given.to.with_suffix(".md").write_text(table(found))


if __name__ == "__main__":
    main()
