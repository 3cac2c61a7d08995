"""Weights & Biases beside metrics.jsonl. What its package does is tried with the package itself,
what it may fail at with a module in its place."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from mrm_jax import command, main
from mrm_jax.errors import RunError
from mrm_jax.hosts import group
from mrm_jax.runs import trackers
from mrm_jax.runs.workdir import sheet
from mrm_jax.runs.writer import METRICS, TensorBoard, Writer
from mrm_jax.stop import Stopped

sys.path.insert(0, str(Path(__file__).parent))
from wandb_stand_in import KEY, server  # noqa: E402

CONFIG = command.load_config(["--config=tiny", "--config.train.tracker=wandb"])
real = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="needs the extra wandb, which dev has"
)


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """The package as in a process that has not used it; offline, and with a home of its own."""
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield wandb
    wandb.teardown()


@contextmanager
def online(monkeypatch, **how):
    """A server that the package is logged in at; see `wandb_stand_in.server`."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with server(**how) as (address, runs):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        yield address, runs


class Lines(list):
    """What a run's user is told: `opened` gives a writer whose tracker talks here."""

    def opened(self, folder, step, **how):
        tracker = trackers.tracker_of(CONFIG, folder, say=self.append, warn=self.append)
        return Writer(folder, step=step, tracker=tracker, **how)


@pytest.fixture
def lines():
    return Lines()


def folder_of(path):
    (path / "views").mkdir(parents=True)
    return path


def draw(folder, what, step):
    path = sheet(folder, what, step)
    Image.fromarray(np.full((4, 6, 3), step, np.uint8)).save(path)
    return path


def by_step(folder):
    """metrics.jsonl as a tracker shows it: the values of a step together, without nulls."""
    found = {}
    for line in (folder / METRICS).read_text().splitlines():
        values = json.loads(line)
        shown = {name: value for name, value in values.items() if value is not None}
        found.setdefault(shown.pop("step"), {}).update(shown)
    return {step: values for step, values in found.items() if values}


def history(rows):
    """{step: values} of rows of W&B, each step once; without what its package adds."""
    found = {}
    for row in rows:
        assert row["_step"] not in found
        own = {name: value for name, value in row.items() if name[0] != "_"}
        found[row["_step"]] = own
    return found


def recorded(folder):
    """What the package's own reader finds in each offline run of a folder, oldest first."""
    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime):
        words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        records = [json.loads(line) for line in text.splitlines()]
        found.append({kind: [r[kind] for r in records if r["type"] == kind] for kind in KINDS})
    return found


KINDS = ("run", "history", "preempting", "exit")


def _four_steps_and_a_fault(opened, picture):
    with opened as writer:
        writer.write(0, {"perf/compile_seconds": 1.5})
        for step in range(1, 5):
            writer.write(step, {"source/ce": np.float32(1 / step), "target/ce": float("nan")})
        writer.picture(4, "views/training", picture)
        raise RunError("no more")


@real
def test_what_wandb_records_offline_is_what_the_run_s_folder_holds(tmp_path, wandb, lines):
    """Of a run that failed at step 5 and goes on from step 2, whose evaluation comes again."""
    folder = folder_of(tmp_path / "compared" / "dacs" / "seed1")
    drawn = draw(folder, "training", 2)
    with pytest.raises(RunError):
        _four_steps_and_a_fault(lines.opened(folder, 0), draw(folder, "training", 4))
    first = by_step(folder)
    with lines.opened(folder, 2, unscored=True) as writer:
        writer.write(2, {"eval/student/mIoU": 0.25})
        writer.write(3, {"source/ce": 7.0, "alarm/share/car": "class car: gone"})
        writer.stopped()
    failed, stopped = recorded(folder)
    for before, found, code in ((first, failed, 1), (by_step(folder), stopped, 1)):
        (run,), (end,) = found["run"], found["exit"]
        assert (run["display_name"], run["run_group"]) == ("dacs/seed1", "compared/dacs")
        assert run["config"]["update"]["train"]["steps"] == CONFIG.train.steps
        assert run["run_id"] == json.loads((folder / trackers.ID).read_text())["id"]
        assert end["exit_code"] == code
        rows = history(record["item"] for record in found["history"])
        numbers = {
            step: {name: value for name, value in row.items() if not name.startswith("views/")}
            for step, row in rows.items()
        }
        assert {step: row for step, row in numbers.items() if row} == before
    assert not failed["preempting"]
    assert stopped["preempting"]
    media = sorted(folder.glob("wandb/offline-run-*/files/media/images/views/*.png"))
    steps = {path.name.split("_")[1] for path in media}
    assert steps == {"2", "4"}
    assert {path.read_bytes() for path in media if "_2_" in path.name} == {drawn.read_bytes()}
    assert [line.partition("; ")[0] for line in lines] == ["Weights & Biases: offline"] * 2
    assert f"wandb sync {folder}/wandb/offline-run-" in lines[0]


