"""import_torch, export_torch and describe on small state dicts of every kind."""

from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch_states as states
from trees import assert_same, leaves

from mrm_jax.convert import KINDS, describe, detect, export_torch, import_torch, position_table


def mmseg_names() -> states.State:
    """`states.mit()` as newer mmseg names it: q and kv fused, the MLP as 1x1 convolutions."""
    plain, found = states.mit(), {}
    for key, value in plain.items():
        if match := re.fullmatch(r"patch_embed(\d)\.(proj|norm)\.(\w+)", key):
            name = {"proj": "projection", "norm": "norm"}[match[2]]
            found[f"layers.{int(match[1]) - 1}.0.{name}.{match[3]}"] = value
        elif match := re.fullmatch(r"norm(\d)\.(\w+)", key):
            found[f"layers.{int(match[1]) - 1}.2.{match[2]}"] = value
        elif match := re.fullmatch(r"block(\d)\.(\d)\.(.+)\.(weight|bias)", key):
            block, name, kind = f"layers.{int(match[1]) - 1}.1.{match[2]}", match[3], match[4]
            if name == "attn.q":
                kv = plain[key.replace("attn.q", "attn.kv")]
                found[f"{block}.attn.attn.in_proj_{kind}"] = np.concatenate([value, kv])
            elif name != "attn.kv":
                new = {"attn.proj": "attn.attn.out_proj", "mlp.fc1": "ffn.layers.0"}
                new |= {"mlp.dwconv.dwconv": "ffn.layers.1", "mlp.fc2": "ffn.layers.4"}
                square = name in ("mlp.fc1", "mlp.fc2") and kind == "weight"
                value = value[:, :, None, None] if square else value
                found[f"{block}.{new.get(name, name)}.{kind}"] = value
    return found


def timm_names() -> states.State:
    """`states.mit()` as timm's PVTv2 names it."""
    found = {}
    for key, value in states.mit().items():
        if match := re.fullmatch(r"(patch_embed|block|norm)(\d)\.(.+)", key):
            stage = f"stages.{int(match[2]) - 1}"
            embed = "patch_embed" if match[2] == "1" else f"{stage}.downsample"
            names = {"patch_embed": embed, "block": f"{stage}.blocks", "norm": f"{stage}.norm"}
            key = f"{names[match[1]]}.{match[3]}".replace("dwconv.dwconv", "dwconv")
        found[key] = value
    return found


HUB = {
    "patch_embed": "segformer.encoder.patch_embeddings.{z}.{rest}",
    "norm": "segformer.encoder.layer_norm.{z}.{rest}",
    "block": "segformer.encoder.block.{z}.{rest}",
}
FIVE = {
    "patch_embed": "segformer.stages.{z}.patch_embeddings.{rest}",
    "norm": "segformer.stages.{z}.layer_norm.{rest}",
    "block": "segformer.stages.{z}.blocks.{rest}",
}
INSIDE_HUB = {
    "norm1": "layer_norm_1", "norm2": "layer_norm_2", "attn.q": "attention.self.query",
    "attn.proj": "attention.output.dense", "attn.sr": "attention.self.sr",
    "attn.norm": "attention.self.layer_norm", "mlp.fc1": "mlp.dense1", "mlp.fc2": "mlp.dense2",
    "k": "attention.self.key", "v": "attention.self.value",
}  # fmt: skip
INSIDE_FIVE = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.q": "attention.q_proj",
    "attn.proj": "attention.o_proj", "attn.sr": "attention.sequence_reduction.sequence_reduction",
    "attn.norm": "attention.sequence_reduction.layer_norm", "k": "attention.k_proj",
    "v": "attention.v_proj",
}  # fmt: skip


def hugging_face(where: dict[str, str], inside: dict[str, str], linear: str) -> states.State:
    """`states.mit()` and a SegFormer head, as Hugging Face names them, with its order of stages."""
    found: states.State = {}
    for key, value in states.mit().items():
        match = re.fullmatch(r"([a-z_]+)(\d)\.(.+)", key)
        if match is None:
            continue
        rest = match[3].replace("norm.", "layer_norm.") if match[1] == "patch_embed" else match[3]
        if match[1] == "block":
            number, name, kind = re.fullmatch(r"(\d+)\.(.+)\.(\w+)", rest).groups()  # type: ignore
            if name == "attn.kv":
                for part, half in zip("kv", np.split(value, 2), strict=True):
                    new = f"{number}.{inside[part]}.{kind}"
                    found[where["block"].format(z=int(match[2]) - 1, rest=new)] = half
                continue
            rest = f"{number}.{inside.get(name, name)}.{kind}"
        found[where[match[1]].format(z=int(match[2]) - 1, rest=rest)] = value
    head = states.segformer_head()
    for key, value in head.items():
        new = key.replace("linear_c", linear).replace("linear_fuse.bn", "batch_norm")
        new = new.replace("linear_fuse.conv", "linear_fuse").replace("linear_pred", "classifier")
        if new == "linear_fuse.weight":
            value = np.concatenate(np.split(value, 4, axis=1)[::-1], axis=1)
        if not new.startswith("conv_seg"):
            found[f"decode_head.{new}"] = value
    return found


