"""What evaluations and panels run is compiled beside the first steps."""

import threading
from dataclasses import replace

import jax
import pytest

from mrm_jax import main
from mrm_jax.train import loop
from mrm_jax.train.ahead import Ahead
from mrm_jax.train.step import build_step

# One block of an encoder, every kind of program: MRM, a teacher, labels, scores without, panels.
WORDS = (
    *("--config=tiny:dacs,mrm=true", "--config.train.steps=3", "--config.train.log_every=1"),
    *("--config.train.panels_every=3", "--config.train.eval_every=3"),
    *("--config.train.checkpoint_every=3", "--config.data.evaluation.count=2"),
    *("--config.model.encoder.dims=(8,)", "--config.model.encoder.depths=(1,)"),
    *("--config.model.encoder.heads=(1,)", "--config.model.encoder.sr_ratios=(4,)"),
    "--config.mesh.devices=1",  # over several a save cuts every leaf into parts
    *("--config.model.encoder.strides=(4,)", "--config.model.encoder.mlp_ratios=(2,)"),
)


@pytest.fixture
def compiled():
    """(thread, program) of each that XLA compiles."""
    found = []

    def heard(event: str, duration_secs: float, **about: str | int):
        if event.endswith("backend_compile_duration"):
            found.append((threading.current_thread().name, about["fun_name"]))

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield found
    jax.monitoring.unregister_event_duration_listener(heard)


def still(config):
    """The real networks, and a step that compiles in no time: it only counts."""

    def step(state, frozen, batch):
        loss = batch.source.image.mean() / 255
        return replace(state, step=state.step + 1), {"total/loss": loss, "finite": loss >= 0}

    return build_step(config)._replace(train_step=step)


def test_all_that_is_needed_after_the_first_step_is_compiled_beside_training(
    tmp_path, compiled, monkeypatch
):
    begun, begin = [], Ahead.begin

    def noted(ahead):
        begun.append(len(compiled))
        begin(ahead)

    monkeypatch.setattr(loop, "build_step", still)
    monkeypatch.setattr(loop, "_report", lambda *_: None)
    monkeypatch.setattr(Ahead, "begin", noted)
    assert main.run([*WORDS, f"--workdir={tmp_path / 'run'}"]) == 0
    after = compiled[begun[0] :]
    assert [program for thread, program in after if thread != "ahead"] == []
    assert {"jit(_whole_and_masked)", "jit(maps)", "jit(_inspect)"} <= {name for _, name in after}


def test_a_piece_that_fails_leaves_the_rest_to_those_who_need_it_and_says_nothing(capfd):
    def fails():
        raise KeyboardInterrupt

    done = []
    ahead = Ahead([lambda: done.append(1), fails, lambda: done.append(2)])
    ahead.wait()
    assert not done
    ahead.begin()
    ahead.wait()
    assert done == [1]
    assert capfd.readouterr() == ("", "")


def test_no_piece_begins_once_it_is_closed():
    waits, done = threading.Event(), []
    ahead = Ahead([waits.wait, lambda: done.append(1)])
    ahead.begin()
    ahead.close()
    waits.set()
    ahead.wait()
    ahead.begin()
    assert not done
