"""Masked Representation Modeling costs nothing at test time: nothing of it is evaluated."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from toys import CONFIG, examples

from mrm_jax import config
from mrm_jax.evaluation import inference
from mrm_jax.evaluation.evaluator import evaluate_networks
from mrm_jax.models.build import build_segmentor
from mrm_jax.registry import IMAGENET
from mrm_jax.train import hooks, state

MRM = config.MRM(enabled=True, grid=(4, 4), dim=8, depth=1, heads=2)


VIT = config.Encoder("dinov2", (8,), (1,), (7,), heads=(2,), mlp_ratios=(1,), position_grid=3)
VITS = {
    "light": config.Model(VIT, config.Decoder("vit_light")),
    "pyramid": config.Model(
        replace(VIT, pyramid=True, resize="1.1"), config.Decoder(channels=8, fusion="conv1")
    ),
}


def trained(enabled: bool, model: config.Model = CONFIG.model):
    """(config, state with numbers from a hat, variables of the networks that are evaluated)."""
    cfg = replace(CONFIG, model=model, method=config.Method(mrm=replace(MRM, enabled=enabled)))
    shapes = jax.eval_shape(
        partial(state.init_state, cfg, state.build_networks(cfg)), jax.random.key(0)
    )
    rng = np.random.default_rng(0)

    def some(leaf):
        return rng.uniform(0.1, 0.5, leaf.shape).astype(leaf.dtype)

    made = jax.tree.map(some, shapes.replace(root_key=None))
    return cfg, made, hooks.evaluated_networks(made)


@pytest.fixture(scope="module")
def pair():
    """The same run with and without the Rebuilder."""
    return trained(True), trained(False)


def compiled(cfg, variables, mode):
    """What XLA says about the whole evaluation of two pictures: network, resizes and argmax."""
    cfg = replace(cfg, evaluation=config.Evaluation(mode=mode, window=(32, 32), stride=(16, 16)))
    model = build_segmentor(cfg.model, len(cfg.data.classes.names))

    def run(variables, image):
        forward = partial(inference.maps, model, variables, stats=IMAGENET)
        how = {"protocol": cfg.evaluation, "size": (96, 80)}
        return [strip.value for strip in inference.strips(forward, [image], **how)]

    return (
        jax.jit(run).lower(variables, np.zeros((2, 48, 40, 3), np.uint8)).compile().cost_analysis()
    )


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_compiled_flops_and_bytes_are_equal_with_and_without_mrm(pair, mode):
    (with_mrm, made, networks), (without, _, others) = pair
    assert jax.tree.leaves(made.params["rebuilder"]), "there was to be a Rebuilder to leave out"
    ours = compiled(with_mrm, networks["student"], mode)
    theirs = compiled(without, others["student"], mode)
    assert ours["flops"] == theirs["flops"] > 1e5
    assert ours["bytes accessed"] == theirs["bytes accessed"]


@pytest.mark.parametrize("name", VITS)
def test_a_vit_with_mrm_costs_at_test_time_what_it_costs_without(name):
    (ours, made, networks), (theirs, _, others) = (trained(on, VITS[name]) for on in (True, False))
    assert jax.tree.leaves(made.params["rebuilder"])
    found, plain = (
        compiled(cfg, variables["student"], "whole")
        for cfg, variables in ((ours, networks), (theirs, others))
    )
    assert found["flops"] == plain["flops"] > 1e5
    assert found["bytes accessed"] == plain["bytes accessed"]
    shapes = [jax.tree.map(np.shape, variables["student"]) for variables in (networks, others)]
    assert shapes[0] == shapes[1]


def test_the_networks_evaluated_have_equally_many_parameters_with_and_without_mrm(pair):
    (_, made, networks), (_, _, others) = pair
    for name in ("student", "teacher"):
        shapes = [jax.tree.map(np.shape, found[name]) for found in (networks, others)]
        assert shapes[0] == shapes[1]
    count = sum(leaf.size for leaf in jax.tree.leaves(networks["student"]["params"]))
    assert count == sum(leaf.size for leaf in jax.tree.leaves(made.params["segmentor"]))


def test_deleting_the_rebuilder_changes_no_bit_of_the_scores(pair):
    (cfg, made, networks), _ = pair
    model = build_segmentor(cfg.model, len(cfg.data.classes.names))
    pictures = examples((40, 40), (40, 40))
    before = evaluate_networks(cfg, model, networks, pictures)
    bare = made.replace(params={"segmentor": made.params["segmentor"]}, opt_state=None)
    after = evaluate_networks(cfg, model, hooks.evaluated_networks(bare), pictures)
    for name in ("student", "teacher"):
        assert np.array_equal(before[name].confusion, after[name].confusion)
