"""The report needs nothing but itself, shows what a run's files say and bears what they lack."""

import dataclasses
import functools
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from refusals import refused

from mrm_jax import config, main
from mrm_jax.data import labels
from mrm_jax.errors import RunError
from mrm_jax.report import charts, record
from mrm_jax.report.html import write_report
from mrm_jax.report.panels import save_panels
from mrm_jax.runs.workdir import environment

COMMAND = "python -m mrm_jax.main --workdir '<script>alert(1)</script>' --config a&b.py"
FILES = ("config.json", "environment.json", "metrics.jsonl", "evaluation.json", "views")


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(path.read_text("utf-8").replace("<wbr>", ""))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def iou(network: str, step: int, place: int) -> float:
    """A different IoU for every network, step and class; the last step is below the one before."""
    return (step if step < 6 else 3.5) * 0.1 + place * 0.01 + (0.003 if network == "teacher" else 0)


def scores(network: str, step: int) -> dict[str, float]:
    named = {n: iou(network, step, i) for i, n in enumerate(labels.DRAWN.names)}
    return {
        f"eval/{network}/mIoU": float(np.mean(list(named.values()))),
        f"eval/{network}/pixel_accuracy": 0.625,
        **{f"eval/{network}/IoU/{name}": value for name, value in named.items()},
    }


@pytest.fixture
def workdir(tmp_path) -> Path:
    """A finished run of six steps, as training leaves it."""
    folder = tmp_path / "some_run"
    folder.mkdir()
    drawn = config.Domain(kind="drawn")
    run = config.Config(
        seed=41,
        data=config.Data(classes=labels.DRAWN, source=drawn, target=drawn, evaluation=drawn),
        train=config.Train(steps=6),
    )
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(run)))
    facts = {"command": COMMAND, "commit": "0123abcd", "versions": {"jax": "0.10.2"}}
    (folder / "environment.json").write_text(json.dumps(facts))
    lines = []
    for step in range(1, 7):
        loss = None if step == 3 else 1.0 / step
        lines.append({"step": step, "source/ce": loss, "total/loss": loss, "learning_rate": 1e-4})
        lines.append({"step": step, "teacher/confident_share": 0.1 * step, "perf/step_seconds": 2})
        if step % 2 == 0:
            lines.append({"step": step, **scores("student", step), **scores("teacher", step)})
    lines.append({"step": 5, "alarm/share/car": "class car: its share fell <b>far</b>."})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    count = len(labels.DRAWN.names)
    first = {
        "protocol": {"network": "student", "sentence": "student on 600 pictures, no flips"},
        "mIoU": 0.4,
        "confusion": np.eye(count, dtype=int).tolist(),
    }
    document = {"step": 6, **first, "teacher": {**first, "confusion": None}}
    (folder / "evaluation.json").write_text(json.dumps(document))
    picture = {"source_image": np.zeros((1, 32, 32, 3), np.uint8)}
    for step in (2, 4, 6):
        save_panels(picture, labels.DRAWN, folder / f"views/training_{step:07d}.png", title="t")
    return folder


def test_the_report_refers_to_nothing_outside_itself(workdir):
    path = write_report(workdir)
    page = Page(path)
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"} == set()
    places = ("src", "href", "data", "action", "poster", "srcset")
    found = [
        value for _, attributes in page.tags for name in places if (value := attributes.get(name))
    ]
    assert len(found) == 2
    assert all(value.startswith("data:image/png;base64,") for value in found)
    raw = path.read_text("utf-8")
    assert not re.search(r"\b(https?|ftp|file|data:text)://", raw)
    assert "@import" not in raw
    assert "url(" not in raw


@pytest.mark.parametrize("network", ["student", "teacher"])
@pytest.mark.parametrize("step", [4, 6], ids=["best", "final"])
def test_the_report_shows_every_iou_of_the_final_and_of_the_best_step(workdir, network, step):
    text = Page(write_report(workdir)).text
    for place, name in enumerate(labels.DRAWN.names):
        assert name in text
        assert f" {100 * iou(network, step, place):.1f} " in text


def test_the_headline_is_the_student_at_the_final_step_with_its_protocol(workdir):
    page = Page(write_report(workdir))
    mean = f"{100 * scores('student', 6)['eval/student/mIoU']:.1f}"
    best = f"{100 * scores('student', 4)['eval/student/mIoU']:.1f} %"
    big = page.words.index(mean)
    assert "".join(page.words[big : big + 3]).startswith(f"{mean}% mIoU")
    assert "student, final step (6)" in page.text
    assert "student on 600 pictures, no flips" in page.text
    assert best in page.text
    assert "best student, step 4" in page.text
    assert page.text.index(mean) < page.text.index(best)


