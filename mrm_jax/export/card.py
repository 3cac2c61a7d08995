"""The model card of an export: README.md with the header that the Hugging Face hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mrm_jax
from mrm_jax.config import input_stats
from mrm_jax.evaluation.network import TrainedNetwork

# Licence as a fingerprint names it -> the hub's identifier.
_ON_HUB = {"Apache-2.0": "apache-2.0", "BSD-3-Clause": "bsd-3-clause", "MIT": "mit"}


@dataclass(frozen=True)
class Told:
    """What a card says besides the network: its `name`, files and the facts of its format. scores:
    evaluation.json of exactly this network, or None. weights: the fingerprint of what it started
    from, empty for random numbers."""

    name: str
    library: str
    packages: str
    script: str
    files: Sequence[str]
    size: tuple[int, int]
    dtype: str
    notes: Sequence[str]
    weights: Mapping[str, Any]
    scores: Mapping[str, Any] | None


def model_card(net: TrainedNetwork, told: Told) -> str:
    """README.md."""
    parts = [
        _header(told),
        f"# {told.name}",
        _what(net, told),
        _use(told),
        _classes(net),
        _score(net, told.scores),
        _licence(told.weights),
        _upload(told),
    ]
    return "\n\n".join(parts) + "\n"


def _header(told: Told) -> str:
    licence = str(told.weights.get("licence", "")) if told.weights else ""
    if licence in _ON_HUB:
        lines = [f"license: {_ON_HUB[licence]}"]
    elif licence and licence != "unknown":
        lines = ["license: other", f"license_name: {_yaml(licence)}"]
        if source := told.weights.get("licence_source"):
            lines.append(f"license_link: {_yaml(str(source))}")
    else:
        lines = ["license: unknown"]
    lines += ["pipeline_tag: image-segmentation", f"library_name: {told.library}", "tags:"]
    tags = ("semantic-segmentation", "domain-adaptation", "mrm-jax")
    return "\n".join(["---", *lines, *(f"- {tag}" for tag in tags), "---"])


def _yaml(text: str) -> str:
    return json.dumps(text)  # a JSON text is a YAML text


def _what(net: TrainedNetwork, told: Told) -> str:
    config, (height, width) = net.config, told.size
    model, method = config.model, config.method
    mrm = " with Masked Representation Modeling" if method.mrm.enabled else ""
    hrda = ", two resolutions (HRDA)" if model.multires.enabled else ""
    trained = f"the {net.name} after {net.step} steps of {method.kind}{mrm}"
    if not net.step:
        trained = "converted from a file of weights"
    stats = input_stats(model)
    mean, std = (", ".join(f"{level:g}" for level in levels) for levels in stats)
    lines = [
        f"Semantic segmentation: encoder {model.encoder.kind}, decoder {model.decoder.kind}{hrda}, "
        f"{len(net.classes)} classes; {trained}, "
        f"written by mrm_jax {mrm_jax.__version__}.",
        "",
        f"- In: RGB pictures [b, {height}, {width}, 3], {told.dtype}, levels 0..255. They are "
        f"normalised inside (mean {mean}, deviation {std}).",
        f"- Out: class ids, uint8 [b, {height}, {width}], and probabilities, float32 "
        f"[b, {height}, {width}, {len(net.classes)}].",
        "- What served training alone (Rebuilder, other heads, optimiser) is not in these files.",
        *(f"- {note}" for note in told.notes),
    ]
    return "\n".join(lines)


def _use(told: Told) -> str:
    files = ", ".join(f"`{name}`" for name in told.files)
    return (
        f"## Use\n\nFiles: {files}.\n\n    pip install {told.packages}\n"
        f"    python run.py PICTURE CLASSES.png\n\n`run.py`:\n\n"
        f"```python\n{told.script.rstrip()}\n```"
    )


def _classes(net: TrainedNetwork) -> str:
    rows = [
        f"| {i} | {_cell(name)} | {', '.join(map(str, colour))} |"
        for i, (name, colour) in enumerate(zip(net.classes, net.colours.tolist(), strict=True))
    ]
    return "\n".join(["## Classes", "", "| id | class | colour, RGB |", "|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _score(net: TrainedNetwork, scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return (
            "## Score\n\nNot measured: `mrm-jax evaluate` of this checkpoint writes the file that "
            "this section is made from."
        )
    found = scores if scores["protocol"].get("network") == net.name else scores[net.name]
    rows = [
        f"| {_cell(name)} | {'-' if value is None else f'{value:.1%}'} |"
        for name, value in {"mIoU": found["mIoU"], **found["IoU"]}.items()
    ]
    sentence = found["protocol"]["sentence"]
    return "\n".join(["## Score", "", sentence, "", "| | IoU |", "|---|---|", *rows])


def _licence(weights: Mapping[str, Any]) -> str:
    if not weights:
        text = "It was trained from random numbers; the licence is for its author to choose."
    else:
        start = weights.get("source") or weights.get("file") or weights.get("folder") or "weights"
        licence = weights.get("licence", "unknown")
        source = f" ({weights['licence_source']})" if weights.get("licence_source") else ""
        text = f"It started from {start}, whose licence is: {licence}{source}."
    return (
        f"## Licence\n\n{text} The data that it was trained on has terms of its own, which may "
        "restrict what it is used for."
    )


def _upload(told: Told) -> str:
    return f"## Upload\n\n    hf upload YOU/{told.name} . --repo-type model"
