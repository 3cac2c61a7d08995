"""The step as a whole, around a small stand-in network."""

import functools
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import standin
from compiler import QUICK

from mrm_jax import options, sharding
from mrm_jax.config import MRM, Model
from mrm_jax.models.layers import fold_moments
from mrm_jax.models.segmentor import Segmentor
from mrm_jax.train import step as steps
from mrm_jax.train.executions import accumulate
from mrm_jax.train.passes import Shared, run_pass
from mrm_jax.train.state import Networks
from mrm_jax.types import Unlabelled, View
from mrm_jax.uda.draws import draw
from mrm_jax.uda.methods import SOURCE

KEY = np.array([0, 7], np.uint32)


@functools.cache
def _run(**fields):
    """(config, program, compiled init, compiled train_step) of the stand-in."""
    config = standin.config(**fields)
    program = standin.program(config)
    both = program.init, program.train_step
    return config, program, *(jax.jit(function, compiler_options=QUICK) for function in both)


def _start(**fields):
    config, program, init, step = _run(**fields)
    return program, init(KEY), program.frozen(config), step


def _leaves_equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b))


def test_one_compilation_serves_every_step_and_learning_rate_without_implicit_transfers():
    config = standin.config()
    program, mesh = standin.program(config), sharding.mesh(1)
    state = sharding.init_on_mesh(program.init, KEY, mesh)
    compiled = sharding.jit_step(program.train_step, state, mesh)
    copy = sharding.replicated(mesh)
    other = replace(config, optimizer=replace(config.optimizer, learning_rate=3e-2))
    frozen = [jax.device_put(program.frozen(c), copy) for c in (config, config, other)]
    batches = [sharding.put_batch(standin.batch(seed), mesh) for seed in range(3)]
    with jax.transfer_guard("disallow"):
        for numbers, batch in zip(frozen, batches, strict=True):
            state, metrics = compiled(state, numbers, batch)
    assert compiled._cache_size() == 1
    assert int(state.step) == 3
    np.testing.assert_allclose(metrics["learning_rate"], 3e-2 * 2 / 4 * 0.98, rtol=1e-5)


def test_stored_draws_repeat_a_step():
    program, state, frozen, step = _start()
    batch = standin.batch()
    draws = jax.jit(program.draw)(state.root_key, state.step, batch.index)

    def stored(state, frozen, batch, draws):
        return program.step_with(state, frozen, program.normalise(state, batch), draws)

    # Two programs, fused differently: equal but for the last digits.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        jax.jit(stored, compiler_options=QUICK)(state, frozen, batch, draws),
        step(state, frozen, batch),
    )


def test_two_devices_make_the_same_step_as_one():
    if jax.device_count() < 2:
        pytest.skip("needs two devices; tests/conftest.py asks XLA for two unless XLA_FLAGS is set")
    results = []
    for count in (1, 2):
        config, mesh = standin.config(), sharding.mesh(count)
        program = standin.program(config)
        state = sharding.init_on_mesh(program.init, KEY, mesh)
        frozen = jax.device_put(program.frozen(config), sharding.replicated(mesh))
        compiled = sharding.jit_step(program.train_step, state, mesh)
        for seed in range(2):
            batch = sharding.put_batch(standin.batch(seed), mesh)
            state, metrics = compiled(state, frozen, batch)
        results.append(jax.device_get((state.params, state.batch_stats, metrics)))
    # Sums over the batch are taken in another order; Adam divides by the gradient's size, so a
    # difference of one rounding in a gradient moves a weight by that share of the rate of 1e-2.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *results)


def test_the_teacher_is_the_student_before_the_step_and_then_an_average():
    _, start, frozen, step = _start()
    first, _ = step(start, frozen, standin.batch(0))
    assert _leaves_equal(first.teacher_params, start.params["segmentor"])
    second, _ = step(first, frozen, standin.batch(1))
    average = jax.tree.map(
        lambda old, new: (old + new) / 2, first.teacher_params, first.params["segmentor"]
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8),
        second.teacher_params,
        average,
    )
    assert not _leaves_equal(first.teacher_params, first.params["segmentor"])


