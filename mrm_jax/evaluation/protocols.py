"""What a score means: the protocol that is printed and stored with every number."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mrm_jax.config import Config, Domain, Evaluation, evaluation_domain
from mrm_jax.data.prepared.reading import reads_prepared
from mrm_jax.evaluation.tiling import in_parts


@dataclass(frozen=True)
class Protocol:
    """How a score was computed. Sizes are (height, width) px; `input_sizes`, `label_sizes` list
    what occurred. `split`: of a prepared set or of drawn scenes, "" where a folder says it. `also`:
    further means by name, and the classes in each. `crop`, `margins` (top, bottom, left, right):
    what the network was trained on, and how much of a target picture got no pseudo-label, px.
    `parts`: pixels above which pictures went through in parts, None where none did. `blend`: what
    is averaged where windows overlap.
    """

    domain: str
    network: str
    pictures: int
    classes_counted: tuple[str, ...]
    classes_predicted: int
    mode: str
    window: tuple[int, int] | None
    stride: tuple[int, int] | None
    resize: tuple[int, int] | None
    input_sizes: tuple[tuple[int, int], ...]
    label_sizes: tuple[tuple[int, int], ...]
    split: str = ""
    also: tuple[tuple[str, ...], ...] = ()
    crop: tuple[int, int] | None = None
    margins: tuple[int, int, int, int] = (0, 0, 0, 0)
    remark: str = ""
    parts: int | None = None
    test_time_augmentation: str = "none"
    blend: str = "logits"

    def sentence(self) -> str:
        """The protocol in one line, for people."""
        counted = len(self.classes_counted)
        classes = f"{counted} classes"
        if counted != self.classes_predicted:
            classes = f"{counted} of {self.classes_predicted} classes"
        how = manner(self.mode, self.window, self.stride, self.parts)
        sizes = ", ".join(map(_size, self.input_sizes[:3])) or "no size"
        labels = ", ".join(map(_size, self.label_sizes[:3])) or "no size"
        more = " ..." if max(len(self.input_sizes), len(self.label_sizes)) > 3 else ""
        trained = f"; trained on crops of {_size(self.crop)} px" if self.crop else ""
        if any(self.margins):
            trained += f", no pseudo-labels in margins of {', '.join(map(str, self.margins))} px"
        remark = f"; {self.remark}" if self.remark else ""
        if self.mode == "slide" and self.blend != "logits":
            how += f", {self.blend} averaged,"
        none = self.test_time_augmentation == "none"
        versions = "no flips, one scale" if none else self.test_time_augmentation
        return (
            f"{self.network} on {self.pictures} pictures of {self.domain}: {classes}, {how} at "
            f"{sizes}, scored at {labels} px{more} (height x width), "
            f"{versions}{trained}{remark}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The protocol as JSON values, with its sentence for people."""
        return {**dataclasses.asdict(self), "sentence": self.sentence()}


def manner(
    mode: str,
    window: tuple[int, int] | None,
    stride: tuple[int, int] | None,
    parts: int | None,
) -> str:
    """How pictures go through the network, in a few words; see `Protocol`."""
    if mode == "slide" and window and stride:
        return f"windows of {_size(window)} every {_size(stride)} px"
    blended = f", above {parts} px in overlapping parts with a smooth blend"
    return f"whole pictures{blended if parts else ''}"


def augmentation(evaluation: Evaluation) -> str:
    """Which versions of a picture are averaged, in a few words, or "none"."""
    if evaluation.scales == (1.0,) and not evaluation.flip:
        return "none"
    scales = ", ".join(f"{scale:g}" for scale in evaluation.scales)
    flips = "mirrored too" if evaluation.flip else "no flips"
    return f"{flips}, scales {scales}, mean of probabilities"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def domain_name(domain: Domain) -> str:
    """What the pictures are, in a few words: look and split of drawn scenes, the split of a
    prepared set, or a folder's path and listing.
    """
    if domain.kind == "drawn":
        return f"drawn scenes ({domain.look}, {domain.split})"
    if reads_prepared(domain):
        return f"{domain.path} (prepared, {domain.split})"
    parts = [part for part in (domain.path, domain.images) if part]
    listing = f" ({domain.listing})" if domain.listing else ""
    return "/".join(parts) + listing


def protocol_of(
    config: Config,
    *,
    network: str,
    pictures: int,
    input_sizes: set[tuple[int, int]],
    label_sizes: set[tuple[int, int]],
) -> Protocol:
    """The protocol of an evaluation under `config` that saw these many pictures and these sizes."""
    evaluation, domain = config.evaluation, evaluation_domain(config)
    divided = any(in_parts(size, evaluation) for size in input_sizes)
    sliding = evaluation.mode == "slide"
    names = config.data.classes.names
    return Protocol(
        domain=domain_name(domain),
        network=network,
        pictures=pictures,
        classes_counted=evaluation.classes or names,
        classes_predicted=len(names),
        mode=evaluation.mode,
        window=evaluation.window if sliding else None,
        stride=evaluation.stride if sliding else None,
        resize=domain.resize,
        input_sizes=tuple(sorted(input_sizes)),
        label_sizes=tuple(sorted(label_sizes)),
        split=domain.split if domain.kind == "drawn" or reads_prepared(domain) else "",
        also=evaluation.also,
        crop=config.data.crop,
        margins=config.data.target.margins,
        remark=domain.remark,
        parts=evaluation.whole_pixels if divided else None,
        test_time_augmentation=augmentation(evaluation),
        blend=evaluation.blend if sliding else "logits",
    )


def counted(config: Config) -> tuple[int, ...]:
    """Train ids of the classes in mIoU."""
    return train_ids(config, config.evaluation.classes or config.data.classes.names)


def train_ids(config: Config, names: tuple[str, ...]) -> tuple[int, ...]:
    """Train ids of classes by name."""
    return tuple(config.data.classes.names.index(name) for name in names)
