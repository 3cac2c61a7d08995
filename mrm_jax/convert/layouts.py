"""What a table of rows consists of, and the rows that every network repeats: affine layers and
normalisations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mrm_jax.convert.rules import Drop, Row, Symbols

Facts = tuple[tuple[str, tuple[int, ...]], ...]
Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor, or path of a leaf, below the module's own -> its shape."""


@dataclass(frozen=True)
class Layout:
    """Names of one module. `marks` are tensors, `paths` leaves that no rival layout has.

    facts: what `describe` reports, name -> symbol; `{s}` in a symbol makes a list over the stages.
    shows(symbols): what it reports in their place.   classifier: rows of a module that is kept on
    demand alone, and otherwise dropped by a rule in `drops`.   fitted(shapes, ours): the layout of
    that very state or, with `ours`, of that tree, for rows that no index counts.   fold(leaves
    below the module): an equal network that the names can say, where they cannot say every one.
    """

    name: str
    rows: tuple[Row, ...]
    marks: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    drops: tuple[Drop, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    relation: Callable[[Symbols], str | None] | None = None
    shows: Callable[[Symbols], dict[str, Any]] | None = None
    classifier: tuple[Row, ...] = ()
    fitted: Callable[[Shapes, bool], Layout] | None = None
    fold: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Part:
    """A module of a kind: where its names and its leaves hang, and the layouts it may have.

    bare: a file may lack the prefix; it is written always.
    """

    role: str
    layouts: tuple[Layout, ...]
    prefix: str = ""
    root: str = ""
    optional: bool = False
    bare: bool = False


@dataclass(frozen=True)
class LayoutKind:
    """A whole name layout.

    wrapped: the parts instead, where there is one called "attention" in the names (HRDA).
    copies: prefixes of full copies in one file, the preferred one first.
    spares: prefixes of which all names may carry one.
    sizes: facts that the encoder must have.   found: its names show it; otherwise they show another
    kind with the same names.
    """

    parts: tuple[Part, ...]
    drops: tuple[Drop, ...] = ()
    wrapped: tuple[Part, ...] = ()
    copies: tuple[str, ...] = ()
    spares: tuple[str, ...] = ()
    concat_order: str = "c1..c4"
    sizes: Facts = ()
    found: bool = True


@dataclass(frozen=True)
class EncoderFiles:
    """How files call the tensors of an encoder: `registry.EncoderKind.conversion`.

    layouts: of a file of the encoder alone, each a kind under its own name, and of a segmentor's
    backbone under mmseg's names. alone: the same, but never a segmentor's. others: of files of
    other kinds, and `kinds`: those kinds, where they are of this encoder. necks: of what stands
    behind it; the name of the one that is there is `shown["neck"]` for `fields`. sizes: kinds of
    one size and other names of a kind, name -> (the layout's, facts
    that `describe` must find). fields(what `describe` shows) -> (fields of
    `config.Encoder`, phrases for what no tensor shows). guessed(encoder): a phrase for what was
    guessed badly, so that the user has to say it. natural(encoder): the layout it is written in.
    """

    layouts: tuple[Layout, ...]
    fields: Callable[[Mapping[str, Any]], tuple[dict[str, Any], tuple[str, ...]]]
    natural: Callable[[Any], str]
    alone: tuple[Layout, ...] = ()
    others: tuple[Layout, ...] = ()
    kinds: Mapping[str, LayoutKind] = field(default_factory=dict)
    necks: tuple[Layout, ...] = ()
    sizes: Mapping[str, tuple[str, Facts]] = field(default_factory=dict)
    guessed: Callable[[Any], str | None] = lambda encoder: None


@dataclass(frozen=True)
class DecoderFiles:
    """How files call the tensors of a decoder: `registry.DecoderKind.conversion`.

    layouts: of a head under mmseg's names. attentions: of HRDA's attention head of this kind.
    others: of heads in files of other kinds. fields(what `describe` shows) -> fields of
    `config.Decoder`. natural(config.Model): the kind that a network with it is written in.
    """

    layouts: tuple[Layout, ...]
    fields: Callable[[Mapping[str, Any]], dict[str, Any]]
    attentions: tuple[Layout, ...] = ()
    others: tuple[Layout, ...] = ()
    natural: Callable[[Any], str] = lambda model: "segmentor"


def layout_of_state(
    layout: Layout, state: Mapping[str, Any], prefix: str, classifier: bool = False
) -> Layout:
    """The layout with the rows for the tensors below `prefix`, with its `classifier`'s if asked."""
    if layout.fitted is not None:
        layout = layout.fitted(_below(state, prefix), False)
    return replace(layout, rows=layout.rows + layout.classifier) if classifier else layout


def layout_of_tree(layout: Layout, tree: Mapping[str, Any], root: str) -> Layout:
    """The layout with the rows for the leaves below `root`, with its classifier's if there."""
    prefix = f"params/{root}"
    if layout.fitted is not None:
        layout = layout.fitted(_below(tree, prefix), True)
    there = any(prefix + row.path in tree for row in layout.classifier)
    return replace(layout, rows=layout.rows + layout.classifier) if there else layout


def folded(layout: Layout, tree: Mapping[str, Any], root: str) -> dict[str, Any]:
    """A flat tree whose leaves below `root` the layout can say."""
    if layout.fold is None:
        return dict(tree)
    prefix = f"params/{root}"
    below = {path.removeprefix(prefix): x for path, x in tree.items() if path.startswith(prefix)}
    return {**tree, **{prefix + path: leaf for path, leaf in layout.fold(below).items()}}


def _below(arrays: Mapping[str, Any], prefix: str) -> dict[str, tuple[int, ...]]:
    below = (name for name in arrays if name.startswith(prefix))
    return {name.removeprefix(prefix): tuple(arrays[name].shape) for name in below}


def norm(source: str, path: str, size: str, **more: Any) -> tuple[Row, ...]:
    """Rows of a normalisation's scale and bias, each of `size` entries."""
    return (
        Row(f"{source}.weight", f"{path}/scale", "vector", size, **more),
        Row(f"{source}.bias", f"{path}/bias", "vector", size, **more),
    )


def batch_norm_rows(source: str, path: str, size: str, **more: Any) -> tuple[Row, ...]:
    """Rows of a BatchNorm: scale and bias, and its running mean and variance."""
    running = {"collection": "batch_stats", **more}
    mean = Row(f"{source}.running_mean", f"{path}/mean", "vector", size, **running)
    var = Row(f"{source}.running_var", f"{path}/var", "vector", size, **running)
    return (*norm(source, path, size, **more), mean, var)


def affine(
    source: str | tuple[str, ...], path: str, op: str, shape: str, **more: Any
) -> tuple[Row, ...]:
    """Rows of a weight and its bias; the bias has as many entries as the weight has outputs."""
    names = (source,) if isinstance(source, str) else source
    weight, bias = tuple(f"{n}.weight" for n in names), tuple(f"{n}.bias" for n in names)
    outputs = shape.split()[1 if op == "deconv" else 0]
    single = isinstance(source, str)
    return (
        Row(weight[0] if single else weight, f"{path}/kernel", op, shape, **more),
        Row(bias[0] if single else bias, f"{path}/bias", "vector", outputs, **more),
    )


TRACKED = Drop(r".*num_batches_tracked", "a counter that a fixed momentum never reads")
