"""Rare class sampling: a source picture is drawn for a class that it holds, and rare classes are
drawn often.

Class and picture of a sample are drawn from its own generator, so they are a pure function of
(seed, global sample number). Source: DAFormer sec. 3.3, equations 3 and 4; peer: mmseg
datasets/uda_dataset.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mrm_jax.config import Config, source_domain
from mrm_jax.data import sources
from mrm_jax.data.class_statistics import Say, Statistics, class_statistics, log
from mrm_jax.data.transforms import keep_ratio_size
from mrm_jax.errors import UsageError

FIELD = "config.data.rare_class"
ANY_CROP = -1.0
"""A threshold that every crop passes."""


class Choice(NamedTuple):
    """What a sample is drawn for: a class, and the index of a picture that holds it."""

    class_id: int
    picture: int


class Sampler(NamedTuple):
    """Draws classes and pictures. One entry for every class of the draw, rarest first.

    `classes` train ids, `frequencies` share of all counted pixels, `probabilities` f32 of being
    drawn, `pictures` the indices to draw from. A crop should hold more than `crop_pixels` of the
    class; `tries` further ones are made where it does not.
    """

    classes: np.ndarray
    frequencies: np.ndarray
    probabilities: np.ndarray
    pictures: tuple[np.ndarray, ...]
    crop_pixels: float
    tries: int

    def draw(self, rng: np.random.Generator) -> Choice:
        """A class by its probability, then one of its pictures, all alike."""
        upper = np.cumsum(self.probabilities, dtype=np.float64)
        at = int(np.searchsorted(upper, rng.random() * upper[-1], side="right"))
        at = min(at, len(upper) - 1)
        pictures = self.pictures[at]
        return Choice(int(self.classes[at]), int(pictures[rng.integers(len(pictures))]))

    def sentence(self, names: tuple[str, ...]) -> str:
        """One line for the user: how often each class is drawn."""
        parts = [
            f"{names[c]} {100 * p:.0f} %"
            for c, p in zip(self.classes, self.probabilities, strict=True)
            if p >= 0.005
        ]
        rest = len(self.classes) - len(parts)
        return "rare class sampling: " + ", ".join(parts) + (f"; {rest} below 1 %" if rest else "")

    def facts(self, names: tuple[str, ...]) -> dict[str, Any]:
        """For environment.json: frequency, probability and number of pictures of each class."""
        return {
            names[c]: {
                "frequency": float(f"{f:.6g}"),
                "probability": float(f"{p:.6g}"),
                "pictures": len(pictures),
            }
            for c, f, p, pictures in zip(
                self.classes, self.frequencies, self.probabilities, self.pictures, strict=True
            )
        }


def probabilities(pixels: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Classes that occur, rarest first, and the probability f32 that each is drawn with.

    `pixels` int[K] counts every class over all labels. With f a class's share of all counted
    pixels, P = softmax((1 - f) / temperature), in float32 as the reference computes it.
    """
    classes = np.flatnonzero(pixels)
    classes = classes[np.argsort(pixels[classes], kind="stable")]
    counted = pixels[classes].astype(np.float32)
    frequency = counted / np.float32(pixels.sum())
    logits = (np.float32(1) - frequency) / np.float32(temperature)
    weights = np.exp(logits - logits.max(initial=-np.inf))
    return classes, weights / weights.sum()


def open_sampler(config: Config, *, say: Say | None = None) -> Sampler | None:
    """The sampler of a run's source pictures, or None where rare class sampling is off.

    Labels are counted once, see `class_statistics`; `say` is given lines for the user. Raises
    UsageError naming classes without any picture (unless `on_missing` is "warn"), or a source
    without any class.
    """
    if not config.data.rare_class.enabled:
        return None
    source, classes = source_domain(config), config.data.classes
    field = source_field(config)
    pictures = sources.open_labelled(source, classes, field=field)
    statistics = class_statistics(pictures, source, len(classes.names), field=field, say=say)
    sampler = make_sampler(config, statistics, warn=say or log.warning)
    (say or log.info)(sampler.sentence(config.data.classes.names))
    return sampler


