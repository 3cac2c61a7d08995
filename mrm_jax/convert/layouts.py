"""What a table of rows consists of, and the rows that every network repeats: affine layers and
normalisations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mrm_jax.convert.rules import Drop, Row, Symbols

Facts = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Layout:
    """Names of one module. `marks` are tensors, `paths` leaves that no rival layout has.

    facts: what `describe` reports, name -> symbol; `{s}` in a symbol makes a list over the stages,
    symbols in a tuple a list of their own.
    fits(shape of a tensor by its name, () where there is none): asked besides where rivals call
    their tensors alike. fold(leaves below the module): an equal network that the names can say,
    where they cannot say every one.
    """

    name: str
    rows: tuple[Row, ...]
    marks: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    drops: tuple[Drop, ...] = ()
    facts: tuple[tuple[str, str | tuple[str, ...]], ...] = ()
    relation: Callable[[Symbols], str | None] | None = None
    fits: Callable[[Callable[[str], tuple[int, ...]]], bool] | None = None
    fold: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None

    def names(self, prefix: str, state: Mapping[str, Any]) -> bool:
        """Whether a state has, behind `prefix`, a tensor that only this layout has."""

        def shape(name: str) -> tuple[int, ...]:
            return tuple(state[prefix + name].shape) if prefix + name in state else ()

        marked = any(prefix + mark in state for mark in self.marks)
        return marked and (self.fits is None or self.fits(shape))

    def holds(self, root: str, tree: Mapping[str, Any]) -> bool:
        """Whether a flat tree has, below `root`, the leaves that only this layout has."""
        return all(root + path in tree for path in self.paths)

    def folded(self, root: str, tree: Mapping[str, Any]) -> dict[str, Any]:
        """A flat tree whose leaves below `root` can all be said."""
        if self.fold is None:
            return dict(tree)
        below = {p.removeprefix(root): leaf for p, leaf in tree.items() if p.startswith(root)}
        return {**tree, **{root + path: leaf for path, leaf in self.fold(below).items()}}


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
    copies: prefixes of full copies in one file, the preferred one first.   spare: a prefix that
    all names may carry, or several of which they may carry one.
    sizes: facts that the encoder must have.
    """

    parts: tuple[Part, ...]
    drops: tuple[Drop, ...] = ()
    wrapped: tuple[Part, ...] = ()
    copies: tuple[str, ...] = ()
    spare: str | tuple[str, ...] = ""
    concat_order: str = "c1..c4"
    sizes: Facts = ()


@dataclass(frozen=True)
class EncoderFiles:
    """How files call the tensors of an encoder: `registry.EncoderKind.conversion`.

    layouts: of a file of the encoder alone, each a kind under its own name, and of a segmentor's
    backbone under mmseg's names. others: of files of other kinds, and `kinds`: those kinds, where
    they are of this encoder. necks: of what stands behind it; the name of
    the one that is there is `shown["neck"]` for `fields`. sizes: kinds of one size, name ->
    (the layout's, facts that `describe` must find). fields(what `describe` shows) -> (fields of
    `config.Encoder`, phrases for what no tensor shows). guessed(encoder): a phrase for what was
    guessed badly, so that the user has to say it. natural(encoder): the layout it is written in.
    """

    layouts: tuple[Layout, ...]
    fields: Callable[[Mapping[str, Any]], tuple[dict[str, Any], tuple[str, ...]]]
    natural: Callable[[Any], str]
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


def norm(source: str, path: str, size: str, **more: Any) -> tuple[Row, ...]:
    """Rows of a normalisation's scale and bias, each of `size` entries."""
    return (
        Row(f"{source}.weight", f"{path}/scale", "vector", size, **more),
        Row(f"{source}.bias", f"{path}/bias", "vector", size, **more),
    )


def batch_norm(source: str, path: str, size: str, **more: Any) -> tuple[Row, ...]:
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


TRACKED = Drop(r".*num_batches_tracked", "a counter that momentum 0.1 never reads")