@real
def test_a_run_that_was_killed_goes_on_under_its_id_with_no_step_twice(
    tmp_path, wandb, lines, monkeypatch
):
    """Killed after step 4 with a checkpoint of step 2, whose evaluation was not made."""
    folder = folder_of(tmp_path / "run")
    with online(monkeypatch) as (address, runs):
        writer = lines.opened(folder, 0)
        for step in range(1, 5):
            writer.write(step, {"source/ce": float(step)})
        writer.close("failed")
        with lines.opened(folder, 2, unscored=True) as writer:
            writer.write(2, {"eval/student/mIoU": 0.25})
            for step in range(3, 7):
                writer.write(step, {"source/ce": float(step)})
        ((name, run),) = runs.items()
    assert lines == [f"Weights & Biases: {address}/me/mrm-jax/runs/{name}"] * 2
    expected = {step: {"source/ce": step} for step in range(1, 7)}
    expected[5] |= {"eval/student/mIoU": 0.25}  # it takes nothing more for a step that it has
    assert history(run["rows"]) == expected
    assert (run["name"], run["exit"]) == ("run", 0)


@real
def test_where_it_lets_nobody_in_the_run_is_recorded_here_and_the_user_told_how_to_send_it(
    tmp_path, wandb, lines, monkeypatch
):
    folder = folder_of(tmp_path / "my run")
    with online(monkeypatch, refuses=True) as (address, _), lines.opened(folder, 0) as writer:
        writer.write(1, {"source/ce": 0.5})
    (line,) = lines
    (place,) = folder.glob("wandb/offline-run-*")
    assert "401" in line
    assert f"wandb sync '{place}'" in line
    assert "WANDB_MODE=offline" in line
    assert "\n" not in line
    (found,) = recorded(folder)
    assert history(record["item"] for record in found["history"]) == {1: {"source/ce": 0.5}}


ASKED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_trackers import Lines
lines = Lines()
with lines.opened(Path({folder!r}), 0) as writer:
    writer.write(1, {{"source/ce": 0.5}})