STATES = {
    "mit": states.mit,
    "mit_mmseg": mmseg_names,
    "pvt_v2": states.mit,
    "timm_pvt_v2": timm_names,
    "decoder": states.daformer_head,
    "segmentor": states.segmentor,
    "rebuilder": states.rebuilder,
    "hf_segformer": lambda: hugging_face(HUB, INSIDE_HUB, "linear_c"),
}
DROPPED = re.compile(r"head\.(weight|bias)|.*num_batches_tracked|transformer\.pos_embed")


@pytest.mark.parametrize("kind", STATES)
def test_export_gives_back_every_tensor_that_was_not_dropped_bit_for_bit(kind: str) -> None:
    state = STATES[kind]()
    kept = {key: value for key, value in state.items() if not DROPPED.fullmatch(key)}
    assert_same(export_torch(import_torch(state, kind), kind), kept)


@pytest.mark.parametrize("kind", STATES)
def test_import_of_an_export_is_the_same_tree(kind: str) -> None:
    tree = import_torch(STATES[kind](), kind)
    assert_same(import_torch(export_torch(tree, kind), kind), tree)


def test_all_names_of_mit_lead_to_one_tree() -> None:
    plain = import_torch(states.mit(), "mit")
    assert_same(import_torch(mmseg_names(), "mit_mmseg"), plain)
    assert_same(import_torch(states.mit(), "pvt_v2"), plain)
    assert_same(import_torch(timm_names(), "timm_pvt_v2"), plain)
    whole = import_torch(states.segmentor(states.segformer_head()), "segmentor")
    assert_same(import_torch(hugging_face(HUB, INSIDE_HUB, "linear_c"), "hf_segformer"), whole)
    five = hugging_face(FIVE, INSIDE_FIVE, "linear_projections")
    assert_same(import_torch(five, "hf_segformer"), whole)
    assert_same(whole["params"]["encoder"], plain["params"])


def test_blocks_are_stacked_and_kernels_are_ours() -> None:
    state = states.mit()
    params = import_torch(state, "mit")["params"]
    for j in range(states.DEPTHS[2]):
        query, deep = (
            state[f"block3.{j}.attn.q.weight"],
            state[f"block3.{j}.mlp.dwconv.dwconv.weight"],
        )
        np.testing.assert_array_equal(params["block3"]["attn"]["q"]["kernel"][j], query.T)
        kernel = params["block3"]["mlp"]["dwconv"]["kernel"][j]
        assert kernel.shape == (3, 3, 1, deep.shape[0])
        assert kernel[0, 2, 0, 5] == deep[5, 0, 0, 2]
    reduction = params["block1"]["attn"]["sr"]["kernel"][0]
    assert reduction[1, 6, 2, 3] == state["block1.0.attn.sr.weight"][3, 2, 1, 6]


def test_transposed_convolutions_are_flipped() -> None:
    state = states.rebuilder()
    kernel = import_torch(state, "rebuilder")["params"]["projector1"]["deconv0"]["kernel"]
    assert kernel[0, 1, 5, 2] == state["projector.projector1.fpn.0.weight"][5, 2, 3, 2]


def test_all_that_does_not_fit_is_named_at_once() -> None:
    state = states.mit()
    del state["block3.1.attn.q.weight"]
    state["block2.0.norm1.weight"] = np.zeros(5, np.float32)
    state["surplus.weight"] = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match=r"3 problem\(s\)") as caught:
        import_torch(state, "mit")
    for wanted in (
        "missing block3.1.attn.q.weight",
        "block2.0.norm1.weight has shape (5,), expected (12)",
        "not expected surplus.weight",
    ):
        assert wanted in str(caught.value)


