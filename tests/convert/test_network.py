"""Kinds found from names, leaves that may be missing, and the model that tensors show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_states as states
from golden import shape_lists
from refusals import refused
from test_convert import FIVE, HUB, INSIDE_FIVE, INSIDE_HUB, hugging_face, mmseg_names, timm_names

from mrm_jax.convert import (
    KINDS,
    Misfit,
    detect,
    export_torch,
    import_torch,
    leaves,
    synthesise,
    trace,
)
from mrm_jax.convert.network import load_network
from mrm_jax.errors import UsageError

FIVES = hugging_face(FIVE, INSIDE_FIVE, "linear_projections")


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (states.mit(), "mit"),
        (states.prefixed("backbone.", states.mit()), "mit"),
        (mmseg_names(), "mit_mmseg"),
        (timm_names(), "timm_pvt_v2"),
        (states.segmentor(), "segmentor"),
        (states.segmentor(states.segformer_head()), "segmentor"),
        (states.prefixed("ema_model.", states.segmentor()), "segmentor"),
        (states.daformer_head(), "decoder"),
        (states.prefixed("decode_head.", states.segformer_head()), "decoder"),
        (states.rebuilder(), "rebuilder"),
        (hugging_face(HUB, INSIDE_HUB, "linear_c"), "hf_segformer"),
        (FIVES, "hf_segformer"),
    ],
)
def test_the_kind_is_found_from_the_names(state: states.State, kind: str) -> None:
    assert detect(state) == kind


@pytest.mark.parametrize("name", shape_lists())
def test_the_kind_of_every_full_size_list_is_found(name: str) -> None:
    state = {k: np.broadcast_to(np.float32(0), shape) for k, shape in shape_lists()[name].items()}
    wanted = {"mit_": "mit", "hf_s": "hf_segformer", "rebu": "rebuilder", "pvt_": "mit"}
    wanted |= {"effi": "efficientnet_lite", "mobi": "mobilenet_v2"}
    wanted |= {"dino": "dinov2"}
    own = "vfm_uda" if "vfmuda" in name else "segmentor"
    assert detect(state) == wanted.get(name[:4], own)


def test_a_half_matching_file_is_still_recognised_and_unknown_names_are_not() -> None:
    state = states.mit()
    del state["block3.1.attn.q.weight"]
    assert detect(state) == "mit"
    with pytest.raises(ValueError, match=r"no kind has these names \(vit\.a, "):
        detect({"vit.a": np.zeros(1), "vit.b": np.zeros(1), "c": np.zeros(1)})


def test_two_kinds_that_fit_alike_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrm_jax.convert.matching.KINDS", {**KINDS, "twin": KINDS["mit"]})
    with pytest.raises(ValueError, match="fit mit and twin; say which"):
        detect(states.mit())


def test_leaves_that_may_be_missing_are_left_out_and_all_others_filled() -> None:
    whole = leaves(import_torch(states.segmentor(), "segmentor"))
    state = states.segmentor()
    del state["decode_head.conv_seg.bias"]
    del state["backbone.block3.1.attn.q.weight"]  # one block of a stacked leaf
    with pytest.raises(Misfit) as caught:
        import_torch(state, "segmentor", allow_missing=["decoder/classifier/.*"])
    assert caught.value.problems == ["missing backbone.block3.1.attn.q.weight"]
    allowed = ["decoder/classifier/.*", "encoder/block3/attn/q/kernel"]
    found = leaves(import_torch(state, "segmentor", allow_missing=allowed))
    gone = {"params/decoder/classifier/bias", "params/encoder/block3/attn/q/kernel"}
    assert found.keys() == whole.keys() - gone
    for path, value in found.items():
        np.testing.assert_array_equal(value, whole[path])
    shown = trace(state, "segmentor", allow_missing=allowed)
    assert set(shown.absent) == gone
    torn = {"backbone.block3.0.attn.q.weight", "backbone.block3.2.attn.q.weight"}
    assert torn <= shown.dropped.keys()


def test_a_pattern_has_to_match_the_whole_path() -> None:
    state = states.mit()
    del state["norm2.bias"]
    with pytest.raises(Misfit, match=r"missing norm2\.bias"):
        import_torch(state, "mit", allow_missing=["norm2"])


def test_integers_where_floats_belong_are_refused_by_name() -> None:
    state = states.mit() | {"norm1.weight": np.ones(8, np.int32)}
    with pytest.raises(Misfit, match=r"1 problem\(s\): norm1\.weight holds int32"):
        import_torch(state, "mit")


def test_a_trace_accounts_for_every_tensor_once() -> None:
    state = states.segmentor()
    shown = trace(state, "segmentor")
    moved = [name for names, *_ in shown.moves for name in names]
    assert sorted([*moved, *shown.dropped]) == sorted(state)
    assert shown.problems == []
    assert all("counter" in reason for reason in shown.dropped.values())


# The lists of Hugging Face and of several copies in one file have other names than an export.
COMPLETE = [n for n in shape_lists() if not n.startswith(("hf_", "uda_"))]


@pytest.mark.parametrize("name", COMPLETE)
def test_a_complete_export_has_exactly_the_names_and_shapes_of_the_reference(name: str) -> None:
    listed = shape_lists()[name]
    # Half precision: a quarter of the memory of full-size networks stays unused.
    state: dict[str, Any] = {
        key: np.broadcast_to(np.float16(0), shape)
        for key, shape in listed.items()
        if key != "transformer.pos_embed"  # of the Rebuilder: made anew
    }
    kind = detect(state)
    written = export_torch(import_torch(state, kind, classifier=True), kind, complete=True)
    # PVTv2's list has the classifier, which its module has not.
    heads = {"head.weight", "head.bias"} if name.startswith("pvt_v2") else set()
    assert {key: value.shape for key, value in written.items()} == {
        key: shape for key, shape in listed.items() if key not in heads
    }
    counters = {v.dtype for k, v in written.items() if k.endswith("num_batches_tracked")}
    assert counters <= {np.dtype(np.int64)}


def test_what_is_made_anew_is_listed_and_is_what_an_import_drops() -> None:
    state = states.segmentor(states.segformer_head())
    kept = export_torch(import_torch(state, "segmentor"), "segmentor")
    added = synthesise(kept)
    assert added.keys() == {
        "decode_head.conv_seg.weight",
        "decode_head.conv_seg.bias",
        "decode_head.linear_fuse.bn.num_batches_tracked",
    }
    assert added["decode_head.conv_seg.weight"].shape == (5, 128, 1, 1)
    assert (kept | added).keys() == state.keys()
    table = synthesise(
        export_torch(import_torch(states.rebuilder(), "rebuilder"), "rebuilder"), grid=4
    )
    np.testing.assert_array_equal(table["transformer.pos_embed"], states.positions(8, 4))


def saved(path: Path, state: states.State) -> Path:
    np.savez(path, **state)
    return path


def test_a_file_shows_its_model(tmp_path: Path) -> None:
    hub = hugging_face(HUB, INSIDE_HUB, "linear_c")
    network = load_network(saved(tmp_path / "hub.npz", hub))
    encoder, decoder = network.model.encoder, network.model.decoder
    assert (encoder.dims, encoder.depths) == (states.DIMS, states.DEPTHS)
    assert (encoder.norm_eps, encoder.embed_norm_eps) == (1e-5, 1e-5)
    assert (decoder.kind, decoder.channels, decoder.concat) == ("segformer", 6, "c1..c4")
    assert (network.kind, network.classes) == ("hf_segformer", 5)
    plain = load_network(saved(tmp_path / "mit.npz", states.mit()))
    assert (plain.model.encoder.norm_eps, plain.model.encoder.embed_norm_eps) == (1e-6, 1e-5)
    assert plain.classes == 0
    assert set(plain.tree["params"]) == {"encoder"}


def test_a_file_that_does_not_fit_names_the_first_tensor_and_how_many(tmp_path: Path) -> None:
    state = states.mit()
    del state["patch_embed2.norm.bias"]
    del state["norm4.bias"]
    path = saved(tmp_path / "x.npz", state)
    with pytest.raises(UsageError, match=r"missing patch_embed2\.norm\.bias and 1 more; nothing"):
        load_network(path)
    with refused(tmp_path / "head.npz"):
        load_network(saved(tmp_path / "head.npz", states.daformer_head()))
