import itertools
import json
import os
import signal

import cv2
import numpy as np
import pytest
from refusals import refused
from toy_run import Toy

from mrm_jax.data import sources
from mrm_jax.data.pipeline import train_batches
from mrm_jax.errors import RunError, UsageError
from mrm_jax.runs.checkpoint import Checkpoints, load_run
from mrm_jax.runs.saved import read_facts
from mrm_jax.runs.writer import TensorBoard, Writer
from mrm_jax.train import hooks, loop
from mrm_jax.variants import ENCODERS


@pytest.fixture
def toy(tmp_path, monkeypatch):
    return Toy(tmp_path, monkeypatch)


def _signal_before_step(monkeypatch, number, step):
    """Sends this process `number` while batch `step` (from 0) is read, which then hangs."""

    def batches(config, *, start_step, **kwargs):
        for index, batch in enumerate(train_batches(config, start_step=start_step), start_step):
            if index == step:
                os.kill(os.getpid(), number)
                pytest.fail("a stop waits for no batch")
            yield batch

    monkeypatch.setattr(loop, "train_batches", batches)


def test_the_work_of_a_step_has_one_order(toy, monkeypatch):
    events = []

    def record(owner, name, event):
        real = getattr(owner, name)

        def wrapped(*args, **kwargs):
            events.append(event(*args, **kwargs))
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    record(Writer, "write", lambda _, step, values: (step, sorted(values)[0].split("/")[0]))
    record(hooks, "evaluate_on_hosts", lambda _, state, *__, **___: (int(state.step), "evaluate"))
    record(Checkpoints, "save", lambda _, step, *__: (step, "save"))
    record(hooks, "save_views", lambda _, __, step, ___: (step, "panels"))
    record(hooks, "write_report", lambda _: (0, "report"))
    every = dict.fromkeys(
        ("train__eval_every", "train__checkpoint_every", "train__panels_every"), 2
    )
    assert toy.train(train__steps=4, train__log_every=2, **every) == 0
    work = ["perf", "save", "evaluate", "eval", "panels"]  # perf: the line of the step's metrics
    expected = [(0, "perf")] + [(n, what) for n in (2, 4) for what in work] + [(0, "report")]
    assert events == expected


def test_the_screen_shows_the_first_step_and_then_every_so_many(toy, capsys):
    toy.train(train__steps=5, train__log_every=2, evaluation__selection_pictures=0)
    lines = [x for x in capsys.readouterr().out.splitlines() if "total/loss" in x]
    assert [line.split()[1] for line in lines] == ["1/5", "2/5", "4/5", "5/5"]
    assert ["steps/s" in line or "s/step" in line for line in lines] == [False, True, True, True]
    assert [x["step"] for x in toy.lines("run") if "total/loss" in x] == [2, 4, 5]