@pytest.mark.parametrize("spoil", ["loss", "params"])
def test_a_non_finite_step_leaves_the_whole_state_as_it_was(spoil):
    _, state, frozen, step = _start()
    if spoil == "loss":
        frozen = replace(
            frozen, scalars={**frozen.scalars, "method.mrm.weight": jnp.float32(jnp.nan)}
        )
    else:
        state.params["segmentor"]["decoder"]["classify"]["bias"] = jnp.full(4, jnp.inf)
    after, metrics = step(state, frozen, standin.batch())
    assert not bool(metrics["finite"])
    assert _leaves_equal(after, state)


def test_an_ignored_batch_has_zero_loss_and_moves_nothing():
    config, program, init, step = _run(threshold=1.5, weight_decay=0.0)
    state, batch = init(KEY), standin.batch()
    batch.source.label[:] = 255
    numbers = program.frozen(config)
    # Scalars other than 1: a threshold that no confidence reaches gives pseudo-labels no weight.
    numbers = replace(numbers, scalars={**numbers.scalars, "method.threshold": jnp.float32(1.5)})
    after, metrics = step(state, numbers, batch)
    assert float(metrics["total/loss"]) == 0
    assert bool(metrics["finite"])
    assert all(float(v) == 0 for k, v in metrics.items() if k.startswith("grad_norm/"))
    assert _leaves_equal(after.params, state.params)


def _parts(**fields):
    """What stands between batch and loss, opened up: (run, state, frozen, views, draws)."""
    config, program, init, _ = _run(**fields)
    run = steps._Run(config, program.networks, steps.passes(config.method))
    state, frozen = init(KEY), program.frozen(config)
    batch = program.normalise(state, standin.batch())
    draws = program.draw(state.root_key, state.step, batch.index)
    return run, state, frozen, batch, draws


def _shared(run, state, frozen, draws):
    return Shared.of(run.modules, state.batch_stats, frozen, draws)


def _losses(run, params, teacher, state, frozen, batch, draws):
    state = replace(state, step=jnp.int32(5), teacher_params=teacher)
    _, pseudo, _ = steps._teach(run, state, frozen, batch, draws)
    views = steps._views(run, state, pseudo, batch, draws, frozen)
    return [
        run_pass(_shared(run, state, frozen, draws), row, params, views[row.view]).loss
        for row in run.passes
    ]


def test_teacher_receives_no_gradient_from_any_pass():
    run, state, frozen, batch, draws = _parts(images="both")

    def total(params, teacher):
        return sum(_losses(run, params, teacher, state, frozen, batch, draws))

    student, teacher = jax.jit(jax.grad(total, (0, 1)), compiler_options=QUICK)(
        state.params, jax.tree.map(lambda x: x * 0.9, state.teacher_params)
    )
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(teacher))
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(student))


@pytest.mark.parametrize("execution", ["sequential", "looped", "stacked"])
def test_passes_give_the_gradient_of_the_summed_loss_however_they_are_run(execution):
    run, state, frozen, batch, draws = _parts(images="both")
    state = replace(state, step=jnp.int32(5))

    def joint(params):
        # Views are made once from the state, so the student of the views is held apart.
        return sum(_losses(run, params, state.teacher_params, state, frozen, batch, draws))

    def apart(params):
        _, pseudo, _ = steps._teach(run, state, frozen, batch, draws)
        views = steps._views(run, state, pseudo, batch, draws, frozen)
        shared = _shared(run, state, frozen, draws)
        return accumulate(shared, run.passes, params, views, execution)

    expected = jax.jit(jax.grad(joint), compiler_options=QUICK)(state.params)
    got, metrics, _ = jax.jit(apart, compiler_options=QUICK)(state.params)
    assert metrics.keys() == {f"{row.name}/ce" for row in run.passes} | {"total/loss"}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7), got, expected)


def test_only_rebuilt_passes_reach_the_rebuilder():
    run, state, frozen, batch, draws = _parts(images="both")

    def by_pass(params):
        return jnp.stack(_losses(run, params, state.teacher_params, state, frozen, batch, draws))

    jacobian = jax.jit(jax.jacrev(by_pass), compiler_options=QUICK)(state.params)["rebuilder"]
    reached = [
        any(np.any(np.asarray(leaf[i]) != 0) for leaf in jax.tree.leaves(jacobian))
        for i in range(len(run.passes))
    ]
    assert reached == [row.transform == "rebuild" for row in run.passes]


