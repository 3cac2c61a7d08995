"""A step of DINOv2 and the light head with hidden tokens and MRM, against NumPy, in float64."""

import functools
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import vit_reference
import vit_run
from compiler import QUICK

from mrm_jax.train.passes import Shared, decode, encode
from mrm_jax.train.step import build_step
from mrm_jax.types import View
from mrm_jax.uda.methods import passes


@functools.cache
def setting():
    """What a step of float64 is given: options, program, state, batch, draws."""
    with jax.enable_x64(True):
        config = vit_run.config()
        program = build_step(config)
        state, batch = vit_run.state(program, np.float64), vit_run.batch()
        draws = jax.device_get(program.draw(state.root_key, state.step, batch.index))
        return SimpleNamespace(
            config=config, program=program, state=state, batch=batch, draws=draws
        )


def taken(config):
    """(state, metrics) after the step of `config`, in float64."""
    given, program = setting(), build_step(config)
    with jax.enable_x64(True):
        step = jax.jit(program.step_with, compiler_options=QUICK)
        normal = program.normalise(given.state, given.batch)
        frozen = program.frozen(config)
        return jax.device_get(step(given.state, frozen, normal, given.draws))


@functools.cache
def step():
    """(state, metrics, gradients) after the step."""
    given = setting()
    after, metrics = taken(given.config)
    beta, before = given.config.optimizer.beta1, given.state.opt_state.mu
    grads = jax.tree.map(lambda m, old: (m - beta * old) / (1 - beta), after.opt_state.mu, before)
    return after, metrics, grads


@functools.cache
def reference():
    """The teacher, the views and the share of sure pixels."""
    given = setting()
    method, step = given.config.method, given.state.step
    kept = min(1 - 1 / (step + 1), method.ema_decay)
    student, teacher = given.state.params["segmentor"], given.state.teacher_params
    teacher = jax.tree.map(lambda s, t: kept * t + (1 - kept) * s, student, teacher)
    return teacher, *vit_reference.views(teacher, given.batch, given.draws, method)


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def test_losses_and_teacher_are_those_of_the_equations():
    given, (after, metrics, _) = setting(), step()
    teacher, views, share = reference()
    found = vit_reference.losses(given.state.params, views, given.draws, given.config.method)
    assert 0 < share < 1
    assert metrics["total/loss"].dtype == np.float64
    np.testing.assert_allclose(metrics["teacher/confident_share"], share, rtol=1e-14)
    for name, loss in found.items():
        ours = metrics["total/loss" if name == "total" else f"{name}/ce"]
        np.testing.assert_allclose(ours, loss, rtol=1e-12, err_msg=name)
    for ours, leaf in zip(*map(jax.tree.leaves, (after.teacher_params, teacher)), strict=True):
        np.testing.assert_allclose(ours, leaf, rtol=0, atol=1e-15)


def test_the_gradient_of_every_parameter_is_that_of_the_equations():
    given, (_, _, grads) = setting(), step()
    views, rng = reference()[1], np.random.default_rng(5)
    leaves, tree = jax.tree.flatten(given.state.params)
    for i, (name, gradient) in enumerate(named(grads).items()):
        size = np.linalg.norm(gradient)
        assert size > 1e-6, name
        along = rng.normal(size=gradient.shape)
        moved = [*leaves[:i], leaves[i] + 1e-30j * along, *leaves[i + 1 :]]
        moved = jax.tree.unflatten(tree, moved)
        found = vit_reference.losses(moved, views, given.draws, given.config.method)
        slope = found["total"].imag / 1e-30
        # Sums of some thousand terms in another order; along such a direction the slope is about
        # as large as the gradient.
        assert abs((gradient * along).sum() - slope) < 1e-10 * size, name


def test_the_update_is_adamws_with_a_rate_and_a_decay_a_group():
    given, (after, _, grads) = setting(), step()
    options, before = given.config.optimizer, given.state.opt_state
    # The fourth of 100 steps, of which 5 warm up.
    rate = options.learning_rate * (1 - 3 / 100) * (1 - (1 - 3 / 5) * (1 - 1e-6))
    mu, nu, new = map(named, (before.mu, before.nu, after.params))
    grads = named(grads)
    for name, value in named(given.state.params).items():
        first = options.beta1 * mu[name] + (1 - options.beta1) * grads[name]
        second = options.beta2 * nu[name] + (1 - options.beta2) * grads[name] ** 2
        first, second = first / (1 - options.beta1**4), second / (1 - options.beta2**4)
        rates = {"segmentor/encoder": 1, "segmentor/decoder": options.decoder_multiplier}
        part = "/".join(name.split("/")[:2])
        own = rate * rates.get(part, given.config.method.mrm.learning_rate / options.learning_rate)
        norm = name.startswith("segmentor/encoder") and "norm" in name
        decayed = not norm and name != "rebuilder/mask_token"
        moved = first / (np.sqrt(second) + options.eps) + decayed * options.weight_decay * value
        np.testing.assert_allclose(new[name], value - own * moved, rtol=0, atol=1e-13, err_msg=name)


