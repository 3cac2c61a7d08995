import json

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.train.sentinel import SMOOTHING_STEPS, Sentinel, not_finite, save_fault

CLASSES = ("road", "train")


def _run(sentinel, shares, start=0):
    alarms = []
    for number, share in enumerate(shares, start + 1):
        found = sentinel.see_shares(np.array([0.5, share]), number)
        alarms += [(number, name, text) for name, text in found.items()]
    return alarms


def test_a_class_that_vanishes_from_the_pseudo_labels_alarms_once_with_class_and_step():
    alarms = _run(Sentinel(CLASSES), [0.1] * 300 + [0.0] * 600)
    assert len(alarms) == 1
    number, name, text = alarms[0]
    assert name == "train"
    assert f"step {number}" in text
    # An exponential average falls to 1/20 after ln 20 = 3.0 time constants.
    assert 300 + 2.9 * SMOOTHING_STEPS < number < 300 + 3.1 * SMOOTHING_STEPS


def test_a_class_that_most_batches_lack_does_not_alarm():
    rng = np.random.default_rng(0)
    assert _run(Sentinel(CLASSES), rng.binomial(1, 0.05, 3000) * 0.1) == []


def test_a_class_that_never_appeared_does_not_alarm():
    assert _run(Sentinel(CLASSES), [0.0] * 500) == []


def test_a_class_that_came_back_alarms_when_it_vanishes_again():
    shares = ([0.1] * 300 + [0.0] * 600) * 2
    assert len(_run(Sentinel(CLASSES), shares)) == 2


def test_a_resumed_sentinel_alarms_at_the_step_of_an_uninterrupted_one():
    shares = [0.1] * 300 + [0.0] * 600
    whole = _run(Sentinel(CLASSES), shares)
    first, second = Sentinel(CLASSES), Sentinel(CLASSES)
    early = _run(first, shares[:450])
    second.remember(json.loads(json.dumps(first.memory())))
    assert early + _run(second, shares[450:], start=450) == whole


def test_iou_falling_to_zero_after_ten_percent_alarms_once():
    sentinel = Sentinel(CLASSES)
    seen = [
        sentinel.see_scores("student", {"train": value, "road": 0.9}, step)
        for step, value in enumerate([0.05, 0.12, 0.004, 0.0, None], 1)
    ]
    assert [list(found) for found in seen] == [[], [], ["train"], [], []]
    assert "step 3" in seen[2]["train"]
    assert "student" in seen[2]["train"]


def test_iou_that_never_reached_ten_percent_does_not_alarm():
    sentinel = Sentinel(CLASSES)
    assert not any(sentinel.see_scores("teacher", {"train": v}, 1) for v in (0.09, 0.0))


def test_metrics_that_are_not_finite_are_named():
    values = {"a": np.float32(1), "b": np.float32("nan"), "c": np.array([0, np.inf])}
    assert not_finite(values) == ["b", "c"]


def test_a_fault_holds_every_array_of_batch_draws_and_metrics(tmp_path):
    batch = {"source": {"image": jnp.arange(6, dtype=jnp.uint8).reshape(1, 2, 3)}}
    draws = {"module": {"source": jax.random.key(7)}, "mix": jnp.ones((1, 2))}
    path = save_fault(tmp_path / "fault", 5, batch, draws, {"total/loss": np.float32("nan")})
    assert [file.name for file in path.parent.iterdir()] == ["step_5.npz"]
    with np.load(path) as found:
        assert set(found) == {
            "batch.source.image",
            "draws.module.source",
            "draws.mix",
            "metrics.total/loss",
        }
        np.testing.assert_array_equal(found["batch.source.image"].ravel(), np.arange(6))
        np.testing.assert_array_equal(
            found["draws.module.source"], jax.random.key_data(jax.random.key(7))
        )


def test_what_an_untrained_teacher_says_is_not_missed_later():
    sentinel = Sentinel(("road", "pole"))
    for step in range(1, 301):
        assert not sentinel.see_shares(np.array([0.5, 0.5]), step, confident=0.01)
    for step in range(301, 900):
        assert not sentinel.see_shares(np.array([1.0, 0.0]), step, confident=0.4)