def test_without_mrm_there_is_no_rebuilder_and_lambda_scales_its_gradient():
    _, plain, frozen, step = _start(mrm=False)
    assert plain.params["rebuilder"] == {}
    assert "grad_norm/rebuilder" not in step(plain, frozen, standin.batch())[1]
    _, state, frozen, step = _start()
    found = []
    for weight in (0.0, 1.0, 2.0):
        numbers = {**frozen.scalars, "method.mrm.weight": jnp.float32(weight)}
        found.append(step(state, replace(frozen, scalars=numbers), standin.batch())[1])
    norms = np.array([float(m["grad_norm/rebuilder"]) for m in found])
    assert norms[0] == 0
    assert norms[1] > 0
    np.testing.assert_allclose(norms[2], 2 * norms[1], rtol=1e-5)
    # The metric is the loss before its weight, the total after it.
    ce = [float(m["reconstructed/ce"]) for m in found]
    totals = [float(m["total/loss"]) for m in found]
    np.testing.assert_allclose(ce, ce[0], rtol=1e-6)
    np.testing.assert_allclose(np.diff(totals), ce[0], rtol=1e-5)


def test_lambda_may_rise_from_nothing_in_the_program_that_keeps_it_constant():
    config, program, init, step = _run()
    ramps = [MRM(schedule="rise"), MRM(schedule="rise", ramp=0.5), MRM(schedule="fall", weight=2.0)]
    state, before = init(KEY), step._cache_size()
    for ramp, first, second in zip(ramps, (0, 0, 2), (0.1, 0.02, 2), strict=True):
        made = replace(config, method=replace(config.method, mrm=ramp))
        frozen, after = program.frozen(made), state
        for share in (first, second):
            after, found = step(after, frozen, standin.batch())
            assert (float(found["grad_norm/rebuilder"]) > 0) == (share > 0)
            parts = {name: float(found[f"{name}/ce"]) for name in ("source", "mixed")}
            expected = sum(parts.values()) + share * float(found["reconstructed/ce"])
            np.testing.assert_allclose(found["total/loss"], expected, rtol=1e-5)
    assert step._cache_size() <= max(before, 1)


def test_hidden_cells_pass_no_gradient_to_the_encoder():
    run, state, frozen, batch, draws = _parts()
    row = run.passes[-1]
    uniforms = jnp.array([[[0.0, 1.0, 1.0]], [[1.0, 0.0, 0.0]]])  # the ratio is 0.5
    draws = replace(draws, mask={row.name: uniforms})
    _, pseudo, _ = steps._teach(run, state, frozen, batch, draws)
    view = steps._views(run, state, pseudo, batch, draws, frozen)["target"]

    def loss(image):
        seen = replace(view, image=image)
        return run_pass(_shared(run, state, frozen, draws), row, state.params, seen).loss

    gradient = np.asarray(jax.jit(jax.grad(loss), compiler_options=QUICK)(view.image))
    cells = np.abs(gradient).reshape(2, 8, 3, 4, 3).max((1, 3, 4))
    np.testing.assert_array_equal(cells > 0, uniforms[:, 0] > 0.5)


def test_batch_statistics_are_folded_in_the_order_of_the_passes():
    run, state, frozen, batch, draws = _parts()
    _, program, _, _ = _run()
    # Fully optimised: QUICK is 1e-3 away from what is run op by op below.
    after, _ = jax.jit(program.train_step)(state, frozen, standin.batch())
    _, pseudo, _ = steps._teach(run, state, frozen, batch, draws)
    views = steps._views(run, state, pseudo, batch, draws, frozen)
    expected = state.batch_stats
    for row in run.passes:
        shared = _shared(run, state, frozen, draws)
        outcome = run_pass(shared, row, state.params, views[row.view])
        expected = fold_moments(expected, outcome.moments)
    assert [row.name for row in run.passes] == ["source", "mixed", "reconstructed"]
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        after.batch_stats,
        expected,
    )
    variables = {"params": state.params["segmentor"], "batch_stats": state.batch_stats}
    _, moved = program.networks.segmentor.apply(
        variables, batch.target.image, mode="pseudo", mutable=["moments"]
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        after.teacher_batch_stats,
        fold_moments(state.teacher_batch_stats, moved["moments"]),
    )