def test_a_number_in_a_name_makes_no_longer_list_than_there_are_names() -> None:
    far = states.mit() | {f"block3.{n}.norm1.weight": np.zeros(16) for n in ("9" * 8, "9" * 5000)}
    with pytest.raises(ValueError, match="missing block3") as caught:
        import_torch(far, "mit")
    assert len(caught.value.problems) < 20 * len(far)  # type: ignore[attr-defined]


def test_tensors_without_entries_fit_nothing() -> None:
    empty = {name: np.zeros((0,) * x.ndim, np.float32) for name, x in states.mit().items()}
    with pytest.raises(ValueError, match=r"has shape \(0, 0"):
        import_torch(empty, "mit")


def test_export_names_missing_surplus_and_misshapen_leaves() -> None:
    tree = import_torch(states.mit(), "mit")
    del tree["params"]["norm2"]
    tree["params"]["other"] = {"kernel": np.zeros(3)}
    tree["params"]["block3"]["norm1"]["scale"] = np.zeros((3, 5), np.float32)
    with pytest.raises(ValueError, match=r"4 problem\(s\)") as caught:
        export_torch(tree, "mit")
    for wanted in ("missing params/norm2/scale", "other/kernel", "block3/norm1/scale has shape"):
        assert wanted in str(caught.value)


def test_a_stage_that_lacks_one_block_of_one_tensor_is_refused() -> None:
    tree = import_torch(states.mit(), "mit")
    scale = tree["params"]["block3"]["norm2"]["scale"]
    tree["params"]["block3"]["norm2"]["scale"] = scale[:2]
    with pytest.raises(ValueError, match="block3/norm2/scale has 2 blocks, others have 3"):
        export_torch(tree, "mit")


def test_the_student_is_taken_where_a_file_holds_several_copies() -> None:
    student, teacher = states.segmentor(), {k: v + 1 for k, v in states.segmentor().items()}
    file = states.prefixed("ema_model.", teacher) | states.prefixed("model.", student)
    file |= states.prefixed("imnet_model.", teacher)
    assert_same(import_torch(file, "segmentor"), import_torch(student, "segmentor"))
    picked = import_torch(file, "segmentor", copy="ema_model")
    assert_same(picked, import_torch(teacher, "segmentor"))
    assert describe(file, "segmentor")["copy"] == "model"
    with pytest.raises(ValueError, match="copies there: model, ema_model, imnet_model"):
        import_torch(file, "segmentor", copy="other")
    written = export_torch(import_torch(file, "segmentor"), "segmentor", copy="model")
    assert set(written) <= set(file)


def test_the_encoder_of_a_segmentor_file_imports_as_mit() -> None:
    assert_same(import_torch(states.segmentor(), "mit"), import_torch(states.mit(), "mit"))


def test_concat_order_turns_the_blocks_of_the_fusing_kernel_round() -> None:
    state = states.segformer_head()
    ours = import_torch(state, "decoder")["params"]["fuse"]["conv"]["kernel"]
    turned = import_torch(state, "decoder", concat_order="c4..c1")
    kernel = turned["params"]["fuse"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, np.concatenate(np.split(ours, 4)[::-1]))
    back = export_torch(turned, "decoder", concat_order="c4..c1")
    np.testing.assert_array_equal(back["linear_fuse.conv.weight"], state["linear_fuse.conv.weight"])


def test_a_size_checked_kind_refuses_another_size() -> None:
    with pytest.raises(ValueError, match=r"dims are \(8, 12, 16, 20\), expected \(32, 64, 160"):
        import_torch(states.mit(), "mit_b0")


def test_only_the_rebuilders_own_position_table_may_be_dropped() -> None:
    state = states.rebuilder()
    np.testing.assert_allclose(
        state["transformer.pos_embed"][0], position_table(4, 8), rtol=0, atol=1e-7
    )
    tree = import_torch(state, "rebuilder")
    assert "transformer.pos_embed" not in export_torch(tree, "rebuilder")
    written = export_torch(tree, "rebuilder", grid=4)["transformer.pos_embed"]
    np.testing.assert_allclose(written, state["transformer.pos_embed"], rtol=0, atol=1e-7)
    state["transformer.pos_embed"] = state["transformer.pos_embed"] * np.float32(1.01)
    with pytest.raises(ValueError, match=r"transformer\.pos_embed differs by"):
        import_torch(state, "rebuilder")


