"""The rows of ResNet and of DeepLab's heads: round trips, placement, refusals, our networks."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
import pytest
import torch_states as states
from golden import shape_lists
from trees import assert_same

from mrm_jax import config
from mrm_jax.convert import describe, export_torch, import_torch
from mrm_jax.models.build import build_segmentor

DROPPED = re.compile(r"fc\.(weight|bias)|.*num_batches_tracked")


def segmentor(stem: str, head: states.State) -> states.State:
    encoder = {key: x for key, x in states.resnet(stem).items() if not key.startswith("fc.")}
    return states.prefixed("backbone.", encoder) | states.prefixed("decode_head.", head)


CASES = {
    "resnet_v1c": ("resnet_v1c", lambda: states.resnet()),
    "resnet_torchvision": ("resnet_torchvision", lambda: states.resnet("7x7")),
    "deeplabv2": ("decoder", states.deeplabv2_head),
    "deeplabv3plus": ("decoder", lambda: states.deeplabv3plus_head(normed=False)),
    "deeplabv3plus_bn": ("decoder", lambda: states.deeplabv3plus_head(normed=True)),
    "whole": ("segmentor", lambda: segmentor("v1c", states.deeplabv2_head())),
}


@pytest.mark.parametrize("name", CASES)
def test_export_gives_back_every_tensor_and_import_the_same_tree(name: str) -> None:
    kind, make = CASES[name]
    state = make()
    kept = {key: value for key, value in state.items() if not DROPPED.fullmatch(key)}
    tree = import_torch(state, kind)
    written = export_torch(tree, kind)
    assert_same(written, kept)
    assert_same(import_torch(written, kind), tree)


FULL_SIZE = [*shape_lists("segmentor_dlv2red_r101"), *shape_lists("segmentor_deeplabv3plus_r101")]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_full_size_state_survives_the_round_trip_bit_for_bit(name: str) -> None:
    listed = shape_lists(name)[name]
    noise = np.random.default_rng(0).standard_normal(12_000_000, dtype=np.float32)
    state = {}
    for i, (key, shape) in enumerate(listed.items()):
        if not DROPPED.fullmatch(key) and not key.startswith("auxiliary_head."):
            # Another stretch of the noise for every tensor, so that none can stand in for another.
            size = int(np.prod(shape))
            state[key] = noise[i : i + size].reshape(shape)
    assert_same(export_torch(import_torch(state, "segmentor"), "segmentor"), state)


def test_the_first_block_stands_apart_and_the_others_are_stacked_in_order() -> None:
    state = states.resnet()
    tree = import_torch(state, "resnet_v1c")
    params, stats = tree["params"], tree["batch_stats"]
    assert set(params["layer1"]) == {"first"}
    shortcut = params["layer2"]["first"]["shortcut"]["kernel"]
    np.testing.assert_array_equal(shortcut, state["layer2.0.downsample.0.weight"][:, :, 0, 0].T)
    for j in (1, 2):
        kernel = params["layer2"]["rest"]["conv2"]["kernel"][j - 1]
        assert kernel[0, 2, 3, 5] == state[f"layer2.{j}.conv2.weight"][5, 3, 0, 2]
        mean = stats["layer2"]["rest"]["bn3"]["mean"][j - 1]
        np.testing.assert_array_equal(mean, state[f"layer2.{j}.bn3.running_mean"])
    kernel = params["stem"]["conv3"]["kernel"]
    assert kernel[0, 2, 3, 5] == state["stem.6.weight"][5, 3, 0, 2]


def test_both_stems_lead_to_the_same_stages() -> None:
    plain, other = import_torch(states.resnet(), "resnet_v1c"), states.resnet("7x7")
    found = import_torch(other, "resnet_torchvision")
    assert set(found["params"]["stem"]) == {"conv1", "bn1"}
    assert found["params"].keys() == plain["params"].keys()
    assert_same(import_torch(segmentor("v1c", states.deeplabv2_head()), "resnet_v1c"), plain)
    with pytest.raises(ValueError, match=r"missing stem\.0\.weight"):
        import_torch(other, "resnet_v1c")


def test_describe_says_what_the_tensors_show() -> None:
    shown = describe(segmentor("7x7", states.deeplabv3plus_head(normed=True)), "segmentor")
    assert shown["encoder"] == {
        "layout": "resnet_torchvision",
        "dims": (32, 48, 64, 80),
        "depths": (1, 3, 2, 2),
        "stem_width": 8,
    }
    assert shown["decoder"] == {
        "layout": "deeplabv3plus_bn",
        "in_channels": 80,
        "low_in_channels": 32,
        "low_channels": 7,
        "channels": 6,
        "num_classes": 5,
        "branches": 4,
    }
    head = describe(states.deeplabv2_head(4), "decoder")["decoder"]
    assert head == {"layout": "deeplabv2", "in_channels": 80, "num_classes": 5, "branches": 4}


@pytest.mark.parametrize("key", ["layer2.1.conv2.weight", "layer2.2.bn3.running_var"])
def test_a_block_that_lacks_a_tensor_is_named(key: str) -> None:
    state = states.resnet()
    del state[key]
    with pytest.raises(ValueError, match=rf"1 problem\(s\): missing {re.escape(key)}"):
        import_torch(state, "resnet_v1c")


def test_a_stack_of_another_length_is_refused() -> None:
    tree = import_torch(states.resnet(), "resnet_v1c")
    tree["params"]["layer2"]["rest"]["bn1"]["bias"] = np.zeros((1, 12), np.float32)
    with pytest.raises(ValueError, match="layer2/rest/bn1/bias has 2 blocks, others have 3"):
        export_torch(tree, "resnet_v1c")


def test_widths_that_our_network_cannot_have_are_refused() -> None:
    state = states.resnet()
    for j in range(2):
        for name, axis in (("conv1", 0), ("conv2", 0), ("conv2", 1), ("conv3", 1)):
            kernel = state[f"layer4.{j}.{name}.weight"]
            state[f"layer4.{j}.{name}.weight"] = np.take(kernel, range(10), axis)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            for bn in ("bn1", "bn2"):
                state[f"layer4.{j}.{bn}.{leaf}"] = state[f"layer4.{j}.{bn}.{leaf}"][:10]
    with pytest.raises(ValueError, match="layer4 has 80 channels, 4 times the 10 inside"):
        import_torch(state, "resnet_v1c")


def test_a_size_checked_kind_refuses_another_size() -> None:
    with pytest.raises(ValueError, match=r"depths are \(1, 3, 2, 2\), expected \(3, 4, 23, 3\)"):
        import_torch(states.resnet(), "resnet101_v1c")


@pytest.mark.parametrize("normed", [False, True])
def test_a_head_whose_bottleneck_expects_another_branch_is_refused(normed: bool) -> None:
    state = states.deeplabv3plus_head(normed)
    state = {key: value for key, value in state.items() if "aspp_modules.3" not in key}
    with pytest.raises(ValueError, match="bottleneck reads 30 channels, 4 branches of 6"):
        import_torch(state, "decoder")


HEADS = {
    "deeplabv2": (config.Decoder(kind="deeplabv2", dilations=(6, 12)), states.deeplabv2_head),
    "deeplabv3plus": (
        config.Decoder(kind="deeplabv3plus", channels=6, low_channels=7),
        lambda: states.deeplabv3plus_head(normed=False),
    ),
    "deeplabv3plus_bn": (
        config.Decoder(kind="deeplabv3plus", channels=6, low_channels=7, norm=True),
        lambda: states.deeplabv3plus_head(normed=True),
    ),
}


@pytest.mark.parametrize("stem", ["v1c", "7x7"])
@pytest.mark.parametrize("name", HEADS)
def test_an_imported_segmentor_has_the_tree_of_ours(name: str, stem: Any) -> None:
    decoder, head = HEADS[name]
    encoder = config.Encoder(
        kind="resnet",
        dims=(32, 48, 64, 80),
        depths=(1, 3, 2, 2),
        strides=(4, 2, 1, 1),
        stem=stem,
    )
    model = build_segmentor(config.Model(encoder=encoder, decoder=decoder), 5)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    wanted = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, mode="eval"), image)
    found = import_torch(segmentor(stem, head()), "segmentor")
    shapes = [jax.tree.map(lambda x: tuple(x.shape), dict(tree)) for tree in (found, wanted)]
    assert shapes[0] == shapes[1]