METHODS = [
    {"kind": "source_only", "mrm": False},
    {"kind": "target_only", "mrm": False, "augmented": True},
    {"mrm": False},
    {"images": "target"},
    {"images": "source"},
    {"images": "both"},
]


@pytest.mark.parametrize("fields", METHODS)
def test_a_step_keeps_structure_and_dtypes_of_the_state(fields):
    config, program, _, _ = _run(**fields)
    state = jax.eval_shape(program.init, KEY)
    after, metrics = jax.eval_shape(
        program.train_step, state, program.frozen(config), standin.batch()
    )
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after)
    assert all(jax.tree.leaves(same))
    names = [row.name for row in steps.passes(config.method)]
    assert {f"{name}/ce" for name in names} <= metrics.keys()
    scalars = {k: v.shape for k, v in metrics.items() if k != "teacher/class_share"}
    assert set(scalars.values()) == {()}
    assert (state.teacher_params == {}) == (config.method.kind != "dacs")


def test_a_step_without_a_target_is_the_step_with_one():
    """Where no pass looks at it: bit for bit, on as many devices as there are."""
    fields = METHODS[0]
    config, program, init, _ = _run(**fields)
    mesh = sharding.mesh(min(2, jax.device_count()))
    frozen = jax.device_put(program.frozen(config), sharding.replicated(mesh))
    batch, found = standin.batch(), []
    empty = Unlabelled(np.zeros((2, 0, 0, 3), np.uint8), np.zeros((2, 0, 0), np.uint8))
    for given in (batch, replace(batch, target=empty)):
        state = sharding.init_on_mesh(program.init, KEY, mesh)
        step = sharding.jit_step(program.train_step, state, mesh)
        found.append(jax.device_get(step(state, frozen, sharding.put_batch(given, mesh))))
    assert _leaves_equal(*found)
    panels = jax.eval_shape(program.inspect, init(KEY), frozen, replace(batch, target=empty))
    assert set(panels) == {"source/image", "source/label", "source/weight"}


def test_a_float64_run_stays_float64():
    config = standin.config()
    program = standin.program(config)
    with jax.enable_x64(True):
        state = jax.eval_shape(program.init, KEY)
        state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, jnp.float64 if x.dtype == jnp.float32 else x.dtype
            ),
            state,
        )
        after, metrics = jax.eval_shape(
            program.train_step, state, program.frozen(config), standin.batch()
        )
    floats = [x for x in jax.tree.leaves((after, metrics)) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert len(floats) > 20
    assert {x.dtype for x in floats} == {jnp.dtype("float64")}


def test_no_two_leaves_of_a_fresh_state_share_a_buffer():
    _, _, init, _ = _run()
    leaves = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(init(KEY))]
    assert len(set(leaves)) == len(leaves)


def test_initialisation_depends_on_the_key_alone():
    _, _, init, _ = _run()
    assert _leaves_equal(init(KEY), init(KEY))
    assert not _leaves_equal(init(KEY).params, init(KEY + np.uint32(1)).params)


def test_panels_are_pictures_and_class_maps():
    program, state, frozen, _ = _start()
    batch = standin.batch()
    panels = jax.jit(program.inspect)(state, frozen, batch)
    expected = {"source/image", "source/label", "target/image", "target/label", "target/weight"}
    expected |= {"mixed/image", "mixed/label", "mixed/weight", "target/prediction"}
    expected |= {"reconstructed/mask", "reconstructed/prediction"}
    assert expected <= panels.keys()
    assert {panel.dtype for panel in panels.values()} == {np.dtype("uint8")}
    np.testing.assert_array_equal(panels["source/image"], batch.source.image)
    np.testing.assert_array_equal(panels["source/label"], batch.source.label)
    assert set(np.unique(panels["reconstructed/mask"])) <= {0, 255}