def test_of_a_single_evaluation_none_is_called_the_best(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "once")
    path = tmp_path / "once" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(v) + "\n" for v in lines if v["step"] in (1, 6)))
    text = Page(write_report(tmp_path / "once")).text
    assert "student, final step (6)" in text
    assert "best student" not in text


def table(page: str, title: str) -> list[list[str]]:
    """Cells of the first table below a heading, row by row."""
    rows = page.split(f"<h2>{title}")[1].split("</table>")[0].split("<tr>")[1:]
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]


def scored(workdir: Path, picks: dict[int, float]) -> str:
    """The report of the run with scores without labels at its evaluations, and its pick rule."""
    stored = json.loads((workdir / "config.json").read_text())
    stored["evaluation"]["pick_by"] = "agreement"
    (workdir / "config.json").write_text(json.dumps(stored))
    with open(workdir / "metrics.jsonl", "a") as file:
        for step, value in picks.items():
            line = {"select/infomax": value / 8, "select/agreement": value}
            file.write(json.dumps({"step": step, **line}) + "\n")
    return write_report(workdir).read_text("utf-8")


def test_the_last_the_picked_and_the_best_checkpoint_stand_side_by_side(workdir):
    page = scored(workdir, {2: 0.75, 4: 0.25, 6: 0.5})
    head, *rows = table(page, "Which checkpoint")
    assert head[:4] == ["checkpoint", "step", "student mIoU, %", "teacher mIoU, %"]
    assert head[4:] == ["infomax", "agreement"]
    means = {
        step: [f"{100 * scores(n, step)[f'eval/{n}/mIoU']:.1f}" for n in ("student", "teacher")]
        for step in (2, 4, 6)
    }
    assert rows[0] == ["last evaluated", "6", *means[6], "0.0625", "0.5"]
    picked = "picked without labels, by agreement"
    assert rows[1] == [picked, "2", *means[2], "0.09375", "0.75"]
    assert rows[2] == [
        "best by labels (chosen by the labels it is scored on)",
        "4",
        *means[4],
        "0.03125",
        "0.25",
    ]
    assert ">drawn data</span></h2>" in page.split("<h2>Which checkpoint")[1][:120]


def test_a_run_without_labels_has_a_picked_checkpoint_and_no_best_one(workdir):
    kept = [
        line
        for line in (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
        if "eval/" not in line
    ]
    (workdir / "metrics.jsonl").write_text("".join(kept))
    _, last, picked, best = table(scored(workdir, {2: 0.75, 6: 0.5}), "Which checkpoint")
    assert (last[1:4], picked[1:4]) == (["6", "–", "–"], ["2", "–", "–"])
    assert best[1:] == ["–"] * 5


def test_a_run_of_before_scores_without_labels_has_no_such_table(workdir):
    stored = json.loads((workdir / "config.json").read_text())
    del stored["evaluation"]["pick_by"], stored["evaluation"]["selection_pictures"]
    (workdir / "config.json").write_text(json.dumps(stored))
    text = Page(write_report(workdir)).text
    assert "Which checkpoint" not in text
    assert "best student, step 4" in text


def test_scores_of_another_step_do_not_lend_their_protocol(workdir):
    document = json.loads((workdir / "evaluation.json").read_text())
    (workdir / "evaluation.json").write_text(json.dumps({**document, "step": 4}))
    headline = Page(write_report(workdir)).text.split("Command")[0]
    assert "student on 600 pictures" not in headline
    assert "600 drawn scenes (rendered, train), whole pictures" in headline


def test_text_from_the_run_is_escaped(workdir):
    path = write_report(workdir)
    page = Page(path)
    assert COMMAND in page.text
    assert "<script" not in path.read_text("utf-8")
    assert "class car: its share fell <b>far</b>." in page.text


def test_the_command_comes_with_the_commit_that_a_run_records(workdir):
    assert environment().keys() >= {"command", "commit"}
    assert "run this at commit 0123abcd with" in Page(write_report(workdir)).text


def test_every_figure_of_drawn_data_says_so(workdir):
    page = Page(write_report(workdir))
    figures = [attributes for tag, attributes in page.tags if tag == "figure"]
    marks = [attributes for tag, attributes in page.tags if attributes.get("class") == "mark"]
    # The learning rate comes from no picture; the headline and the table are no <figure>.
    assert len(figures) >= 6
    assert len(marks) == len(figures) - 1 + 2


def test_a_run_on_folders_is_not_called_drawn(workdir):
    stored = json.loads((workdir / "config.json").read_text())
    for domain in ("source", "target", "evaluation"):
        stored["data"][domain]["kind"] = "folder"
    (workdir / "config.json").write_text(json.dumps(stored))
    assert "drawn data" not in Page(write_report(workdir)).text


def test_pictures_are_the_first_and_the_last_of_their_kind(workdir):
    page = Page(write_report(workdir))
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [p["alt"] for p in pictures] == ["training, step 2", "training, step 6"]


def test_options_that_differ_come_with_their_default(workdir):
    text = Page(write_report(workdir)).text
    assert "train.steps 6 40000 Optimiser steps." in text
    assert "seed 41 0 Seed of parameters" in text


@pytest.mark.parametrize("missing", [*FILES, "all"])
def test_a_report_is_written_without(workdir, missing):
    for name in FILES if missing == "all" else [missing]:
        place = workdir / name
        if place.is_dir():
            for picture in place.iterdir():
                picture.unlink()
        else:
            place.unlink()
    page = Page(write_report(workdir))
    assert "some_run" in page.text
    assert page.tags[-1][0] == "footer"
    if missing in ("all", "metrics.jsonl"):
        assert "No evaluation has been written yet." in page.text


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "\x00\xff"])
def test_a_report_is_written_with_damaged_files(workdir, content):
    for name in FILES[:4]:
        (workdir / name).write_bytes(content.encode("latin-1"))
    assert "some_run" in Page(write_report(workdir)).text