def test_stacked_passes_on_parts_of_the_batch_with_blocks_run_again_take_the_same_step():
    config = setting().config
    train = replace(config.train, pass_execution="stacked", microbatches=2)
    model = replace(config.model, remat="blocks", unroll=True)
    (after, metrics), (wanted, losses, _) = taken(replace(config, train=train, model=model)), step()
    for name, value in losses.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-12, err_msg=name)
    wanted = named(wanted.opt_state.mu)
    for name, moment in named(after.opt_state.mu).items():
        np.testing.assert_allclose(moment, wanted[name], rtol=0, atol=1e-14, err_msg=name)


def beneath(hide):
    """The pixels bool[B, *CROP, 1] of hidden tokens."""
    return hide.repeat(7, 1).repeat(7, 2)[:, : vit_run.CROP[0], : vit_run.CROP[1], None]


def test_what_lies_beneath_hidden_tokens_reaches_no_logits():
    given = setting()
    row = next(row for row in passes(given.config.method) if row.name == "masked")
    frozen = given.program.frozen(given.config)
    shared = Shared.of(given.program.networks, {}, frozen, given.draws)
    params = jax.tree.map(np.float32, given.state.params)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def logits(image, hide):
        view = View(image, given.batch.source.label, np.ones((2, *vit_run.CROP)), hide=hide)
        features, _ = encode(shared, row, params, view, "train")
        return decode(shared, row, params, features, vit_run.CROP, "train")[0].logits["main"]

    hide = np.asarray(given.draws.mask["masked"]) < 0.4
    image = np.random.default_rng(0).normal(size=(2, *vit_run.CROP, 3)).astype(np.float32)
    found, nothing = logits(image, hide), np.zeros_like(hide)
    other = np.where(beneath(hide), np.float32(9), image)
    np.testing.assert_array_equal(logits(other, hide), found)
    assert np.abs(logits(np.where(beneath(hide), image, np.float32(9)), hide) - found).max() > 0.1
    assert np.abs(logits(other, nothing) - logits(image, nothing)).max() > 0.1
    # A blanked picture is not what hidden tokens make.
    blank = np.where(beneath(hide), np.float32(0), image)
    assert np.abs(logits(blank, nothing) - found).max() > 0.1


def test_tokens_are_drawn_for_a_sample_wherever_it_stands_and_each_for_itself():
    given = setting()

    @functools.partial(jax.jit, compiler_options=QUICK)
    def drawn(index):
        return given.program.draw(given.state.root_key, 3, index).mask["masked"]

    whole, order = drawn(np.arange(300)), np.random.default_rng(0).permutation(300)
    assert whole.shape == (300, *vit_run.TOKENS)
    np.testing.assert_array_equal(drawn(order), whole[order])
    np.testing.assert_array_equal(given.draws.mask["masked"], whole[:2])
    hide = np.asarray(whole) < 0.4
    # Four deviations of the mean of 6000 draws, and of the means of 300 at each place.
    assert abs(hide.mean() - 0.4) < 4 * (0.24 / 6000) ** 0.5
    assert np.abs(hide.mean(0) - 0.4).max() < 4 * (0.24 / 300) ** 0.5
    # No fixed count a picture: that of 20 tokens varies as a binomial's, by 4.8.
    assert 3.3 < hide.sum((1, 2)).var() < 6.3


def test_a_step_shows_the_whole_picture_and_beside_it_what_is_hidden():
    given = setting()
    state = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == float else x, given.state)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def shown(batch):
        views = given.program.inspect(state, given.program.frozen(given.config), batch)
        return {name: view for name, view in views.items() if name.startswith("masked/")}

    views, hide = shown(given.batch), np.asarray(given.draws.mask["masked"]) < 0.4
    assert 0 < hide.sum() < hide.size
    np.testing.assert_array_equal(views["masked/image"], given.batch.target.image)
    np.testing.assert_array_equal(views["masked/mask"], 255 * beneath(hide)[..., 0])
