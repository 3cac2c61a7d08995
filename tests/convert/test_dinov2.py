"""DINOv2 in and out under every library's names, and VFM-UDA's network."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from trees import assert_same, leaves

from mrm_jax.config import Config, Decoder, Encoder, Model
from mrm_jax.convert import KINDS, describe, detect, export_torch, import_torch
from mrm_jax.convert.network import model_of
from mrm_jax.main import run
from mrm_jax.models.build import build_encoder, build_segmentor
from mrm_jax.runs.weights import check_fits_model, check_leaves, open_weights, published, remarks
from mrm_jax.variants import ENCODERS

ENCODER = Encoder("dinov2", (64,), (2,), (14,), heads=(1,), mlp_ratios=(4,), position_grid=3)
ENCODER = replace(ENCODER, drop_path=0.0)
SIZES = {
    "plain": ENCODER,
    "registers": replace(ENCODER, registers=2),
    "gated": replace(ENCODER, ffn="swiglu"),
    "both": replace(ENCODER, ffn="swiglu", registers=2, strides=(7,)),
}


def drawn(module, **mode):
    """Variables with other numbers in every leaf."""
    image = jax.ShapeDtypeStruct((1, 28, 28, 3), np.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, **mode), image)
    rng = np.random.default_rng(0)
    filled = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    return {"params": filled["params"], "batch_stats": filled.get("batch_stats", {})}


def network(model):
    return drawn(build_segmentor(model, 5), mode="eval")


def encoder(name):
    return drawn(build_encoder(Model(encoder=SIZES[name])), mode="eval")


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("kind", ["dinov2", "hf_dinov2", "timm_dinov2"])
def test_an_encoder_is_recognised_read_and_written_under_each_librarys_names(kind, name):
    variables = encoder(name)
    if kind == "timm_dinov2":  # has neither of these
        variables["params"]["mask_token"][:] = 0
        variables["params"]["positions"][0] *= not SIZES[name].registers
    state = export_torch(variables, kind)
    assert detect(state) == kind
    assert_same(import_torch(state, kind), variables)
    found, _ = model_of(describe(state, kind))
    how = {"hf_dinov2": "resize", "timm_dinov2": "antialias"}.get(kind, "meta")
    how = "meta" if SIZES[name].registers else how
    assert found.encoder == replace(SIZES[name], positions=how)


def test_transformers_newer_names_and_those_of_its_classifiers_are_read_too():
    variables = encoder("registers")
    state = export_torch(variables, "hf_dinov2")
    newer = {
        key.replace("attention.attention.query", "attention.q_proj")
        .replace("attention.attention.key", "attention.k_proj")
        .replace("attention.attention.value", "attention.v_proj")
        .replace("attention.output.dense", "attention.o_proj"): value
        for key, value in state.items()
    }
    assert newer.keys() != state.keys()
    for prefix in ("", "dinov2.", "dinov2_with_registers."):
        for names in (state, newer):
            named = {prefix + key: value for key, value in names.items()}
            named["classifier.weight"] = np.zeros((1000, 128), np.float32)
            assert detect(named) == "hf_dinov2"
            assert_same(import_torch(named, "hf_dinov2"), variables)


def test_timm_with_registers_gets_the_class_tokens_position_into_the_token():
    variables = encoder("registers")
    state = export_torch(variables, "timm_dinov2")
    params = variables["params"]
    np.testing.assert_array_equal(
        state["cls_token"][0, 0], params["cls_token"] + params["positions"][0]
    )
    assert state["pos_embed"].shape == (1, 9, 64)
    again = import_torch(state, "timm_dinov2")["params"]
    assert not again["positions"][0].any()
    assert not again["mask_token"].any()
    assert "mask_token" not in state


def test_kinds_of_one_size_refuse_another():
    state = export_torch(encoder("plain"), "dinov2")
    sized = {kind for kind in KINDS if kind.startswith("dinov2_")}
    assert sized == {"dinov2_" + n for n in ("s14", "b14", "l14", "g14")} | {
        f"dinov2_{n}14_reg" for n in "sbl"
    }
    with pytest.raises(ValueError, match=r"dims are \(64,\), expected \(384,\)"):
        import_torch(state, "dinov2_s14")


@pytest.mark.parametrize("key", ["pos_embed", "blocks.1.mlp.fc2.bias"])
def test_a_tensor_that_is_missing_or_misshapen_is_named(key):
    state = export_torch(encoder("plain"), "dinov2")
    with pytest.raises(ValueError, match=f"{key} has shape"):
        import_torch({**state, key: state[key][..., :-1]}, "dinov2")
    del state[key]
    with pytest.raises(ValueError, match=f"missing {key}"):
        import_torch(state, "dinov2")


def test_positions_that_are_no_square_are_refused():
    state = export_torch(encoder("plain"), "dinov2")
    state["pos_embed"] = state["pos_embed"][:, :-1]
    with pytest.raises(ValueError, match="9 positions"):
        import_torch(state, "dinov2")


def test_vfm_udas_network_comes_in_from_either_copy_and_goes_out_for_a_strict_load():
    model = Model(encoder=SIZES["plain"], decoder=Decoder("vit_light"))
    variables = network(model)
    state = export_torch(variables, "vfm_uda", complete=True)
    np.testing.assert_array_equal(state["token_masking.mask_token"], state["encoder.mask_token"])
    other = {key: 2 * value for key, value in state.items()}
    both = {f"network.{key}": value for key, value in state.items()}
    both |= {f"network_ema.{key}": value for key, value in other.items()}
    for names in (state, both):
        assert detect(names) == "vfm_uda"
        assert_same(import_torch(names, "vfm_uda"), variables)
    ema = import_torch(both, "vfm_uda", copy="network_ema")
    assert_same(ema, jax.tree.map(lambda leaf: 2 * leaf, variables))
    found, _ = model_of(describe(both, "vfm_uda"))
    assert found.decoder.kind == "vit_light"
    assert found.encoder == replace(SIZES["plain"], resize="1.1")
    again = export_torch(variables, "vfm_uda", copy="network_ema")
    assert set(again) == {f"network_ema.{key}" for key in state if "token_masking" not in key}


def test_a_pyramid_with_daformers_head_goes_through_a_segmentors_names():
    model = Model(encoder=replace(SIZES["both"], pyramid=True), decoder=Decoder(channels=8))
    variables = network(model)
    state = export_torch(variables, "segmentor")
    assert {key.partition(".")[0] for key in state} == {"backbone", "neck", "decode_head"}
    assert detect(state) == "segmentor"
    assert_same(import_torch(state, "segmentor"), variables)
    assert model_of(describe(state, "segmentor"))[0].encoder == model.encoder
    assert len(leaves(variables["params"]["neck"])) == 12


def test_a_run_that_starts_from_timms_file_is_told_what_it_lacks_and_does_otherwise(tmp_path):
    file = tmp_path / "timm.npz"
    np.savez(file, **export_torch(encoder("plain"), "timm_dinov2"))
    opened = open_weights(str(file), "model.encoder.weights")
    assert opened.zeros == ("encoder/mask_token",)
    run = Config(model=Model(encoder=SIZES["plain"]))
    check_fits_model(run, opened, "file", whole=False)
    assert check_leaves(run, opened.tree, opened.absent, "file", whole=False) == ()
    zeros, filters = remarks(run, opened)
    assert "encoder/mask_token" in zeros
    assert "positions antialias" in filters
    assert published(ENCODERS["dinov2_b14_reg"]) == "dinov2_b14_reg"


def test_the_command_says_in_one_line_that_timms_file_has_no_mask_token(tmp_path, capsys):
    file, folder = tmp_path / "timm.npz", tmp_path / "net"
    np.savez(file, **export_torch(encoder("plain"), "timm_dinov2"))
    assert run(["convert", "--from", str(file), "--to", str(folder)]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "mask_token" in line]
    assert said == ["zeros, as such files have none: encoder/mask_token"]