def test_a_torn_last_line_is_counted_and_the_others_are_read(workdir):
    whole = Page(write_report(workdir)).text
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "source/ce": 0.')
    torn = Page(write_report(workdir)).text
    assert torn == whole + " 1 line of metrics.jsonl could not be read and left out."


def test_a_run_stopped_early_says_so(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    (workdir / "metrics.jsonl").write_text("\n".join(lines[:7]) + "\n")
    text = Page(write_report(workdir)).text
    assert "stopped at step 3 of 6" in text
    assert "student, last evaluation (2)" in text


def test_null_and_nan_break_a_curve_and_nothing_else(workdir):
    run = record.read_record(workdir)
    losses = run.series("source/ce")
    assert [math.isnan(value) for _, value in losses] == [False, False, True, False, False, False]
    svg = charts.line_chart([charts.Curve("loss", losses, "red")])
    assert svg.count("M") - svg.count('class="grid"') == 2  # two pieces of one curve
    assert "nan" not in svg
    assert charts.line_chart([charts.Curve("loss", [(1, math.nan)], "red")]) == ""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.03, 0.071), (5, 5), (-3, 12345), (0, 3e-7)])
def test_ticks_enclose_the_data_in_even_steps(low, high):
    ticks = charts.ticks(low, high, 5)
    assert ticks[0] <= low + 1e-9 * abs(low)
    assert ticks[-1] >= high * (1 - 1e-9)
    assert 2 <= len(ticks) <= 9
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_the_report_verb_writes_the_file_and_refuses_a_folder_that_is_not_there(workdir, capsys):
    assert main.run(["report", "--workdir", str(workdir)]) == 0
    assert (workdir / "report.html").is_file()
    assert str(workdir / "report.html") in capsys.readouterr().out
    with refused("--workdir", workdir / "nothing"):
        main.run(["report", "--workdir", str(workdir / "nothing")])


@pytest.mark.parametrize("value", [None, True, 10**400, "text", [[1]], {"a": [None]}])
@pytest.mark.parametrize("place", ["seed", "data", "data.classes.names", "data.classes.colours"])
def test_a_record_of_another_type_is_left_out_or_named_in_one_line(workdir, place, value):
    stored = json.loads((workdir / "config.json").read_text())
    *groups, name = place.split(".")
    functools.reduce(dict.__getitem__, groups, stored)[name] = value
    (workdir / "config.json").write_text(json.dumps(stored))
    with open(workdir / "metrics.jsonl", "a") as file:
        odd = {"eval/student/mIoU": value, "select/infomax": value, "alarm/x": value}
        file.write(json.dumps({"step": 7, **odd}) + "\n" + json.dumps({"step": value}) + "\n")
        file.write('{"step": ' + "[" * 100_000 + "\n")
    try:
        said = Page(write_report(workdir)).text
    except RunError as error:
        said = str(error).partition("holds a value that no run writes")[0]
    assert "some_run" in said
    assert "\n" not in said


def test_a_confusion_of_texts_names_its_file(workdir):
    document = json.loads((workdir / "evaluation.json").read_text())
    document["confusion"][0] = ["a"] * len(labels.DRAWN.names)
    (workdir / "evaluation.json").write_text(json.dumps(document))
    with refused(workdir / "evaluation.json", kind=RunError, way_out="move it away"):
        write_report(workdir)


def test_a_folder_that_cannot_be_written_or_is_no_run_is_one_line(workdir, tmp_path):
    (workdir / "report.html").mkdir()
    with pytest.raises(RunError, match=r"report\.html cannot be written: Is a directory"):
        main.run(["report", "--workdir", str(workdir)])
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"architectures": ["Segformer"]}')
    with refused("--workdir", other):
        main.run(["report", "--workdir", str(other)])
    assert [p.name for p in other.iterdir()] == ["config.json"]
