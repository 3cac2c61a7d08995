"""A step of every method with a teacher, around the stand-in network: what odd batches do to it,
and that it may be run either way."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest
import standin
from compiler import QUICK

from mrm_jax.config import MIC, FeatureDistance
from mrm_jax.label_ids import IGNORE
from mrm_jax.models.segmentor import Segmentor
from mrm_jax.train import passes

KEY = np.array([0, 7], np.uint32)
DISTANCE = FeatureDistance(weight=0.5, classes=("b", "c"))
METHODS = {
    "dacs": {},
    "daformer": {"feature_distance": DISTANCE},
    "mic": {"feature_distance": DISTANCE, "mic": MIC(ratio=0.5, block=4)},
    "mic_both": {"mic": MIC(images="both", ratio=0.5, block=4)},
    "hrda": {"feature_distance": DISTANCE},
    "mic_hrda": {"feature_distance": DISTANCE, "mic": MIC(ratio=0.5, block=4)},
}


def _config(name: str):
    """The run with MRM; hrda and mic_hrda at two resolutions."""
    config = standin.config(kind=name.split("_")[0], hrda="hrda" in name)
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
    return state, frozen, jax.jit(program.train_step, compiler_options=QUICK)


def _labels(kind: str, size: tuple[int, ...]) -> np.ndarray:
    first, second = {"ignored": (IGNORE,) * 2, "one": (1, 1), "no_thing": (0, 3), "never": (1, 2)}[
        kind
    ]
    label = np.full(size, first, np.uint8)
    label[:, :, size[2] // 2 :] = second
    return label


@pytest.mark.parametrize("kind", ["ignored", "one", "no_thing", "never"])
@pytest.mark.parametrize("name", METHODS)
def test_odd_batches_give_finite_losses_and_gradients(name, kind):
    state, frozen, step = _run(name)
    hrda = "hrda" in name
    batch = standin.batch(size=(2, *standin.HRDA_CROP) if hrda else standin.SIZE)
    label = _labels(kind, batch.source.label.shape)
    batch = replace(batch, source=replace(batch.source, label=label))
    for _ in range(2):
        state, metrics = step(state, frozen, batch)
        assert bool(metrics["finite"])
        assert all(np.isfinite(value).all() for value in metrics.values())
    if kind == "ignored":
        assert all(float(metrics[f"source/{ce}"]) == 0 for ce in _losses(hrda))
    assert {f"reconstructed/{ce}" for ce in _losses(hrda)} <= metrics.keys()
    if "feature_distance" in METHODS[name]:
        # Only where the compared classes b and c occur is there a distance.
        assert (float(metrics["source/feature_distance"]) > 0) == (kind in ("one", "never"))


def _losses(hrda: bool) -> tuple[str, ...]:
    return ("ce_fused", "ce_detail") if hrda else ("ce",)


def test_the_teacher_looks_once_a_step_and_the_student_once_a_pass(monkeypatch):
    """Pseudo-labels are shared: MIC and MRM take those that the mixed pass has."""
    looks = []
    encode = Segmentor.encode

    def counted(self, image, *, mode, offset=None):
        looks.append(mode)
        return encode(self, image, mode=mode, offset=offset)

    monkeypatch.setattr(Segmentor, "encode", counted)
    once = passes.traced_once  # which calls it once for all passes
    monkeypatch.setattr(passes, "traced_once", lambda segmentor: once(segmentor).__wrapped__)
    config = _config("mic")
    config = replace(
        config, method=replace(config.method, mrm=replace(config.method.mrm, images="both"))
    )
    program = standin.program(config)
    state = jax.eval_shape(program.init, KEY)
    frozen = program.frozen(config, {"params": state.params["segmentor"]["encoder"]})
    looks.clear()
    jax.eval_shape(program.train_step, state, frozen, standin.batch())
    # Once for the feature distance, too, by the frozen encoder.
    assert looks == ["pseudo", "eval", *["train"] * 5]


def test_under_hrda_mrm_hides_other_cells_of_the_detail_than_of_the_context():
    """One detail crop and two masks a rebuilt pass; the detail's mask reaches the detail's loss."""
    config = _config("mic_hrda")
    config = replace(
        config, method=replace(config.method, mrm=replace(config.method.mrm, images="both"))
    )
    program = standin.program(config)
    batch = standin.batch(size=(2, *standin.HRDA_CROP))
    draws = program.draw(KEY, 0, batch.index)
    rebuilt = ("reconstructed_source", "reconstructed_target")
    names = [f"{name}{scale}" for name in rebuilt for scale in ("", "/detail")]
    assert draws.mask.keys() == {"masked", *names}
    assert len({np.asarray(draws.mask[name]).tobytes() for name in names}) == 4
    assert {corner.shape for corner in draws.offset.values()} == {(2,)}
    assert draws.offset.keys() == {"source", "mixed", "masked", *rebuilt}
    state, frozen, _ = _run("mic_hrda")
    stored = jax.jit(program.step_with, compiler_options=QUICK)
    normal, found = program.normalise(state, batch), {}
    for hide in (0.0, 1.0):  # all cells of the detail, or none
        mask = draws.mask | {f"{rebuilt[1]}/detail": np.full_like(draws.mask[names[0]], hide)}
        found[hide] = stored(state, frozen, normal, replace(draws, mask=mask))[1]
    changed = {key for key in found[0.0] if np.any(found[0.0][key] != found[1.0][key])}
    losses = {f"{rebuilt[1]}/{ce}" for ce in _losses(True)}
    assert {key for key in changed if "/ce" in key} == losses


def test_a_step_is_the_same_however_its_passes_are_run():
    """All passes there are, with BatchNorm and dropout on: each keeps its own statistics and
    draws."""
    states, metrics = [], []
    for execution in ("sequential", "looped", "stacked"):
        state, frozen, step = _run("mic", execution, 0.3)
        after, found = step(state, frozen, standin.batch())
        states.append(after)
        metrics.append(found)
    for other, found in zip(states[1:], metrics[1:], strict=True):
        for key, value in metrics[0].items():
            np.testing.assert_allclose(value, found[key], rtol=2e-5, err_msg=key)
        for first, second in zip(*map(jax.tree.leaves, (states[0], other)), strict=True):
            np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-6)


def _panels(config, batch):
    program = standin.program(config)
    state = jax.jit(program.init)(KEY)
    inspect = jax.jit(program.inspect, compiler_options=QUICK)
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
