"""What MRM is compared with, around the stand-in network: every arm trains what it should, and
nothing else."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import standin
from compiler import QUICK
from toy_run import TINY

from mrm_jax.checks import check_config
from mrm_jax.config import Contrast, Domain, MaskedImages, mim_block
from mrm_jax.errors import UsageError
from mrm_jax.label_ids import IGNORE
from mrm_jax.main import load_config
from mrm_jax.models.rebuilder import Blank
from mrm_jax.runs.checkpoint import Checkpoints
from mrm_jax.train import optimizer
from mrm_jax.train import step as steps
from mrm_jax.train.executions import accumulate
from mrm_jax.train.passes import Shared, transform
from mrm_jax.uda.objectives import contrast

KEY = np.array([0, 7], np.uint32)
SCALES = ("context", "detail")
CONTRAST = {"contrast": Contrast(weight=2.0, prototypes=2, dim=8)}
# Blocks smaller than the stand-in's cells, which do not see each other.
MIM = {"mim": MaskedImages(weight=2.0, ratio=0.5, block=2)}
# Of each arm: options of the method, options of MRM (None: off), the pass, its metric, and the
# parts that the pass's own loss may reach.
ARMS = {
    "mrm": ({}, {}, "reconstructed", "ce", "decoder encoder rebuilder"),
    "contrast": (CONTRAST, None, "source", "contrast", "encoder prototypes"),
    "contrast_mixed": (CONTRAST, None, "mixed", "contrast", "encoder prototypes"),
    "mim": (MIM, None, "inpainted", "pixels", "encoder pixels"),
    "pixels": ({}, {"target": "pixels"}, "reconstructed", "pixels", "encoder pixels rebuilder"),
    "student": ({}, {"target": "student_features"}, "", "features", "encoder rebuilder"),
    "teacher": ({}, {"target": "teacher_features"}, "", "features", "encoder rebuilder"),
    "blank": ({}, {"hidden": "blank"}, "", "ce", "decoder encoder"),
    "encoder": ({}, {"trains": "encoder"}, "", "ce", "encoder rebuilder"),
    "decoder": ({}, {"trains": "decoder"}, "", "ce", "decoder rebuilder"),
    "blank_decoder": ({}, {"trains": "decoder", "hidden": "blank"}, "", "ce", "decoder"),
    "hrda_encoder": ({}, {"trains": "encoder"}, "", "ce_fused", "encoder rebuilder"),
    "hrda_decoder": ({}, {"trains": "decoder"}, "", "ce_fused", "attention decoder rebuilder"),
    "hrda_pixels": ({}, {"target": "pixels"}, "", "pixels", "encoder pixels rebuilder"),
    "hrda_teacher": ({}, {"target": "teacher_features"}, "", "features", "encoder rebuilder"),
}


def _config(method, mrm, *, hrda=False):
    made = standin.config(mrm=mrm is not None, hrda=hrda)
    rebuilt = replace(made.method.mrm, **(mrm or {}))
    return replace(made, method=replace(made.method, mrm=rebuilt, **method))


def _batch(crop=standin.CROP):
    """Flat pictures: what is hidden can be told from what is not."""
    batch = standin.batch(size=(2, *crop))
    image = batch.target.image
    image[:] = np.array([[[[240, 60, 20]]], [[[30, 90, 220]]]], np.uint8)
    return batch


def _opened(config):
    """(run, state, frozen numbers, views, draws) of a step in the middle of training."""
    program = standin.program(config)
    run = steps._Run(config, program.networks, steps.passes(config.method))
    state = jax.jit(program.init, compiler_options=QUICK)(KEY)
    state = replace(
        state,
        step=jnp.int32(5),
        teacher_params=jax.tree.map(lambda x: 0.8 * x, state.teacher_params),
    )
    frozen = program.frozen(config)
    batch = program.normalise(state, _batch(config.data.crop))
    draws = program.draw(state.root_key, state.step, batch.index)
    if "reconstructed" in draws.mask:  # three tokens: drawn ones may all be hidden or shown
        draws.mask["reconstructed"] = jnp.array([[[0.1, 0.9, 0.8]], [[0.9, 0.2, 0.3]]])
    _, pseudo, _ = steps._teach(run, state, frozen, batch, draws)
    return run, state, frozen, steps._views(run, state, pseudo, batch, draws, frozen), draws


@functools.cache
def _arm(name):
    """(state, frozen, views, f(params, scalars, views) -> (gradients, metrics)) of the arm's own
    loss."""
    method, mrm, row_name, metric, _ = ARMS[name]
    hrda = name.startswith("hrda")
    run, state, frozen, views, draws = _opened(_config(method, mrm, hrda=hrda))
    row = next(row for row in run.passes if row.name == (row_name or "reconstructed"))
    if metric == "contrast":
        row = replace(row, objectives=(contrast,))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def alone(params, scalars, views):
        shared = Shared.of(run.modules, state.batch_stats, replace(frozen, scalars=scalars), draws)
        grads, metrics, _ = accumulate(shared, (row,), params, views, "sequential")
        return grads, {**metrics, "own": metrics[f"{row.name}/{metric}"]}

    return run.config, state, frozen, views, alone


def _reached(grads):
    parts = {**grads["segmentor"], "rebuilder": grads["rebuilder"], **grads.get("auxiliary", {})}
    return {
        name
        for name, part in parts.items()
        if any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(part))
    }


@pytest.mark.parametrize("name", ARMS)
def test_the_own_loss_of_an_arm_reaches_the_parts_that_it_is_to_train_and_no_other(name):
    _, state, frozen, views, alone = _arm(name)
    grads, metrics = alone(state.params, frozen.scalars, views)
    assert _reached(grads) == set(ARMS[name][-1].split())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    # The metric is the loss before its weight, the total after it.
    weight = 2.0 if ARMS[name][0] else 1.0
    if ARMS[name][3] == "ce_fused":
        weight = 0.9
        metrics["total/loss"] -= 0.1 * metrics["reconstructed/ce_detail"]
    np.testing.assert_allclose(metrics["total/loss"], weight * metrics["own"], rtol=1e-6)


@pytest.mark.parametrize("name", ARMS)
def test_the_own_loss_of_an_arm_falls_on_a_fixed_batch(name):
    config, state, frozen, views, alone = _arm(name)
    fast = {"optimizer.warmup": jnp.float32(0), "method.mrm.learning_rate": jnp.float32(1e-2)}
    scalars = {**frozen.scalars, **fast}
    update = jax.jit(functools.partial(optimizer.update, config=config), compiler_options=QUICK)
    params, opt_state, losses = state.params, state.opt_state, []
    for step in range(31):
        grads, metrics = alone(params, scalars, views)
        losses.append(float(metrics["own"]))
        params, opt_state = update(params, grads, opt_state, jnp.int32(step), scalars)
    # Measured 0.06 to 0.36, and 0.59 where the decoder stands still; untrained it would be 1.
    assert losses[-1] < 0.8 * losses[0], losses[::10]


@pytest.mark.parametrize("name", ["mim", "pixels", "student", "teacher"])
def test_where_nothing_is_hidden_loss_and_gradient_are_zero(name):
    _, state, frozen, views, alone = _arm(name)
    none = dict.fromkeys(("method.mrm.ratio", "method.mim.ratio"), jnp.float32(-1))
    grads, metrics = alone(state.params, {**frozen.scalars, **none}, views)
    assert float(metrics["own"]) == 0
    assert _reached(grads) == set()


@pytest.mark.parametrize("name", ["contrast", "contrast_mixed"])
def test_contrast_with_every_label_ignored_is_zero_with_zero_gradient(name):
    _, state, frozen, views, alone = _arm(name)
    ignored = jax.tree.map(lambda x: x, views)
    for key, view in views.items():
        ignored[key] = replace(view, label=jnp.full_like(view.label, IGNORE))
    grads, metrics = alone(state.params, frozen.scalars, ignored)
    assert float(metrics["own"]) == 0
    assert _reached(grads) == set()


COMBINED = {
    "pixels": ({**CONTRAST, **MIM}, {"target": "pixels", "images": "both"}),
    "teacher": (CONTRAST, {"target": "teacher_features"}),
    "encoder": (MIM, {"trains": "encoder", "images": "both"}),
    "blank_decoder": ({}, {"trains": "decoder", "hidden": "blank"}),
    "hrda_pixels": ({**CONTRAST, **MIM}, {"target": "pixels", "images": "both"}),
    "hrda_decoder": ({}, {"trains": "decoder", "images": "both"}),
}


@pytest.mark.parametrize("name", COMBINED)
def test_passes_give_equal_losses_and_gradients_however_they_are_run(name):
    hrda = name.startswith("hrda")
    run, state, frozen, views, draws = _opened(_config(*COMBINED[name], hrda=hrda))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def results(params):
        shared = Shared.of(run.modules, state.batch_stats, frozen, draws)
        return [
            accumulate(shared, run.passes, params, views, execution)
            for execution in ("sequential", "looped", "stacked")
        ]

    # The same sums in another order. Leaves that are all rounding, as the gradient of a bias before
    # a BatchNorm, are measured against the largest of all.
    one, *others = jax.device_get(results(state.params))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one[0]))
    for other in others:
        for first, second, floor in zip(one, other, (1e-2 * largest, 1e-2, 1e-2), strict=True):
            assert jax.tree.structure(first) == jax.tree.structure(second)
            for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
                np.testing.assert_allclose(b, a, rtol=0, atol=1e-4 * max(np.abs(a).max(), floor))


def test_the_teacher_receives_no_gradient_from_any_arm():
    config = _config({**CONTRAST, **MIM}, {"target": "teacher_features"})
    run, state, frozen, _, draws = _opened(config)
    batch = steps._normalise(run, state, _batch())

    def total(teacher):
        taught = replace(state, teacher_params=teacher)
        _, pseudo, _ = steps._teach(run, taught, frozen, batch, draws)
        views = steps._views(run, state, pseudo, batch, draws, frozen)
        shared = Shared.of(run.modules, state.batch_stats, frozen, draws)
        _, metrics, _ = accumulate(shared, run.passes, state.params, views, "sequential")
        return metrics["total/loss"]

    value, grads = jax.jit(jax.value_and_grad(total), compiler_options=QUICK)(state.teacher_params)
    assert value > 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(grads))


def test_checkpoints_keep_auxiliary_heads_and_have_none_without(tmp_path):
    for name, method in (("with", {**CONTRAST, **MIM}), ("without", {})):
        program = standin.program(_config(method, None))
        state = jax.jit(program.init, compiler_options=QUICK)(KEY)
        assert ("auxiliary" in state.params) == (name == "with")
        checkpoints = Checkpoints(tmp_path / name, keep=1)
        checkpoints.save(1, state, {"config": {}, "scores": {}})
        checkpoints.close()
        assert (tmp_path / name / "1" / "auxiliary").is_dir() == (name == "with")
        again = Checkpoints(tmp_path / name, keep=1)
        found, _ = again.restore(1, jax.tree.map(jnp.zeros_like, state))
        again.close()
        assert jax.tree.structure(found) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, found, state)


def test_a_run_without_rebuilding_has_no_parameters_of_a_rebuilder_and_the_same_masks():
    run, state, _, _, draws = _opened(_config({}, {"hidden": "blank"}))
    assert state.params["rebuilder"] == {}
    _, _, _, _, rebuilt = _opened(_config({}, {}))
    assert draws.mask.keys() == rebuilt.mask.keys()


def test_without_rebuilding_hidden_features_are_zero_at_every_scale_and_the_others_as_they_were():
    run, state, frozen, _, draws = _opened(_config({}, {"hidden": "blank"}))
    other = 1 - draws.mask["reconstructed"]
    draws = replace(draws, mask={**draws.mask, "reconstructed/detail": other})
    shared = Shared.of(run.modules, state.batch_stats, frozen, draws)
    shared = shared._replace(modules=run.modules._replace(rebuilder=Blank((0, 1))))
    given = {scale: (jnp.ones((2, 2, 3, 4)), jnp.ones((2, 4, 6, 2))) for scale in SCALES}
    found = transform(shared, run.passes[-1], state.params, given)
    for scale, mask in (("context", draws.mask["reconstructed"]), ("detail", other)):
        shown = np.asarray(mask > 0.5)  # the ratio
        for given_map, cells in zip(found[scale], (shown, shown.repeat(2, -1)), strict=True):
            wanted = np.broadcast_to(cells[..., None], given_map.shape)
            np.testing.assert_array_equal(given_map, wanted)


def test_panels_show_masks_of_every_arm_and_predictions_of_those_that_decode():
    config = _config(MIM, {"target": "pixels"})
    program = standin.program(config)
    state = jax.jit(program.init, compiler_options=QUICK)(KEY)
    inspect = functools.partial(program.inspect, frozen=program.frozen(config), batch=_batch())
    panels = jax.eval_shape(inspect, state)
    assert {"inpainted/mask", "reconstructed/mask"} <= panels.keys()
    assert not {"inpainted/prediction", "reconstructed/prediction"} & panels.keys()


FLAGS = {
    "contrast.weight=0.1 mim.weight=1.0 mrm.target=pixels": (
        "source/contrast mixed/contrast inpainted/pixels reconstructed/pixels grad_norm/auxiliary"
    ),
    "mrm.target=student_features": "reconstructed/features",
    "mrm.target=teacher_features": "reconstructed/features",
    "mrm.hidden=blank mrm.trains=decoder": "reconstructed/ce_fused reconstructed/ce_detail",
}


@pytest.mark.parametrize("flags", FLAGS)
def test_a_step_of_the_real_networks_under_hrda_keeps_its_state_and_names_its_losses(flags):
    words = [f"--config.method.{flag}" for flag in flags.split()]
    config = load_config([f"--config={TINY}:dacs,hrda=true,mrm=true", *words])
    program = steps.build_step(config)
    state = jax.eval_shape(program.init, KEY)
    batch = standin.batch(size=(2, *config.data.crop))
    after, metrics = jax.eval_shape(program.train_step, state, program.frozen(config), batch)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after)
    assert all(jax.tree.leaves(same))
    assert set(FLAGS[flags].split()) <= metrics.keys()
    assert ("reconstructed/ce_fused" in metrics) == ("blank" in flags)


def test_hidden_blocks_of_pictures_are_at_least_a_cell_of_the_last_map():
    config = _config({}, None)  # strides of 32 in all
    for crop, hrda, side in ((512, False, 32), (64, False, 32), (512, True, 64), (1024, False, 64)):
        multires = replace(config.model.multires, enabled=hrda)
        model = replace(config.model, multires=multires)
        data = replace(config.data, crop=(crop, crop))
        assert mim_block(replace(config, data=data, model=model)) == side


def _checked(method, mrm):
    """As `_config`, with data and a network that pass all other checks."""
    drawn = Domain(kind="drawn", size=(32, 64))
    made = _config({}, mrm)
    data = replace(made.data, crop=(64, 64), source=drawn, target=drawn, evaluation=drawn)
    encoder = replace(made.model.encoder, sr_ratios=(1, 1, 1, 1))
    return replace(
        made,
        data=data,
        model=replace(made.model, encoder=encoder),
        method=replace(made.method, **method),
    )


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_accepted(name):
    check_config(_checked(*ARMS[name][:2]))


@pytest.mark.parametrize(
    ("method", "mrm", "message"),
    [
        ({"kind": "source_only", "contrast": Contrast(weight=1.0)}, None, "needs a teacher"),
        ({"kind": "source_only", "mim": MaskedImages(weight=1.0)}, None, "needs a teacher"),
        ({"contrast": Contrast(weight=-1.0)}, None, "at least 0"),
        ({"contrast": Contrast(temperature=0.0)}, None, "at least 0.001"),
        ({"contrast": Contrast(prototypes=0)}, None, "at least 1"),
        ({"mim": MaskedImages(ratio=1.5)}, None, "0..1"),
        ({}, {"hidden": "blank", "target": "pixels"}, "hidden=rebuilt"),
        ({}, {"trains": "decoder", "target": "student_features"}, "trains=both"),
        ({}, {"trains": "encoder", "target": "pixels"}, "trains=both"),
        ({}, {"stages": "multi", "target": "pixels"}, "stages=auto"),
        ({}, {"images": "both", "target": "teacher_features"}, "images=target"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(method, mrm, message):
    with pytest.raises(UsageError) as error:
        check_config(_checked(method, mrm))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
