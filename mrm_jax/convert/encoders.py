"""MixVisionTransformer under the names of SegFormer's release (PVTv2's, too), newer mmseg, Hugging
Face (hub and transformers 5) and timm's PVTv2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mrm_jax.config import Encoder
from mrm_jax.convert.layouts import EncoderFiles, Facts, Layout, affine, norm
from mrm_jax.convert.rules import CLOSED, Drop, Row, Symbols
from mrm_jax.registry import ENCODER_KINDS

MIT_FACTS = (
    ("dims", "C{s}"),
    ("depths", "depth{s}"),
    ("sr_ratios", "r{s}"),
    ("mlp_widths", "M{s}"),
    ("in_channels", "C0"),
)


def _mit_rows(embed: str, embed_norm: str, block: str, stage_norm: str, names: dict[str, Any]):
    """MiT's rows; `names` maps our names inside a block to the layout's."""
    return (
        *affine(embed, "patch_embed{s}/proj", "conv", "C{s} C{p} k{s} k{s}"),
        *norm(embed_norm, "patch_embed{s}/norm", "C{s}"),
        *_stage_rows(block, stage_norm, names),
    )


def _stage_rows(block: str, stage_norm: str, names: dict[str, Any]) -> tuple[Row, ...]:
    """The rows of blocks and of the norms behind them."""
    ours = "block{s}"
    counted = {"count": "depth{s}"}
    reduced = {"group": "sr{s}", "count": "depth{s}"}

    def inside(name: str) -> Any:
        found = names[name]
        return block + found if isinstance(found, str) else tuple(block + n for n in found)

    fc = "conv1x1" if names.get("convolutional_mlp") else "dense"
    ones = " 1 1" if fc == "conv1x1" else ""
    return (
        *norm(inside("norm1"), f"{ours}/norm1", "C{s}", **counted),
        *_attention_in(inside, names, counted),
        *affine(inside("proj"), f"{ours}/attn/proj", "dense", "C{s} C{s}", **counted),
        *affine(inside("sr"), f"{ours}/attn/sr", "conv", "C{s} C{s} r{s} r{s}", **reduced),
        *norm(inside("norm"), f"{ours}/attn/norm", "C{s}", **reduced),
        *norm(inside("norm2"), f"{ours}/norm2", "C{s}", **counted),
        *affine(inside("fc1"), f"{ours}/mlp/fc1", fc, "M{s} C{s}" + ones, **counted),
        *affine(inside("dwconv"), f"{ours}/mlp/dwconv", "conv", "M{s} 1 3 3", **counted),
        *affine(inside("fc2"), f"{ours}/mlp/fc2", fc, "C{s} M{s}" + ones, **counted),
        *norm(stage_norm, "norm{s}", "C{s}"),
    )


def _attention_in(inside: Any, names: dict[str, Any], counted: dict[str, str]) -> tuple[Row, ...]:
    q, kv = "block{s}/attn/q", "block{s}/attn/kv"
    if "in_proj" not in names:
        return (
            *affine(inside("q"), q, "dense", "C{s} C{s}", **counted),
            *affine(inside("kv"), kv, "dense", "2C{s} C{s}", **counted),
        )
    rows = []
    for path, size, start, stop in ((q, "C{s}", "0", "C{s}"), (kv, "2C{s}", "C{s}", "3C{s}")):
        take, source = (start, stop, "3C{s}"), inside("in_proj")
        rows += [
            Row(f"{source}_weight", f"{path}/kernel", "dense", f"{size} C{{s}}", take, **counted),
            Row(f"{source}_bias", f"{path}/bias", "vector", size, take, **counted),
        ]
    return tuple(rows)


_PLAIN = {"norm1": "norm1", "norm2": "norm2", "q": "attn.q", "kv": "attn.kv", "proj": "attn.proj"}
_PLAIN |= {"sr": "attn.sr", "norm": "attn.norm", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
_PLAIN |= {"dwconv": "mlp.dwconv.dwconv"}

_HEAD = Drop(r"head\.(weight|bias)", "the classifier of ImageNet's 1000 classes")


def _widths_problem(symbols: Symbols) -> str | None:
    for s in CLOSED["s"]:
        inside, dim = symbols.get(f"M{s}"), symbols.get(f"C{s}")
        if inside and dim and inside % dim:
            return f"the MLPs of stage {s} are {inside} wide, a multiple of its {dim} channels fits"
    return None


MIT = Layout(
    "mit",
    _mit_rows("patch_embed{s}.proj", "patch_embed{s}.norm", "block{s}.{j}.", "norm{s}", _PLAIN),
    marks=("patch_embed1.proj.weight",),
    paths=("patch_embed1/proj/kernel",),
    drops=(_HEAD,),
    facts=MIT_FACTS,
    relation=_widths_problem,
)

_MMSEG = {"norm1": "norm1", "norm2": "norm2", "in_proj": "attn.attn.in_proj", "sr": "attn.sr"}
_MMSEG |= {"proj": "attn.attn.out_proj", "norm": "attn.norm", "fc1": "ffn.layers.0"}
_MMSEG |= {"dwconv": "ffn.layers.1", "fc2": "ffn.layers.4", "convolutional_mlp": True}

MIT_MMSEG = replace(
    MIT,
    name="mit_mmseg",
    rows=_mit_rows(
        "layers.{z}.0.projection", "layers.{z}.0.norm", "layers.{z}.1.{j}.", "layers.{z}.2", _MMSEG
    ),
    marks=("layers.0.0.projection.weight",),
    drops=(),
)

# timm calls what is before the first stage otherwise than what is before the others.
TIMM_PVT_V2 = replace(
    MIT,
    name="timm_pvt_v2",
    rows=(
        *affine("patch_embed.proj", "patch_embed1/proj", "conv", "C1 C0 k1 k1"),
        *norm("patch_embed.norm", "patch_embed1/norm", "C1"),
        *(
            row
            for s in CLOSED["s"]
            if s > 1
            for row in (
                *affine(
                    f"stages.{s - 1}.downsample.proj",
                    f"patch_embed{s}/proj",
                    "conv",
                    f"C{s} C{s - 1} k{s} k{s}",
                ),
                *norm(f"stages.{s - 1}.downsample.norm", f"patch_embed{s}/norm", f"C{s}"),
            )
        ),
        *_stage_rows(
            "stages.{z}.blocks.{j}.", "stages.{z}.norm", {**_PLAIN, "dwconv": "mlp.dwconv"}
        ),
    ),
    marks=("patch_embed.proj.weight", "stages.0.blocks.0.norm1.weight"),
)

_HUB = {"norm1": "layer_norm_1", "norm2": "layer_norm_2", "q": "attention.self.query"}
_HUB |= {"kv": ("attention.self.key", "attention.self.value"), "proj": "attention.output.dense"}
_HUB |= {"sr": "attention.self.sr", "norm": "attention.self.layer_norm", "fc1": "mlp.dense1"}
_HUB |= {"dwconv": "mlp.dwconv.dwconv", "fc2": "mlp.dense2"}

HF_HUB = replace(
    MIT,
    name="hf_hub",
    rows=_mit_rows(
        "encoder.patch_embeddings.{z}.proj",
        "encoder.patch_embeddings.{z}.layer_norm",
        "encoder.block.{z}.{j}.",
        "encoder.layer_norm.{z}",
        _HUB,
    ),
    marks=("encoder.patch_embeddings.0.proj.weight",),
    drops=(),
)

_FIVE = {"norm1": "layernorm_before", "norm2": "layernorm_after", "q": "attention.q_proj"}
_FIVE |= {"kv": ("attention.k_proj", "attention.v_proj"), "proj": "attention.o_proj"}
_FIVE |= {"sr": "attention.sequence_reduction.sequence_reduction"}
_FIVE |= {"norm": "attention.sequence_reduction.layer_norm", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
_FIVE |= {"dwconv": "mlp.dwconv.dwconv"}

HF_FIVE = replace(
    MIT,
    name="hf_transformers5",
    rows=_mit_rows(
        "stages.{z}.patch_embeddings.proj",
        "stages.{z}.patch_embeddings.layer_norm",
        "stages.{z}.blocks.{j}.",
        "stages.{z}.layer_norm",
        _FIVE,
    ),
    marks=("stages.0.patch_embeddings.proj.weight",),
    drops=(),
)

# Epsilons of (block and stage LayerNorms, patch-embedding and reduction LayerNorms) that no tensor
# shows. Source: SegFormer's release; mmseg >= 0.20 mit.py; transformers' SegformerConfig.
_EPS = {"mit": (1e-6, 1e-5), "mit_mmseg": (1e-6, 1e-6), "hf": (1e-5, 1e-5)}
_EPS |= {"timm_pvt_v2": (1e-6, 1e-5)}


def _fields(shown: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    layout, dims = shown["layout"], shown["dims"]
    ratios = tuple(width // dim for width, dim in zip(shown["mlp_widths"], dims, strict=True))
    heads = tuple(dim // dims[0] for dim in dims)
    heads = heads if _whole_heads(dims) else (1,) * len(dims)
    block, embed = _EPS["hf" if layout.startswith("hf") else layout]
    found = {
        "dims": dims,
        "depths": shown["depths"],
        "heads": heads,
        "sr_ratios": shown["sr_ratios"],
        "mlp_ratios": ratios,
        "norm_eps": block,
        "embed_norm_eps": embed,
    }
    return found, (f"heads {heads} and LayerNorm epsilons {block:g} and {embed:g}",)


def _whole_heads(dims: tuple[int, ...]) -> bool:
    """Whether heads as wide as the first stage fit, as in all published sizes."""
    return all(dim % dims[0] == 0 for dim in dims)


def _guessed(encoder: Any) -> str | None:
    dims = encoder.dims
    return None if _whole_heads(dims) else f"the attention heads of an encoder of widths {dims}"


def _size(encoder: Encoder) -> tuple[str, Facts]:
    widths = tuple(d * r for d, r in zip(encoder.dims, encoder.mlp_ratios, strict=True))
    shown = (("dims", encoder.dims), ("depths", encoder.depths), ("sr_ratios", encoder.sr_ratios))
    return MIT.name, (*shown, ("mlp_widths", widths))


FILES = EncoderFiles(
    layouts=(MIT, MIT_MMSEG),
    alone=(TIMM_PVT_V2,),
    others=(HF_HUB, HF_FIVE),
    sizes={
        # PVTv2's own name for what is MiT's network under MiT's names.
        "pvt_v2": (MIT.name, ()),
        **{
            name: _size(Encoder(kind="mit", **fields))
            for name, fields in ENCODER_KINDS["mit"].variants.items()
        },
    },
    fields=_fields,
    guessed=_guessed,
    natural=lambda encoder: "mit" if set(encoder.mlp_ratios) == {4} else "pvt_v2",
)