def test_describe_says_what_the_tensors_show() -> None:
    shown = describe(states.segmentor(), "segmentor")
    assert shown["encoder"]["dims"] == states.DIMS
    assert shown["encoder"]["depths"] == states.DEPTHS
    assert shown["encoder"]["sr_ratios"] == states.RATIOS
    assert shown["decoder"]["layout"] == "daformer_aspp"
    assert (shown["decoder"]["channels"], shown["decoder"]["num_classes"]) == (6, 5)
    head = describe(hugging_face(HUB, INSIDE_HUB, "linear_c"), "hf_segformer")["decoder"]
    assert head["concat_order"] == "c4..c1"


def test_a_head_whose_bottleneck_expects_another_branch_is_refused() -> None:
    state = {k: v for k, v in states.daformer_head().items() if "aspp_modules.3" not in k}
    with pytest.raises(ValueError, match="bottleneck reads 24 channels"):
        import_torch(state, "decoder")


def test_hugging_face_backbones_come_without_a_decoder() -> None:
    state = hugging_face(HUB, INSIDE_HUB, "linear_c")
    state = {key: value for key, value in state.items() if not key.startswith("decode_head")}
    state |= states.filled(states.affine("classifier", (10, states.DIMS[-1])))
    assert set(import_torch(state, "hf_segformer")["params"]) == {"encoder"}


@pytest.mark.parametrize("names", [(HUB, INSIDE_HUB), (FIVE, INSIDE_FIVE)], ids=["hub", "five"])
def test_hugging_face_backbones_may_lack_the_leading_name(names: tuple[Any, Any]) -> None:
    prefixed = {
        key: value
        for key, value in hugging_face(*names, "linear_c").items()
        if key.startswith("segformer.")
    }
    bare = {key.removeprefix("segformer."): value for key, value in prefixed.items()}
    assert detect(bare) == "hf_segformer"
    assert_same(import_torch(bare, "hf_segformer"), import_torch(prefixed, "hf_segformer"))


def test_an_auxiliary_head_is_dropped_by_name() -> None:
    whole = states.segmentor()
    auxiliary = states.prefixed("auxiliary_head.", states.segformer_head())
    for prefix in ("", "model."):
        state = states.prefixed(prefix, whole | auxiliary)
        assert_same(import_torch(state, "segmentor"), import_torch(whole, "segmentor"))


def test_heads_must_divide_the_widths() -> None:
    import_torch(states.mit(), "mit", heads=(1, 2, 4, 5), eps=1e-6)
    with pytest.raises(ValueError, match="do not divide the widths"):
        import_torch(states.mit(), "mit", heads=(1, 2, 5, 8))


@pytest.mark.parametrize(
    ("kind", "variant", "message"),
    [
        ("mitt", {}, "try one of mit"),
        ("mit", {"order": 1}, "variant 'order' is unknown"),
        ("mit", {"concat_order": "up"}, r"it may be c1\.\.c4 or c4\.\.c1"),
        ("mit", {"allow_missing": "norm2/.*"}, "allow_missing is a text"),
        (
            "mit",
            {"allow_missing": ["norm2/("]},
            r"allow_missing 'norm2/\(' is no regular expression",
        ),
    ],
)
def test_wrong_arguments_are_named(kind: str, variant: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        import_torch(states.mit(), kind, **variant)


def test_half_precision_stays_half_precision() -> None:
    state = {key: value.astype(np.float16) for key, value in states.mit().items()}
    tree = leaves(import_torch(state, "mit")["params"])
    assert {value.dtype for value in tree.values()} == {np.dtype(np.float16)}


def test_bfloat16_of_jax_stays_bfloat16() -> None:
    state = {key: np.asarray(jnp.asarray(v, jnp.bfloat16)) for key, v in states.mit().items()}
    tree = leaves(import_torch(state, "mit")["params"])
    assert {str(value.dtype) for value in tree.values()} == {"bfloat16"}


def test_arrays_of_another_library_are_refused_by_name() -> None:
    class Tensor:
        shape, dtype = (8,), "torch.float32"

    with pytest.raises(ValueError, match=r"norm1\.weight holds torch\.float32, expected float"):
        import_torch(states.mit() | {"norm1.weight": Tensor()}, "mit")  # type: ignore[dict-item]


def test_no_kind_fills_a_leaf_twice() -> None:
    for kind, row in KINDS.items():
        for part in row.parts:
            for layout in part.layouts:
                paths = [(r.collection, r.path) for r in layout.rows]
                assert len(paths) == len(set(paths)), (kind, layout.name)