print(len(lines), *lines)
"""


@real
def test_without_a_login_nobody_is_asked_on_a_terminal(tmp_path):
    pty = pytest.importorskip("pty", reason="needs a POSIX terminal")
    folder = folder_of(tmp_path / "run")
    code = ASKED.format(tests=str(Path(__file__).parent), folder=str(folder))
    ours, theirs = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    paths = [str(Path(__file__).parents[1]), *sys.path]
    found = subprocess.run(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=clean | {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        text=True,
        timeout=120,  # who asks waits for ever
        check=True,
    )
    os.close(theirs)
    os.close(ours)
    assert found.stdout.startswith("1 Weights & Biases takes nothing now (No API key")
    assert by_step(folder) == {1: {"source/ce": 0.5}}


class Double:
    """In the place of the package: keeps what it is given, or raises from `broken` on."""

    def __init__(self, broken=""):
        self.logged, self.begun, self.ended, self.broken = [], [], [], broken
        self.starting_step, self.offline, self.disabled, self.url = 0, False, False, "url"
        self.Settings = types.SimpleNamespace

    def _maybe(self, what):
        if what == self.broken:
            raise TimeoutError(f"{what} took\ntoo long")

    def init(self, **how):
        self.begun.append(how)
        self._maybe("init")
        self.dir = f"{how['dir']}/wandb/run-1/files"
        return self

    def setup(self, settings):
        return types.SimpleNamespace(settings=types.SimpleNamespace(project=None))

    def Image(self, path):  # noqa: N802 - the package's name
        return Path(path)

    def log(self, values, step):
        self._maybe("log")
        self.logged.append((step, values))

    def mark_preempting(self):
        self.ended.append("preempting")

    def finish(self, exit_code):
        self._maybe("finish")
        self.ended.append(exit_code)

    def teardown(self): ...


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_whatever_fails_there_is_told_once_and_metrics_are_whole(
    tmp_path, monkeypatch, lines, broken
):
    monkeypatch.setitem(sys.modules, "wandb", Double(broken))
    folder = folder_of(tmp_path / "run")
    with lines.opened(folder, 0) as writer:
        writer.write(1, {"source/ce": 0.5})
        writer.picture(1, "views/training", draw(folder, "training", 1))
        writer.write(2, {"source/ce": 0.25})
    assert by_step(folder) == {1: {"source/ce": 0.5}, 2: {"source/ce": 0.25}}
    *_, line = lines
    assert len(lines) == (1 if broken == "init" else 2)
    assert line.startswith(
        f"Weights & Biases: {broken} took too long. metrics.jsonl and views/ are"
    )
    sends = f"wandb sync {folder}/wandb/run-1" in line
    assert sends == (broken != "init")


@pytest.mark.parametrize(
    ("error", "ended"),
    [(RunError("no"), [1]), (KeyboardInterrupt(), [1]), (Stopped(), ["preempting", 1])],
    ids=lambda value: type(value).__name__,
)
def test_a_run_ends_there_as_it_ends_here(tmp_path, monkeypatch, lines, error, ended):
    double = Double()
    monkeypatch.setitem(sys.modules, "wandb", double)
    with pytest.raises(type(error)), lines.opened(folder_of(tmp_path / "run"), 0):
        raise error
    assert double.ended == ended


def test_only_host_0_shows_a_run(tmp_path, monkeypatch, lines):
    monkeypatch.setitem(sys.modules, "wandb", Double())
    how = {"say": lines.append, "warn": lines.append}
    monkeypatch.setattr(group, "is_main", lambda: False)
    assert trackers.tracker_of(CONFIG, tmp_path, **how) is TensorBoard
    plain = dataclasses.replace(
        CONFIG, train=dataclasses.replace(CONFIG.train, tracker="tensorboard")
    )
    monkeypatch.setattr(group, "is_main", lambda: True)
    assert trackers.tracker_of(plain, tmp_path, **how) is TensorBoard
    assert trackers.tracker_of(CONFIG, tmp_path, **how) is not TensorBoard


def test_seeds_of_an_arm_are_a_group(monkeypatch, tmp_path):
    assert trackers.names(Path("/runs/all/dacs_+_mrm/seed3")) == {
        "name": "dacs_+_mrm/seed3",
        "group": "all/dacs_+_mrm",
    }
    monkeypatch.chdir(tmp_path)
    assert trackers.names(Path("mine")) == {"name": "mine"}
    assert trackers.names(Path("dacs/seed0"))["group"] == f"{tmp_path.name}/dacs"


def test_links_in_a_run_s_folder_show_nothing_of_elsewhere_and_write_nothing_there(
    tmp_path, monkeypatch, lines
):
    monkeypatch.setitem(sys.modules, "wandb", double := Double())
    folder, other = folder_of(tmp_path / "run"), folder_of(tmp_path / "other")
    sheet(folder, "training", 1).symlink_to(draw(other, "training", 1))
    own = draw(folder, "training", 2)
    (folder / "wandb").symlink_to(other)
    lines.opened(folder, 3).close()
    assert double.logged == [(2, {"views/training": own})]
    assert not (folder / "wandb").is_symlink()


@pytest.mark.parametrize("text", ["", "[]", '{"id": 3}', '{"id": "../../elsewhere"}'])
def test_an_id_that_leads_elsewhere_or_is_damaged_is_made_anew(tmp_path, text):
    (tmp_path / trackers.ID).write_text(text)
    made = trackers.run_id(tmp_path)
    assert len(made) == 16
    assert trackers.run_id(tmp_path) == made


@pytest.mark.parametrize("verb", [["train"], ["ablate", "--arm=dacs", "--seeds=1"]])
@pytest.mark.parametrize("there", [None, types.ModuleType("wandb")], ids=["absent", "a folder"])
def test_without_the_package_a_run_says_so_before_it_begins(tmp_path, monkeypatch, verb, there):
    monkeypatch.setitem(sys.modules, "wandb", there)
    words = [*verb, "--config=tiny", "--config.train.tracker=wandb", f"--workdir={tmp_path / 'a'}"]
    with refused("config.train.tracker", "wandb", way_out="pip install 'wandb>="):
        main.run(words)
    assert not (tmp_path / "a").exists()