def test_a_method_that_does_not_look_at_the_target_does_not_open_it(toy, monkeypatch):
    method = {"method__kind": "source_only", "method__mrm__enabled": False}

    def both(config, *, target, **rest):
        assert not target
        return train_batches(config, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_batches", both)
        toy.train("both", **method)
    monkeypatch.setattr(sources, "open_pictures", lambda *_, **__: pytest.fail("it was opened"))
    toy.train(evaluation__selection_pictures=0, **method)
    ours, theirs = (
        [x["total/loss"] for x in toy.lines(name) if "total/loss" in x] for name in ("run", "both")
    )
    assert ours == theirs
    assert len(ours) == 6


def test_a_run_from_the_source_alone_needs_no_target(toy, capsys):
    toy.train(method__kind="source_only", method__mrm__enabled=False, data__target__kind="folder")
    assert toy.steps()[-1] == 6
    assert "data.target.path is empty: no scores without labels" in capsys.readouterr().out
    with refused("config.data.target.path", way_out="set it to the folder of the data set"):
        toy.train("adapted", data__target__kind="folder")


def test_labels_and_small_pictures_are_said_before_compilation_and_no_class_ends_it(toy, capsys):
    for k in range(2):
        for folder, array in (
            ("images", np.zeros((24, 90, 3))),
            ("labels", np.full((24, 90), 255)),
        ):
            (toy.path / "own" / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(toy.path / f"own/{folder}/{k}.png"), array.astype(np.uint8))
    own = {"data__source__path": toy.path / "own", "data__source__ignored_ids": "(255,)"}
    with refused("config.data.source", way_out="ignored_ids"):
        toy.train("refused", **own)
    label = np.full((24, 90), 255, np.uint8)
    label[:6] = 1
    cv2.imwrite(str(toy.path / "own/labels/0.png"), label)
    capsys.readouterr()
    toy.train(**own, data__target__path=toy.path / "own/images")
    out = capsys.readouterr().out
    said, compiled = out.index("87.5% of the pixels are ignored"), out.index("compiling the step")
    assert said < compiled
    assert out.count("WARNING config.data.crop") == 2
    assert out.index("WARNING config.data.crop") < compiled
    known = json.loads((toy.path / "run/environment.json").read_text())["source_labels"]
    assert (known["ignored"], known["estimated"], len(known["never"])) == (0.875, False, 16)
    # The target is one's own: nothing is scored by labels, and scores without them are.
    names = {name for line in toy.lines() for name in line}
    assert "select/infomax" in names
    assert not [name for name in names if name.startswith("eval/")]


def test_a_workdir_holds_all_of_a_run(toy, monkeypatch):
    monkeypatch.setattr(hooks, "write_report", toy.write_report)
    assert toy.train() == 0
    folder = toy.path / "run"
    names = {p.name for p in folder.iterdir() if not p.name.startswith(".")}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert names - events == {
        "config.json",
        "environment.json",
        "checkpoints",
        "metrics.jsonl",
        "views",
        "evaluation.json",
        "report.html",
    }
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["jax"]
    assert environment["devices"]
    assert environment["command"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = set().union(*lines)
    assert {"total/loss", "eval/student/mIoU", "eval/student/IoU/road"} <= names
    assert {"perf/steps_per_second", "perf/images_per_second", "perf/data_wait_share"} <= names
    assert {"perf/eta_seconds", "perf/memory_bytes", "teacher/class_share/road"} <= names


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_the_same_command_goes_on(toy, monkeypatch, number):
    close, endings = TensorBoard.close, []

    def closed(tracker, ending):
        endings.append(ending)
        close(tracker, ending)

    monkeypatch.setattr(TensorBoard, "close", closed)
    toy.train("whole")
    with monkeypatch.context() as patch:
        _signal_before_step(patch, number, 3)
        assert toy.train() == 0
    assert toy.steps()[-1] == 3
    assert not (toy.path / "run" / "report.html").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert toy.train() == 0
    assert toy.weight("last") == toy.weight("last", "whole")
    assert toy.lines() == toy.lines("whole")
    assert endings == ["finished", "stopped", "finished"]


@pytest.fixture
def whole(toy, monkeypatch):
    """What a run that nothing stopped ends with."""
    toy.scores = [0.9, 0.9, 0.9, 0.005, 0.005, 0.005]  # all classes collapse: alarms at step 6
    assert toy.train("whole") == 0
    return _outcome(toy, "whole")


def _outcome(toy, name):
    folder = toy.path / name
    facts = read_facts(folder / "checkpoints" / "6")
    kept = {key: facts[key] for key in ("scores", "sentinel", "undone")}
    views = sorted(path.name for path in (folder / "views").iterdir())
    evaluation = (folder / "evaluation.json").read_text()
    report = (folder / "report.html").exists()
    return toy.weight("last", name), toy.lines(name), kept, views, evaluation, report


def test_a_stop_waits_for_no_evaluation_sheet_or_report_and_the_same_command_makes_them(
    toy, whole, monkeypatch, capsys
):
    places = {"evaluate_on_hosts": (3, 6), "select": (6,), "save_views": (6,), "write_report": (6,)}
    for place, number in [(place, n) for place, numbers in places.items() for n in numbers]:
        name, real = f"{place}{number}", getattr(hooks, place)
        calls = iter([False, True] if number == 6 and place != "write_report" else [True])

        def asked(*arguments, real=real, calls=calls, **more):
            if next(calls):
                signal.raise_signal(signal.SIGTERM)
                pytest.fail("a stop waits for nothing that can be made up for")
            return real(*arguments, **more)

        with monkeypatch.context() as patch:
            patch.setattr(hooks, place, asked)
            assert toy.train(name) == 0
        assert toy.steps(name)[-1] == number
        said = capsys.readouterr().out.strip().splitlines()[-1]
        assert said.startswith("stopped by SIGTERM ")
        assert said.endswith("the same command goes on from there.")
        assert str(number) in said
        assert not (toy.path / name / "report.html").exists()
        assert toy.train(name) == 0
        assert _outcome(toy, name) == whole, name


def test_an_evaluation_cut_off_by_kill_9_comes_once(toy, whole, monkeypatch):
    class Killed(BaseException):
        pass

    real = Checkpoints.score

    def killed(self, step, *arguments, **more):
        if step == 6:
            raise Killed
        real(self, step, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "score", killed)  # what it found is written down already
        with pytest.raises(Killed):
            toy.train()
    assert toy.lines()[-1]["step"] == 6
    assert toy.train() == 0
    assert _outcome(toy, "run") == whole


def test_a_stop_before_the_first_step_leaves_nothing_behind(toy, monkeypatch):
    monkeypatch.setattr(loop, "selection_crops", lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        toy.train()
    assert not (toy.path / "run").exists()


def test_lines_after_the_last_checkpoint_of_a_killed_run_are_written_once(toy, monkeypatch):
    toy.train("whole")

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(hooks, "save_views", killed)  # step 3, one after the checkpoint of step 2
        patch.setattr(Checkpoints, "is_best", lambda *_: False)
        with pytest.raises(Killed):
            toy.train()
    with open(toy.path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "total/lo')
    assert (toy.steps()[-1], toy.lines()[-1]["step"]) == (2, 3)
    toy.train()
    assert toy.lines() == toy.lines("whole")
    assert toy.weight("last") == toy.weight("last", "whole")


def test_a_step_that_is_not_finite_stops_the_run_at_the_last_good_state(toy):
    toy.train("whole")
    toy.poisoned = (3,)  # counted from 0: the fourth step
    with pytest.raises(
        RunError, match=r"^Step 4 is not finite \(total/loss\).*step_4\.npz"
    ) as line:
        toy.train(train__checkpoint_every=6)
    assert "\n" not in str(line.value)
    assert load_run(toy.path / "run").step == 3
    config = toy.config(train__checkpoint_every=6)
    batch = next(itertools.islice(train_batches(config), 3, None))
    with np.load(toy.path / "run" / "fault" / "step_4.npz") as found:
        np.testing.assert_array_equal(found["batch.source.image"], batch.source.image)
        np.testing.assert_array_equal(found["batch.target.image"], batch.target.image)
        assert found["draws.mix"].shape == (2, 256)
        assert np.isnan(found["metrics.total/loss"])
    toy.poisoned = ()
    toy.train(train__checkpoint_every=6)  # had anything of step 4 or 5 stayed, this would differ
    assert toy.weight("last") == toy.weight("last", "whole")


def test_a_picture_that_cannot_be_read_stops_the_run_after_saving(toy, monkeypatch):
    def batches(config, *, start_step, **kwargs):
        yield from itertools.islice(train_batches(config, start_step=start_step), 3)
        raise UsageError("town/7.png is cut off")

    monkeypatch.setattr(loop, "train_batches", batches)
    with pytest.raises(UsageError, match="town/7.png"):
        toy.train(train__checkpoint_every=6)
    assert toy.steps()[-1] == 3


def test_the_best_network_is_kept_whatever_the_cadence_of_checkpoints(toy):
    toy.scores = [0.1, 0.7, 0.3, 0.6, 0.2, 0.5]
    toy.train(train__eval_every=1, train__checkpoint_every=3, train__keep=1)
    assert toy.steps() == [2, 6]
    assert load_run(toy.path / "run", "best").step == 2


def test_the_picked_network_is_kept_whatever_the_cadence_and_over_a_resume(toy, monkeypatch):
    toy.scores = [0.1, 0.7, 0.3, 0.6, 0.2, 0.5]
    toy.picks = [0.1, 0.2, 0.3, 0.9, 0.2, 0.5]
    often = {"train__eval_every": 1, "train__checkpoint_every": 6, "train__keep": 1}
    with monkeypatch.context() as patch:
        _signal_before_step(patch, signal.SIGTERM, 4)
        toy.train(**often)
    assert toy.steps() == [2, 3, 4]  # stopped before step 4 was evaluated
    toy.train(**often)
    assert toy.steps() == [2, 4, 6]
    assert [load_run(toy.path / "run", w).step for w in ("best", "picked")] == [2, 4]


def test_a_full_disk_stops_the_run_with_one_line_and_costs_nothing_saved(toy, monkeypatch):
    toy.train("whole")
    real = Checkpoints.__init__

    def nearly_full(self, *args, **kwargs):
        real(self, *args, **kwargs)
        save = self._manager.save

        def full(step, **rest):
            if step >= 4:
                raise OSError(28, "No space left on device")
            return save(step, **rest)

        monkeypatch.setattr(self._manager, "save", full)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "__init__", nearly_full)
        with pytest.raises(RunError, match=r"step 4 .*No space left.*last good one is step 3"):
            toy.train()
    assert toy.steps()[-1] == 3
    toy.train()
    assert toy.weight("last") == toy.weight("last", "whole")


def test_a_collapsed_class_is_named_once_on_screen_and_in_the_metrics(toy, capsys):
    toy.scores = [0.5, 0.5, 0.5, 0.0, 0.0, 0.0]
    toy.train(train__eval_every=1)
    alarms = [line for line in toy.lines() if any(name.startswith("alarm/") for name in line)]
    assert {line["step"] for line in alarms} == {4}
    assert len(alarms) == len(toy.config().data.classes.names)
    assert "class road: the student's IoU fell to 0.0% at step 4" in capsys.readouterr().out


def test_a_run_without_labels_to_score_on_adapts_and_picks_without_them(toy, monkeypatch):
    monkeypatch.setattr(hooks, "write_report", toy.write_report)
    toy.picks = [0.1, 0.2, 0.9, 0.4, 0.5, 0.6]
    assert toy.train(data__evaluation__kind="folder") == 0
    assert toy.steps()[-1] == 6
    assert not [name for line in toy.lines() for name in line if name.startswith("eval/")]
    assert not (toy.path / "run" / "evaluation.json").exists()
    picks = [line for line in toy.lines() if "select/infomax" in line]
    assert [line["step"] for line in picks] == [3, 6]
    assert load_run(toy.path / "run", "picked").step == 3
    with pytest.raises(UsageError, match="No checkpoint in .* labels; use picked, last or a step"):
        load_run(toy.path / "run", "best")
    assert "No evaluation has been written" in (toy.path / "run" / "report.html").read_text()


def test_a_published_encoder_from_random_numbers_is_announced_before_compiling(toy, capsys):
    names = ("dims", "depths", "heads", "sr_ratios", "strides", "mlp_ratios")
    b0 = {f"model__encoder__{name}": getattr(ENCODERS["mit_b0"], name) for name in names}
    toy.train(**b0, optimizer__learning_rate=6e-5, train__steps=1)
    said = capsys.readouterr().out
    assert "WARNING from random numbers: encoder mit_b0" in said.partition("compiling")[0]
    toy.train("small", train__steps=1)
    assert "from random numbers" not in capsys.readouterr().out


def test_a_finished_run_does_not_train_again(toy, capsys):
    toy.train()
    before = toy.lines()
    assert toy.train() == 0
    assert "done already" in capsys.readouterr().out
    assert toy.lines() == before


def test_an_unreadable_picture_is_named_and_skipped_where_the_config_allows(toy, caplog):
    rng = np.random.default_rng(0)
    for index in range(4):
        path = toy.path / "town" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (40, 80, 3), np.uint8))
    (toy.path / "town" / "2.png").write_bytes(b"no picture")
    folder = {"data__target__kind": "folder", "data__target__path": toy.path / "town"}
    with pytest.raises(UsageError, match=r"2\.png"):
        toy.train("strict", train__steps=4, **folder)
    assert toy.train("lenient", train__steps=4, data__target__on_unreadable="skip", **folder) == 0
    assert "2.png" in caplog.text


def test_a_batch_that_the_devices_cannot_share_is_refused_before_anything_is_written(toy):
    with refused("config.train.batch", 3, way_out="Use config.train.batch=2 or 4, or"):
        toy.train(train__batch=3)
    assert toy.train(train__batch=2) == 0  # the corrected command may use the same folder


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(toy, monkeypatch, capsys):
    toy.train("whole")

    def stop(run, done):
        if done.number == 4:
            signal.raise_signal(signal.SIGTERM)
        return real(run, done)

    real = loop._read
    with monkeypatch.context() as patched:
        patched.setattr(loop, "_read", stop)
        assert toy.train(train__checkpoint_every=1) == 0
    newest = toy.steps()[-1]
    for path in (toy.path / "run" / "checkpoints" / str(newest) / "training").rglob("*"):
        if path.is_file():
            path.write_bytes(b"garbage")
    capsys.readouterr()
    assert toy.train(train__checkpoint_every=1) == 0
    said = capsys.readouterr().out
    assert f"checkpoint of step {newest} is damaged and now" in said
    assert "is used." in said
    assert toy.weight("last") == toy.weight("last", "whole")


def test_a_run_traces_its_step_once(toy, monkeypatch):
    traces, make = [], loop.build_step

    def counting(config):
        program = make(config)

        def step(*arguments):
            traces.append(1)
            return program.train_step(*arguments)

        return program._replace(train_step=step)

    monkeypatch.setattr(loop, "build_step", counting)
    toy.train()
    assert len(traces) == 1
