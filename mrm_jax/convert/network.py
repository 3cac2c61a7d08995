"""A file of weights as a network of ours: its tree, and the config of the model that fits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mrm_jax.config import Decoder, Encoder, Model, MultiRes
from mrm_jax.convert import KINDS, Misfit, detect, import_torch, leaves, trace
from mrm_jax.convert.reader import WeightFile, read_weights
from mrm_jax.convert.tables import decoder_files, encoder_files
from mrm_jax.errors import UsageError


@dataclass(frozen=True)
class ConvertedNetwork:
    """Weights of a segmentor, or of its encoder alone, from a file.

    `tree`: {"params": {"encoder": ..., "decoder": ...}, "batch_stats": ...}, numpy float32; leaves
    in `absent` ("encoder/norm1/scale") were allowed to be missing, those in `zeros` have no tensor
    in such files and are 0.   `model`: what the tensors and
    their names show, reference values for the rest.   `whole`: a segmentor, with a decoder.
    `classes`: its number of logits; 0 where no tensor shows it.   `assumed`: phrases for what no
    tensor shows.
    """

    file: WeightFile
    kind: str
    copy: str
    tree: dict[str, dict[str, Any]]
    model: Model
    whole: bool
    classes: int
    absent: tuple[str, ...]
    dropped: dict[str, str]
    assumed: tuple[str, ...]
    zeros: tuple[str, ...] = ()


def load_network(
    path: str | Path,
    kind: str | None = None,
    *,
    copy: str | None = None,
    allow_missing: Sequence[str] = (),
) -> ConvertedNetwork:
    """The network in a file of weights, by path or name (`named.find_weights`); `kind` is found
    from the tensors' names where it is not given and the place does not tell.

    copy, allow_missing: as for `import_torch`. Raises UsageError with one line: the file, the first
    bad tensor, how many there are, the way out.
    """
    file = read_weights(path)
    kind = kind_of(file, kind, copy)
    variant: dict[str, Any] = {"allow_missing": tuple(allow_missing)}
    if copy is not None:
        variant["copy"] = copy
    try:
        shown = trace(file.tensors, kind, **variant)
        tree = import_torch(file.tensors, kind, **variant)
    except Misfit as error:
        raise UsageError(misfit_line(file, kind, error.problems), field=file.path) from error
    except ValueError as error:
        raise UsageError.at(file.path, f": {error}.") from error
    part = KINDS[kind].parts[0]
    if part.role in ("decoder", "rebuilder"):
        raise UsageError.at(
            file.path, f" is a {part.role} alone (kind {kind}); a network needs an encoder."
        )
    if not part.root:
        tree = {name: {"encoder": found} for name, found in tree.items()}
    model, assumed = model_of(shown.found)
    prefix = "" if part.root else "encoder/"
    return ConvertedNetwork(
        file=file,
        kind=kind,
        copy=shown.found.get("copy", ""),
        tree=tree,
        model=model,
        whole="decoder" in shown.found,
        classes=shown.found.get("decoder", {}).get("num_classes") or 0,
        absent=tuple(prefix + path.partition("/")[2] for path in shown.absent),
        dropped=shown.dropped,
        assumed=assumed,
        zeros=tuple(prefix + m[2].partition("/")[2] for m in shown.moves if m[3] == "zeros"),
    )


def kind_of(file: WeightFile, kind: str | None, copy: str | None = None) -> str:
    """`kind`, or the file's, or what the names of the `copy` show; UsageError where that is none or
    not one."""
    try:
        return kind or file.kind or detect(file.tensors, copy)
    except ValueError as error:
        raise UsageError.at(file.path, f": {error}.") from error


def misfit_line(file: WeightFile, kind: str, problems: Sequence[str]) -> str:
    """One line about a file that does not fit."""
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    start = f"{file.path} does not fit kind {kind}: {problems[0]}{more}; nothing was loaded. "
    if (other := _other_kind(file, kind)) is not None:
        return (
            f"{start}Its names are those of kind {other}: leave out --kind, or give --kind {other}."
        )
    return (
        f"{start}'convert --dry_run' lists all, 'convert --allow_missing PATTERN' leaves out what "
        "may be."
    )


def _other_kind(file: WeightFile, kind: str) -> str | None:
    """The kind whose names a file has, where that is plainly not `kind`."""
    try:
        found = detect(file.tensors)
    except ValueError:
        return None
    same = KINDS[found].parts == KINDS[kind].parts  # a kind of one size is its base kind
    return None if same else found


def model_of(found: Mapping[str, Any]) -> tuple[Model, tuple[str, ...]]:
    """The config of the network that `describe` found, and what of it no tensor shows.

    Raises UsageError for a network that ours cannot be.
    """
    neck = found.get("neck", {}).get("layout")
    encoder, assumed = _encoder({**found["encoder"], "neck": neck})
    shown = found.get("decoder")
    decoder = Decoder() if shown is None else _decoder(shown)
    attention = found.get("attention")
    multires = MultiRes(enabled=attention is not None)
    if attention is not None and attention.get("channels"):
        multires = replace(multires, attention_channels=attention["channels"])
    return Model(encoder=encoder, decoder=decoder, multires=multires), assumed


def _encoder(shown: Mapping[str, Any]) -> tuple[Encoder, tuple[str, ...]]:
    layout, dims, depths = shown["layout"], shown["dims"], shown["depths"]
    unknown = any(size is None for size in (*dims, *depths))
    if unknown:
        raise UsageError(
            f"the tensors show widths {dims} and depths {depths}: too many missing.",
            field="tensors",
        )
    for kind, files in encoder_files().items():
        if layout in {row.name for row in (*files.layouts, *files.alone, *files.others)}:
            fields, assumed = files.fields(shown)
            return Encoder(kind=kind, **fields), assumed
    raise UsageError(
        f"no registered encoder has the layout {layout}.", field="layout", value=layout
    )


def _decoder(shown: Mapping[str, Any]) -> Decoder:
    for kind, files in decoder_files().items():
        if shown["layout"] in {row.name for row in (*files.layouts, *files.others)}:
            return Decoder(kind=kind, **files.fields(shown))
    raise UsageError(
        f"no registered decoder has the layout {shown['layout']}.",
        field="layout",
        value=shown["layout"],
    )


def count_parameters(tree: Mapping[str, Any]) -> tuple[int, int]:
    """(arrays, parameters) of variables; running statistics are arrays and no parameters."""
    sizes = [int(np.prod(leaf.shape)) for leaf in leaves(tree["params"]).values()]
    return len(leaves(tree)), sum(sizes)
