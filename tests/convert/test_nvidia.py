"""NVIDIA's whole SegFormers: linear_c1 ... linear_c4, the deepest stage first in the fusion."""

from __future__ import annotations

import re

import jax
import numpy as np
import torch_states as states

from mrm_jax.convert import detect, export_torch, import_torch, leaves
from mrm_jax.models.segformer import SegformerHead


def nvidia() -> states.State:
    """A whole network under NVIDIA's names."""
    return {
        re.sub(r"linear_c\.(\d)", lambda m: f"linear_c{int(m[1]) + 1}", key): value
        for key, value in states.segmentor(states.segformer_head()).items()
    }


def test_its_kind_is_found_and_every_tensor_comes_back_bit_for_bit() -> None:
    state = nvidia()
    assert detect(state) == "segformer_nvidia"
    written = export_torch(import_torch(state, "segformer_nvidia"), "segformer_nvidia")
    kept = {k for k in state if not re.search("num_batches_tracked|conv_seg", k)}
    assert written.keys() == kept
    for key, value in written.items():
        np.testing.assert_array_equal(value, state[key], err_msg=key)


def test_it_is_segformers_network_with_the_stages_in_the_other_order() -> None:
    ours = leaves(import_torch(nvidia(), "segformer_nvidia"))
    mmseg = states.segmentor(states.segformer_head())
    wanted = leaves(import_torch(mmseg, "segmentor", concat_order="c4..c1"))
    assert ours.keys() == wanted.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(value, wanted[path], err_msg=path)


def test_logits_are_those_of_nvidias_formula() -> None:
    whole = nvidia()
    variance = "decode_head.linear_fuse.bn.running_var"
    whole[variance] = np.abs(whole[variance]) + np.float32(0.5)
    state = {k.removeprefix("decode_head."): v.astype(np.float64) for k, v in whole.items()}
    rng = np.random.default_rng(0)
    # All maps of one size, so that nothing is resized.
    maps = tuple(rng.normal(size=(1, 2, 2, width)).astype(np.float32) for width in states.DIMS)
    embedded = [
        x @ state[f"linear_c{n}.proj.weight"].T + state[f"linear_c{n}.proj.bias"]
        for n, x in enumerate(maps, start=1)
    ]
    fused = np.concatenate(embedded[::-1], -1) @ state["linear_fuse.conv.weight"][..., 0, 0].T
    bn = {k: state[f"linear_fuse.bn.{k}"] for k in ("weight", "bias", "running_mean")}
    scale = bn["weight"] / np.sqrt(state["linear_fuse.bn.running_var"] + 1e-5)
    x = np.maximum((fused - bn["running_mean"]) * scale + bn["bias"], 0)
    wanted = x @ state["linear_pred.weight"][..., 0, 0].T + state["linear_pred.bias"]

    tree = import_torch(whole, "segformer_nvidia")
    head = SegformerHead(5, channels=6)
    variables = {name: below.get("decoder", {}) for name, below in tree.items()}
    found = jax.jit(lambda v, f: head.apply(v, f, "eval"))(variables, maps)
    # float32 against float64 over at most 24 products.
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