def source_field(config: Config) -> str:
    """The config path of the domain that labels are learnt from."""
    return f"config.data.{'target' if config.method.kind == 'target_only' else 'source'}"


def make_sampler(config: Config, statistics: Statistics, *, warn: Say = log.warning) -> Sampler:
    """The sampler that `data.rare_class` describes, for pictures with these statistics.

    Raises UsageError as `open_sampler` does; `warn` is given the classes that are left out.
    """
    options, total = config.data.rare_class, statistics.counts.sum(0)
    if not total.any():
        raise UsageError.at(
            source_field(config),
            f": its {len(statistics.counts)} labels hold no class at all, every pixel is ignored",
            "correct raw_ids and ignored_ids, or the labels.",
        )
    held, file_pixels, crop_pixels = _thresholds(config, statistics)
    every, shares = probabilities(total, options.temperature)
    usable = np.any(held > file_pixels, axis=0)
    _report_missing(config, held, file_pixels, usable, warn)
    kept = usable[every]
    # What is left out gives its share to the others, in proportion.
    classes, shares = every[kept], shares[kept]
    if not shares.sum() > 0:  # all underflowed next to a class that was left out
        classes, shares = probabilities(np.where(usable, total, 0), options.temperature)
    return Sampler(
        classes=classes,
        frequencies=total[classes] / total.sum(),
        probabilities=shares / shares.sum(),
        pictures=tuple(np.flatnonzero(held[:, c] > file_pixels).astype(np.int32) for c in classes),
        crop_pixels=crop_pixels,
        tries=options.tries,
    )


def _thresholds(config: Config, statistics: Statistics) -> tuple[np.ndarray, float, float]:
    """Pixels of every class in every picture, and what they and a crop's have to exceed."""
    options = config.data.rare_class
    if options.min_share is None:
        crop_pixels = options.min_pixels * options.crop_share
        return statistics.counts, options.min_pixels, crop_pixels or ANY_CROP
    threshold = options.min_share * config.data.crop[0] * config.data.crop[1]
    box = source_domain(config).resize
    scale = np.array([_area_factor(h, w, box) for h, w in statistics.sizes])
    return statistics.counts * scale[:, None], threshold, threshold


def _area_factor(height: int, width: int, box: tuple[int, int] | None) -> float:
    """Pixels of a picture as it is trained on, over those it is stored with."""
    if box is None or height * width == 0:
        return 1.0
    new_height, new_width = keep_ratio_size(height, width, box)
    return new_height * new_width / (height * width)


def _report_missing(
    config: Config, held: np.ndarray, threshold: float, usable: np.ndarray, warn: Say
) -> None:
    """Names the classes that no picture holds enough of, as an error or as a warning."""
    if usable.all():
        return
    options, names = config.data.rare_class, config.data.classes.names
    most = held.max(0)
    listed = ", ".join(
        f"{names[c]} (at most {most[c]:.0f})" if most[c] else f"{names[c]} (none)"
        for c in np.flatnonzero(~usable)
    )
    lower = "min_pixels" if options.min_share is None else "min_share"
    small = " or set min_share" if options.min_share is None else ""
    text = (
        f"{FIELD}: no picture of {source_field(config)} holds more than {threshold:.0f} px of "
        f"{listed}"
    )
    if options.on_missing == "error":
        raise UsageError(
            text,
            f"lower {lower}{small}, or leave such classes out of the draw by "
            f"{FIELD}.on_missing=warn.",
            field=FIELD,
        )
    if not usable.any():
        raise UsageError(f"{text}: nothing is left to draw", f"lower {lower}{small}.", field=FIELD)
    warn(f"warning: {text}; left out of the draw.")