class _Deep(nn.Module):
    """Twelve layers at full resolution: what a pass keeps for its backward is nearly all of it."""

    @nn.compact
    def __call__(self, x, _):
        for i in range(12):
            x = jnp.tanh(nn.Dense(8, name=f"layer{i}")(x))
        return x


class _Wide(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        batch, height, width, channels = x.shape
        cells = x.reshape(batch, height // 8, 8, width // 8, 8, channels).mean((2, 4))
        return nn.Dense(standin.CLASSES, name="classify")(cells)


def test_passes_run_one_at_a_time_so_that_only_one_graph_needs_memory():
    """Compiled temporary memory of three passes, against the gradient of the summed losses."""
    config = standin.config(mrm=False)
    config = replace(config, data=replace(config.data, crop=(128, 128)))
    modules = Networks(Segmentor(_Deep(), _Wide()), None)
    rows = tuple(replace(SOURCE, name=name, view=name) for name in ("a", "b", "c"))
    run = steps._Run(config, modules, rows)
    program = steps.build_step(config, modules)
    state, frozen = jax.eval_shape(program.init, KEY), program.frozen(config)
    draws = jax.eval_shape(functools.partial(draw, passes=rows, grid=(1, 1)), KEY, 0, np.arange(2))
    size = (2, 128, 128)
    image, weight = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((*size, 3), size))
    view = View(image, jax.ShapeDtypeStruct(size, jnp.int32), weight)
    views = {row.view: view for row in rows}

    def apart(state, views, draws):
        shared = _shared(run, state, frozen, draws)
        return accumulate(shared, rows, state.params, views, "sequential")[0]

    def joint(state, views, draws):
        def total(params):
            shared = _shared(run, state, frozen, draws)
            return sum(run_pass(shared, row, params, views[row.view]).loss for row in rows)

        return jax.grad(total)(state.params)

    apart, joint = (
        jax.jit(f).lower(state, views, draws).compile().memory_analysis().temp_size_in_bytes
        for f in (apart, joint)
    )
    # Measured 0.38: a third, and what the passes share.
    assert apart < 0.5 * joint, (apart, joint)


def test_the_real_networks_keep_float32_state_in_bfloat16_arithmetic():
    config = standin.config()
    small = replace(
        config.model.encoder, dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), heads=(1, 1, 1, 1)
    )
    config = replace(
        config,
        model=Model(encoder=small, dtype="bfloat16"),
        data=replace(config.data, crop=(32, 32)),
    )
    program = steps.build_step(config)
    state = jax.eval_shape(program.init, KEY)
    batch = standin.batch(size=(2, 32, 32))
    after, metrics = jax.eval_shape(program.train_step, state, program.frozen(config), batch)
    dtypes = {x.dtype for x in jax.tree.leaves((state, after, metrics))}
    assert jnp.dtype("bfloat16") not in dtypes
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, after)


class Ramp(nn.Module):
    """Sees the left of a picture otherwise than the right."""

    @nn.compact
    def __call__(self, image, mode):
        ramp = jnp.linspace(-3, 3, image.shape[2]).astype(image.dtype).reshape(1, 1, -1, 1)
        return standin.Encoder(name="seen")(image * ramp, mode)


def test_with_a_flipped_teacher_a_mirrored_target_has_mirrored_pseudo_labels():
    batch = standin.batch()
    image, valid = batch.target.image, batch.target.valid
    back = slice(None, None, -1)
    turned = replace(batch, target=Unlabelled(image[:, :, back], valid[:, :, back]))

    def labels(flip):
        run = options.edited(
            standin.config(mrm=False, threshold=0.3), {"method.teacher_flip": flip}
        )
        network = Segmentor(Ramp(), standin.Decoder(0.0))
        program = steps.build_step(run, Networks(network, None))
        state, frozen = jax.jit(program.init)(np.zeros(2, np.uint32)), program.frozen(run)
        inspect = jax.jit(program.inspect)
        return [inspect(state, frozen, each) for each in (batch, turned)]

    plain, mirrored = labels(True)
    for name in ("target/label", "target/weight"):
        np.testing.assert_array_equal(plain[name], mirrored[name][:, :, back])
    assert plain["target/weight"].max() > 0
    alone, other = labels(False)
    assert (alone["target/label"] != other["target/label"][:, :, back]).any()
