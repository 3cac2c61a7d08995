"""The tables against the networks they fill, and against full-size lists of names and shapes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import torch_states as states
from golden import shape_lists

from mrm_jax import config
from mrm_jax.convert import describe, import_torch, position_table
from mrm_jax.models import rebuilder
from mrm_jax.models.build import build_rebuilder, build_segmentor, feature_spec

ENCODER = config.Encoder(dims=states.DIMS, depths=states.DEPTHS, heads=(1, 2, 4, 5))


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: tuple(x.shape), tree)


@pytest.mark.parametrize(
    ("decoder", "head"),
    [
        (config.Decoder(channels=6), states.daformer_head),
        (config.Decoder(kind="segformer", channels=6), states.segformer_head),
    ],
)
def test_an_imported_segmentor_has_the_tree_of_ours(decoder: config.Decoder, head: Any) -> None:
    model = build_segmentor(config.Model(encoder=ENCODER, decoder=decoder), 5)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    wanted = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, mode="eval"), image)
    found = import_torch(states.segmentor(head()), "segmentor")
    assert shapes(found) == shapes(dict(wanted))


def test_an_imported_rebuilder_has_the_tree_of_ours() -> None:
    spec = feature_spec(ENCODER)
    model = build_rebuilder(config.MRM(grid=(4, 4), dim=8, heads=2), spec, "daformer", (128, 128))
    maps = tuple(
        jax.ShapeDtypeStruct((1, 128 // stride, 128 // stride, width), np.float32)
        for stride, width in zip(spec.strides, spec.channels, strict=True)
    )
    uniforms = jax.ShapeDtypeStruct((1, 4, 4), np.float32)
    wanted = jax.eval_shape(lambda f, u: model.init(jax.random.key(0), f, u, 0.4), maps, uniforms)
    found = import_torch(states.rebuilder(), "rebuilder")
    assert shapes(found["params"]) == shapes(dict(wanted)["params"])


def test_both_position_tables_are_one() -> None:
    np.testing.assert_array_equal(
        position_table(16, 512), rebuilder.sine_cosine_table((16, 16), 512)
    )


def test_position_table_has_the_published_entries() -> None:
    table = position_table(16, 512)
    wanted = [0.141120, 0.342782, 0.000322, -0.989992, -0.958924, 0.283662]
    found = table[3 * 16 + 5, [0, 1, 127, 128, 256, 384]]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert table.astype(np.float64).sum() == pytest.approx(59700.68, abs=0.01)
    assert np.square(table.astype(np.float64)).sum() == pytest.approx(65536, abs=0.01)


# Beginning of a list's name -> kind. The lists of other networks come with their rows.
KINDS = {
    "mit_b": None,
    "pvt_v2_b": None,
    "efficientnet_lite": None,
    "mobilenet_v2": None,
    "segmentor_daformer_mit": "segmentor",
    "segmentor_segformer_mit": "segmentor",
    "segmentor_dlv2": "segmentor",
    "segmentor_deeplabv3plus_": "segmentor",
    "uda_": "segmentor",
    "rebuilder_": "rebuilder",
    "hf_segformer_": "hf_segformer",
    "dinov2_vit": "dinov2",
    "segmentor_vfmuda_": "vfm_uda",
}
LISTS = [(name, kind) for prefix, kind in KINDS.items() for name in shape_lists(prefix)]


@pytest.mark.parametrize(("name", "kind"), LISTS)
def test_rows_cover_every_tensor_of_the_full_size_network(name: str, kind: str | None) -> None:
    # One zero seen from every index: full size without its memory.
    listed = shape_lists(name)[name]
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in listed.items()}
    shown = describe(state, kind or name)
    if "mit" in name and "rebuilder" not in name:
        large = not name.endswith("b0")
        assert shown["encoder"]["dims"] == ((64, 128, 320, 512) if large else (32, 64, 160, 256))
        assert shown["encoder"]["sr_ratios"] == (8, 4, 2, 1)
    if "r101v1c" in name:
        assert shown["encoder"]["dims"] == (256, 512, 1024, 2048)
        assert shown["encoder"]["depths"] == (3, 4, 23, 3)
    second = list(state)[1]
    del state[second]
    with pytest.raises(ValueError, match=rf"1 problem\(s\): missing {second}"):
        describe(state, kind or name)
