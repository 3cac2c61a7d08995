"""Traces of a few steps, written beside the run."""

import pytest
from jax.profiler import ProfileData
from refusals import refused
from toy_run import Toy

from mrm_jax.runs.mirror import Mirror
from mrm_jax.train import trace


@pytest.fixture
def toy(tmp_path, monkeypatch):
    return Toy(tmp_path, monkeypatch)


def traces(run):
    """The steps in each trace of a run, the oldest first."""
    found = []
    for path in sorted((run / "profile").rglob("*.xplane.pb")):
        events = [
            event
            for plane in ProfileData.from_file(str(path)).planes
            for line in plane.lines
            for event in line.events
            if event.name == "train"
        ]
        found.append(sorted(dict(event.stats)["step_num"] for event in events))
    return found


def test_the_steps_that_are_asked_for_are_traced_and_no_others(toy, capfd):
    assert toy.train(train__profile="2:4", train__steps=6) == 0
    assert traces(toy.path / "run") == [[2, 3, 4]]
    assert "config.train.profile=2:4: the trace is in" in capfd.readouterr().out
    plain = toy.path / "run/profile/host-0/plugins/profile"
    assert len(list(plain.glob("*/perfetto_trace.json.gz"))) == 1


def test_a_run_that_goes_on_traces_what_is_left_and_says_where_nothing_is(toy, capfd):
    often = {"train__checkpoint_every": 2, "train__steps": 6}
    toy.poisoned = (2,)  # ends the run in step 3
    with pytest.raises(Exception, match="not finite"):
        toy.train(**often)
    toy.poisoned = ()
    toy.train(train__profile="1:9", **often)  # from step 3 on, and to the end
    assert traces(toy.path / "run") == [[3, 4, 5, 6]]
    toy.poisoned = (2,)
    with pytest.raises(Exception, match="not finite"):
        toy.train("late", **often)
    toy.poisoned = ()
    toy.train("late", train__profile="1:2", **often)
    assert not (toy.path / "late/profile").exists()
    assert "config.train.profile=1:2: those steps are done; no trace." in capfd.readouterr().out


def test_a_run_that_fails_within_the_steps_leaves_their_trace_and_the_profiler_free(toy):
    toy.poisoned = (2,)
    with pytest.raises(Exception, match="not finite"):
        toy.train(train__profile="2:6", train__steps=6)
    assert traces(toy.path / "run")[0][:2] == [2, 3]
    toy.poisoned = ()
    toy.train("next", train__profile="1:1", train__steps=2)
    assert traces(toy.path / "next") == [[1]]


def test_a_trace_that_cannot_be_written_costs_no_steps(toy, monkeypatch, capfd):
    real = trace.jax.profiler.stop_trace

    def full():
        real()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trace.jax.profiler, "stop_trace", full)
    assert toy.train(train__profile="1:2", train__steps=3) == 0
    assert "could not be written: No space left" in "".join(capfd.readouterr())
    assert toy.steps()[-1] == 3


def test_another_host_brings_its_own_trace_and_nothing_else(tmp_path):
    there, here = tmp_path / "run", tmp_path / "here"
    for name in ("profile/host-1/trace.pb", "metrics.jsonl"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("mine")
    there.mkdir()
    mirror = Mirror(there, here, keep=False)
    mirror.push()
    assert not list(there.iterdir())
    mirror.push("profile")
    assert [p for p in there.rglob("*") if p.is_file()] == [there / "profile/host-1/trace.pb"]


@pytest.mark.parametrize("text", ["5", "4:2", "0:3", "a:b", "1:2:3", ":", "1:-1", "7:9"])
def test_steps_to_trace_that_are_none_are_refused(toy, text):
    with refused("config.train.profile", text):
        toy.config(train__profile=text, train__steps=6)
