"""Rows of EfficientNet-Lite and MobileNetV2: names, round trips, refusals, what tensors show."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
import torch_states as states
from trees import assert_same, leaves

from mrm_jax import config
from mrm_jax.convert import KINDS, describe, detect, export_torch, import_torch, trace
from mrm_jax.convert.network import model_of
from mrm_jax.models.build import build_encoder, build_segmentor
from mrm_jax.variants import ENCODERS

# (width, blocks, kernel, expansion) of every stage: two stages alike but for their width.
STAGES = ((6, 1, 3, 1), (8, 2, 3, 6), (10, 2, 5, 6), (12, 3, 3, 6), (14, 1, 5, 4), (16, 2, 5, 6))
STAGES = (*STAGES, (18, 1, 3, 6))
STEM, HEAD, CLASSES = 7, 9, 5


def conv_bn(conv: str, bn: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{conv}.weight": shape} | states.batch_norm(bn, shape[0])


def written(kind: str, classifier: bool = True) -> states.State:
    """A small network under the names of `kind`, one by one."""
    stem, head, dense = {
        "efficientnet_lite": (("_conv_stem", "_bn0"), ("_conv_head", "_bn1"), "_fc"),
        "mobilenet_v2": (
            ("features.0.0", "features.0.1"),
            ("features.13.0", "features.13.1"),
            "classifier.1",
        ),
    }.get(kind, (("conv_stem", "bn1"), ("conv_head", "bn2"), "classifier"))
    shapes = conv_bn(*stem, (STEM, 3, 3, 3))
    before, n = STEM, 0
    for stage, (width, depth, kernel, expansion) in enumerate(STAGES):
        for j in range(depth):
            inside = before * expansion
            convs = [(inside, before, 1, 1), (inside, 1, kernel, kernel), (width, inside, 1, 1)]
            if kind == "efficientnet_lite":
                prefix = f"_blocks.{n}."
                names = [
                    ("_expand_conv", "_bn0"),
                    ("_depthwise_conv", "_bn1"),
                    ("_project_conv", "_bn2"),
                ]
                names = names if n else names[1:]
            elif kind == "mobilenet_v2":
                prefix = f"features.{n + 1}.conv."
                names = [("0.0", "0.1"), ("1.0", "1.1"), ("2", "3")]
                names = names if n else [("0.0", "0.1"), ("1", "2")]
            else:
                prefix = f"blocks.{stage}.{j}."
                names = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
                names = names if n else [("conv_dw", "bn1"), ("conv_pw", "bn2")]
            for (conv, bn), shape in zip(names, convs[-len(names) :], strict=True):
                shapes |= conv_bn(prefix + conv, prefix + bn, shape)
            before, n = width, n + 1
    if classifier:
        shapes |= conv_bn(*head, (HEAD, before, 1, 1)) | states.affine(dense, (CLASSES, HEAD))
    return states.filled(shapes)


def kept(state: states.State) -> states.State:
    return {key: value for key, value in state.items() if not key.endswith("tracked")}


FAMILIES = ("efficientnet_lite", "mobilenet_v2")
LAYOUTS = tuple(prefix + family for family in FAMILIES for prefix in ("", "timm_"))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_export_gives_back_every_tensor_with_the_classifier_and_without(kind):
    state = written(kind)
    tree = import_torch(state, kind, classifier=True)
    assert_same(export_torch(tree, kind), kept(state))
    plain = import_torch(state, kind)
    assert tree["params"].keys() - plain["params"].keys() == {"classifier"}
    assert_same(export_torch(plain, kind), kept(written(kind, classifier=False)))
    dropped = {k for k, why in trace(state, kind).dropped.items() if "1000 classes" in why}
    assert dropped == kept(state).keys() - kept(written(kind, classifier=False)).keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_both_layouts_lead_to_one_tree_which_is_that_of_our_network(family):
    plain, timm = (import_torch(written(p + family), p + family) for p in ("", "timm_"))
    assert leaves(plain).keys() == leaves(timm).keys()
    model, assumed = model_of(describe(written(family), family))
    assert any("strides" in phrase for phrase in assumed)
    assert_same(import_torch(export_torch(plain, f"timm_{family}"), f"timm_{family}"), plain)
    module = build_encoder(model)
    picture = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    wanted = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, "eval"), picture)
    shapes = [jax.tree.map(lambda x: tuple(x.shape), dict(tree)) for tree in (plain, wanted)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_describe_says_what_the_tensors_show(kind):
    assert describe(written(kind), kind, classifier=True)["encoder"] == {
        "layout": kind,
        "dims": (6, 8, 10, 12, 14, 16, 18),
        "depths": (1, 2, 2, 3, 1, 2, 1),
        "kernels": (3, 3, 5, 3, 5, 5, 3),
        "expansions": (1, 6, 6, 6, 4, 6, 6),
        "stem_width": 7,
        "head_width": 9,
        "num_classes": 5,
    }
    assert describe(written(kind), kind)["encoder"]["num_classes"] is None


def test_stages_that_are_alike_are_told_apart_where_a_published_network_has_as_many_blocks(
    monkeypatch,
):
    """MobileNetV2 of a quarter of the width: stages 2 and 3 are both 8 wide."""
    widths = (8, 8, 8, 16, 24, 40, 80)
    depths = (1, 2, 3, 4, 3, 3, 1)
    stages = [(w, d, 3, 6 if i else 1) for i, (w, d) in enumerate(zip(widths, depths, strict=True))]
    monkeypatch.setitem(globals(), "STAGES", tuple(stages))
    state = written("timm_mobilenet_v2", classifier=False)
    shown = describe(state, "timm_mobilenet_v2")["encoder"]
    tree = import_torch(state, "timm_mobilenet_v2")
    back = export_torch(tree, "mobilenet_v2")
    assert shown["dims"] == describe(back, "mobilenet_v2")["encoder"]["dims"] == widths
    assert shown["depths"] == describe(back, "mobilenet_v2")["encoder"]["depths"] == depths
    assert_same(export_torch(tree, "timm_mobilenet_v2"), kept(state))


def test_kinds_are_found_from_names_but_where_timm_calls_two_networks_alike():
    for family in FAMILIES:
        assert detect(written(family)) == family
        with pytest.raises(ValueError, match="timm_efficientnet_lite and timm_mobilenet_v2; say"):
            detect(written(f"timm_{family}"))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_block_that_lacks_a_tensor_or_has_another_shape_is_named(kind):
    state = written(kind)
    key = next(k for k in state if re.search(r"(_blocks\.6|features\.7|blocks\.3\.1)\..*weight", k))
    missing = {name: value for name, value in state.items() if name != key}
    with pytest.raises(ValueError, match=rf"1 problem\(s\): missing {re.escape(key)}"):
        import_torch(missing, kind)
    bn = next(k for k in list(state)[list(state).index(key) :] if k.endswith("running_var"))
    with pytest.raises(ValueError, match=rf"1 problem\(s\): {re.escape(bn)} has shape"):
        import_torch(state | {bn: state[bn][:-1]}, kind)
    with pytest.raises(ValueError, match="not expected blocks.9.surplus"):
        import_torch(state | {"blocks.9.surplus": np.zeros(1, np.float32)}, kind)


def test_a_stage_that_is_passed_over_is_missing():
    state = {k: v for k, v in written("timm_mobilenet_v2").items() if not k.startswith("blocks.2.")}
    with pytest.raises(ValueError, match=r"missing blocks\.2\.0\.conv_pw\.weight"):
        import_torch(state, "timm_mobilenet_v2")


def test_a_number_in_a_name_makes_no_longer_list_than_there_are_names():
    for kind in LAYOUTS:
        state = written(kind)
        for name in ("_blocks.99999999999._bn1.bias", "blocks.999999999.9999999999.bn1.bias"):
            with pytest.raises(ValueError, match="problem"):
                import_torch(state | {name: np.zeros(3, np.float32)}, kind)


def test_weights_of_one_family_do_not_pass_for_the_other():
    tree = import_torch(written("efficientnet_lite"), "efficientnet_lite")
    with pytest.raises(ValueError, match="not expected params/mbconv0"):
        export_torch(tree, "mobilenet_v2")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_segmentor_with_such_a_backbone_comes_back(family):
    head = states.prefixed("decode_head.", states.deeplabv2_head())
    with pytest.raises(ValueError, match="reads 80 channels of map 4, the encoder gives 18"):
        import_torch(
            states.prefixed("backbone.", written(family, classifier=False)) | head, "segmentor"
        )
    head = {k: v[:, :18] if k.endswith("weight") and v.ndim == 4 else v for k, v in head.items()}
    state = states.prefixed("backbone.", written(family, classifier=False)) | head
    tree = import_torch(state, "segmentor")
    assert_same(export_torch(tree, "segmentor"), kept(state))
    model, _ = model_of(describe(state, "segmentor"))
    assert model.encoder.kind == family
    made = build_segmentor(config.Model(model.encoder, model.decoder), 5)
    picture = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    wanted = jax.eval_shape(lambda x: made.init(jax.random.key(0), x, mode="eval"), picture)
    assert leaves(dict(wanted)["params"]).keys() == leaves(tree["params"]).keys()


def test_a_size_checked_kind_refuses_another_size():
    with pytest.raises(ValueError, match=r"dims are \(6, 8, .*expected \(16, 24, 40, 80"):
        import_torch(written("efficientnet_lite"), "efficientnet_lite1")
    sizes = {name for name in ENCODERS if name.startswith(("efficientnet", "mobilenet", "pvt"))}
    assert sizes <= set(KINDS)
