"""Parts of a network: those that the network calls, as often as it holds them."""

import functools
from dataclasses import replace

import jax
import pytest

from mrm_jax import sharding
from mrm_jax.command import load_config
from mrm_jax.machine import bench, parts
from mrm_jax.main import run
from mrm_jax.train.step import build_step

CONFIG = load_config(["--config=tiny:dacs"])


def deeper(config, depths):
    encoder = replace(config.model.encoder, depths=depths)
    return replace(config, model=replace(config.model, encoder=encoder))


@functools.cache
def found():
    """{(what, part): Work} of a MiT with three blocks in its first stage."""
    works = parts.works(deeper(CONFIG, (3, 1)), sharding.mesh(1))
    return {(work.what, work.part): work for work in works}


def test_parts_are_the_modules_by_the_paths_of_their_parameters():
    program = build_step(deeper(CONFIG, (3, 1)))
    state = jax.eval_shape(program.init, jax.random.key_data(jax.random.key(0)))
    names = {part for _, part in found()}
    others = {"loss", "pseudo_label", "mix", "augment", "ema", "optimizer"}
    assert others < names
    for name in names - others:
        functools.reduce(lambda tree, key: tree[key], name.split("/"), state.params["segmentor"])
    assert {"encoder/patch_embed1", "encoder/block1/attn", "encoder/block2/mlp"} < names
    assert {"decoder", "decoder/fuse", "decoder/classifier"} < names


def test_blocks_that_are_stored_stacked_are_timed_once_and_counted():
    times = {part: work.times for (_, part), work in found().items()}
    assert times["encoder/block1"] == times["encoder/block1/attn"] == 3
    assert times["encoder/block2"] == times["encoder/patch_embed1"] == times["decoder"] == 1


def test_a_part_computes_its_module_and_all_gradients():
    # 8 x 16 cells of 8 channels to 17 classes, two pictures: a product, and two in the gradient.
    products = 2 * 2 * 8 * 16 * 8 * 17
    flops = {}
    for what in ("forward", "backward"):
        call = found()[what, "decoder/classifier"].make()
        out = call.run()
        flops[what] = call.costs["flops"]
    assert out[0].shape == (2, 8, 16, 17)
    params, (maps,) = out[1]
    assert params["kernel"].shape == (8, 17)
    assert maps.shape == (2, 8, 16, 8)
    assert products <= flops["forward"] < 1.2 * products
    assert 3 * products <= flops["backward"] < 1.2 * 3 * products


def test_a_picture_needs_no_gradient():
    made = found()["backward", "encoder/patch_embed1"].make()
    assert made.run()[1][1] == []


@pytest.mark.parametrize("words", ["tiny:mic,mrm=true", "tiny:dacs,encoder=resnet50"])
def test_other_networks_have_parts_too(words):
    config = load_config([f"--config={words}"], {"model.encoder.weights": "any"})
    names = {work.part for work in parts.works(config, sharding.mesh(1))}
    wanted = {"attention/fuse"} if "mic" in words else {"encoder/stem", "encoder/layer3/rest"}
    assert wanted < names
    assert "encoder/layer3" not in names  # known by its blocks


def test_what_takes_longest_comes_first_at_the_end(monkeypatch, capsys):
    kept = [found()["forward", part] for part in ("decoder/embed0", "decoder/fuse")]
    monkeypatch.setattr(bench.parts, "works", lambda config, mesh: kept)
    spreads = iter([{"median": 1e-3, "min": 0, "max": 1, "count": 1}, {"median": 1.0, "count": 1}])
    monkeypatch.setattr(bench, "spread", lambda seconds: {"min": 0, "max": 1, **next(spreads)})
    assert run(["bench", "--config=tiny:dacs", "--what", "parts", "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("decoder/embed0 forward on ")
    table = out.split("\n\n")[1].splitlines()
    assert [line.split()[-2] for line in table[1:]] == ["decoder/fuse", "decoder/embed0"]
