"""A step of every method with a teacher, around the stand-in network: what odd batches do to it,
and that it may be run either way."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest
import standin

from mrm_jax import sharding
from mrm_jax.config import MIC, FeatureDistance
from mrm_jax.types import IGNORE

KEY = np.array([0, 7], np.uint32)
DISTANCE = FeatureDistance(weight=0.5, classes=("b", "c"))
METHODS = {
    "dacs": {},
    "daformer": {"feature_distance": DISTANCE},
    "mic": {"feature_distance": DISTANCE, "mic": MIC(ratio=0.5, block=4)},
    "mic_both": {"mic": MIC(images="both", ratio=0.5, block=4)},
}
COMPILER = sharding.quick(sharding.mesh(1))


def _config(name: str):
    config = standin.config(kind=name.removesuffix("_both"))
    return replace(config, method=replace(config.method, **METHODS[name]))


@functools.cache
def _run(name: str, execution: str = "sequential", dropout: float = 0.0):
    """(state after one step, frozen numbers, compiled step)."""
    config = _config(name)
    config = replace(config, train=replace(config.train, pass_execution=execution))
    program = standin.program(config, dropout)
    state = jax.jit(program.init)(KEY)
    # Features that a frozen encoder sees otherwise: the distance of equal ones is 0.
    encoder = jax.tree.map(lambda x: 1.5 * x, state.params["segmentor"]["encoder"])
    frozen = program.frozen(config, {"params": encoder})
    return state, frozen, jax.jit(program.train_step, compiler_options=COMPILER)


def _labels(kind: str) -> np.ndarray:
    label = np.full(standin.SIZE, {"ignored": IGNORE, "one": 1, "no_thing": 0}[kind], np.uint8)
    if kind == "no_thing":
        label[:, :, ::2] = 3
    return label


@pytest.mark.parametrize("kind", ["ignored", "one", "no_thing"])
@pytest.mark.parametrize("name", METHODS)
def test_odd_batches_give_finite_losses_and_gradients(name, kind):
    state, frozen, step = _run(name)
    batch = standin.batch()
    batch = replace(batch, source=replace(batch.source, label=_labels(kind)))
    for _ in range(2):
        state, metrics = step(state, frozen, batch)
        assert bool(metrics["finite"])
        assert all(np.isfinite(value).all() for value in metrics.values())
    if kind == "ignored":
        assert float(metrics["source/ce"]) == 0
    if name in ("daformer", "mic"):
        # Only where the compared classes b and c occur is there a distance.
        assert (float(metrics["source/feature_distance"]) > 0) == (kind == "one")


def test_stacked_and_sequential_passes_make_the_same_step():
    """All passes there are, with BatchNorm and dropout on: each keeps its own statistics and
    draws."""
    states, metrics = [], []
    for execution in ("sequential", "stacked"):
        state, frozen, step = _run("mic", execution, 0.3)
        after, found = step(state, frozen, standin.batch())
        states.append(after)
        metrics.append(found)
    for key, value in metrics[0].items():
        np.testing.assert_allclose(value, metrics[1][key], rtol=2e-5, err_msg=key)
    for first, second in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-6)


def _panels(config, batch):
    program = standin.program(config)
    state = jax.jit(program.init)(KEY)
    inspect = jax.jit(program.inspect, compiler_options=COMPILER)
    return jax.device_get(inspect(state, program.frozen(config), batch))


def test_both_masks_sources_with_their_labels_and_then_targets():
    batch = standin.batch(size=(4, *standin.CROP))
    panels = _panels(_config("mic_both"), batch)
    np.testing.assert_array_equal(panels["masked/label"][:2], batch.source.label[:2])
    np.testing.assert_array_equal(panels["masked/weight"][:2], 255)
    for masked, plain in (
        (panels["masked/image"][:2], panels["source/image"][:2]),
        (panels["masked/image"][2:], panels["target/image"][:2]),
    ):
        shown = (masked == plain).all(-1)
        assert 0 < shown.mean() < 1


def test_mic_masks_whole_blocks_with_the_mean_colour():
    config = standin.config(kind="mic")
    method = replace(
        config.method,
        mic=MIC(ratio=0.5, block=4),
        augment=replace(config.method.augment, jitter_probability=0.0, blur_probability=0.0),
    )
    panels = _panels(replace(config, method=method), standin.batch())
    image, target = panels["masked/image"].astype(int), panels["target/image"].astype(int)
    batch, height, width = image.shape[:3]
    blocks = (batch, height // 4, 4, width // 4, 4)
    shown = (image == target).all(-1).reshape(blocks).all((2, 4))
    grey = (np.abs(image - np.array([124, 116, 104])) <= 1).all(-1)
    hidden = grey.reshape(blocks).all((2, 4))
    assert (shown ^ hidden).all()
    assert 0 < shown.mean() < 1
