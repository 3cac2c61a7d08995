"""Runs set beside each other: which are one config, how far apart, and where they part."""

import dataclasses
import itertools
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from refusals import refused

from mrm_jax import config, main
from mrm_jax.data import labels
from mrm_jax.report import compared, theme
from mrm_jax.report.charts import Curve, line_chart
from mrm_jax.report.html import report_page
from mrm_jax.report.record import read_record
from mrm_jax.report.several import compared_page

STEPS = (10, 20, 30)
ROAD = {  # IoU at STEPS by group and seed: apart at 10, mixed at 20, apart at 30
    "base": {0: (0.1, 0.5, 0.5), 1: (0.2, 0.6, 0.6), 2: (0.15, 0.4, 0.4)},
    "mrm": {0: (0.3, 0.5, 0.7), 2: (0.4, 0.7, 0.8)},
}
CAR = {  # apart from 20 on, below
    "base": {0: (0.5, 0.5, 0.5), 1: (0.5, 0.6, 0.5), 2: (0.5, 0.5, 0.6)},
    "mrm": {0: (0.5, 0.4, 0.3), 2: (0.5, 0.3, 0.2)},
}


def write_run(folder, seed, road, car, *, loss=1.0, steps=STEPS, **changes):
    folder.mkdir(parents=True)
    classes = labels.subset(("road", "car"))
    drawn = config.Domain(kind="drawn")
    run = config.Config(seed=seed, data=config.Data(classes=classes, evaluation=drawn), **changes)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(run)))
    lines = [{"step": 5, "total/loss": loss, "mixed/ce": math.nan, "perf/step_seconds": seed + 1}]
    for step, *iou in zip(steps, road, car, strict=True):
        lines.append({"step": step, "eval/student/mIoU": float(np.mean(iou))})
        lines[-1] |= {f"eval/student/IoU/{n}": v for n, v in zip(classes.names, iou, strict=True)}
        lines[-1] |= {"select/infomax": step / 100}
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


@pytest.fixture
def folders(tmp_path):
    made = []
    for name, seeds in ROAD.items():
        method = config.Method(mrm=config.MRM(enabled=name == "mrm"))
        for seed, road in seeds.items():
            # How a run is executed makes no other config; nor does a path that names the seed.
            train = config.Train(init_from=f"{tmp_path}/first/seed{seed}", log_every=seed + 1)
            folder = tmp_path / name / f"seed{seed}"
            how = {"method": method, "train": train}
            made.append(write_run(folder, seed, road, CAR[name][seed], loss=1 + seed, **how))
    return made


def test_runs_of_one_config_are_a_group_whatever_their_order(folders):
    found = compared.compared_runs([folders[2], *folders[3:], folders[0], folders[1], folders[0]])
    assert [(group.name, group.seeds) for group in found.groups] == [
        ("base", [0, 1, 2]),
        ("mrm", [0, 2]),
    ]
    assert found.step == 30
    assert found.options() == [("method.mrm.enabled", [False, True])]


def test_differences_are_those_of_the_same_seeds(folders):
    base, mrm = compared.compared_runs(folders).groups
    road = compared.difference(mrm, base, 30, "road")
    assert road.count == 2
    assert road.mean == pytest.approx(np.mean([0.7 - 0.5, 0.8 - 0.4]))
    alone = compared.Group("one", base.runs[1:2])  # seed 1 is not in mrm: means alone are left
    assert compared.difference(mrm, alone, 30, "road").mean == pytest.approx(0.75 - 0.6)


def test_a_group_parts_where_its_seeds_lie_apart_up_to_the_last(folders):
    base, mrm = compared.compared_runs(folders).groups
    found = compared.partings(mrm, base, ["road", "car"])
    assert found == [compared.Parting("car", 20, -1), compared.Parting("road", 30, 1)]
    one = [compared.Group(group.name, group.runs[:1]) for group in (mrm, base)]
    assert compared.partings(one[0], one[1], ["road", "car"]) == []


def test_chance_is_the_share_of_orders_in_which_groups_lie_apart(folders):
    base, mrm = compared.compared_runs(folders).groups
    places = list(itertools.combinations(range(5), 2))
    apart = [place for place in places if place in ((0, 1), (3, 4))]
    assert compared.by_chance(mrm, base) == pytest.approx(len(apart) / len(places))


def test_the_first_difference_is_of_what_is_computed(tmp_path):
    rows = [(0.1, 0.2, 0.3), (0.5, 0.5, 0.5)]
    one = read_record(write_run(tmp_path / "a", 0, *rows))
    same = read_record(write_run(tmp_path / "b", 7, *rows))  # its time differs, and its seed
    assert compared.first_difference(one, same) is None
    late = read_record(write_run(tmp_path / "c", 0, (0.1, 0.25, 0.3), rows[1]))
    assert compared.first_difference(late, one) == compared.Difference(
        20, "eval/student/mIoU", 0.375, 0.35
    )
    early = read_record(write_run(tmp_path / "d", 0, *rows, loss=2.0))
    assert compared.first_difference(early, one) == compared.Difference(5, "total/loss", 2.0, 1.0)


def test_a_band_reaches_from_the_lowest_to_the_highest_within_the_axis(folders):
    base, _ = compared.compared_runs(folders).groups
    means, band = base.series("eval/student/IoU/road")
    assert band[0] == (10, 0.1, 0.2)
    assert means[0] == (10, pytest.approx(0.15))
    svg = line_chart([Curve("base", means, "red", band=band)], percent=True)
    (path,) = re.findall(r'class="band" [^>]* d="M(.*?)Z"', svg)
    points = [tuple(map(float, pair.split())) for pair in path.split("L")]
    (top, bottom), xs = (max, min), [x for x, _ in points]
    assert len(points) == 2 * len(band)
    assert xs == [*sorted(xs[:3]), *sorted(xs[:3], reverse=True)]
    ys = [float(y) for y in re.findall(r'class="grid" d="M52 ([\d.]+)H', svg)]
    assert bottom(ys) <= bottom(y for _, y in points) <= top(y for _, y in points) <= top(ys)
    assert base.series("total/loss")[1] == [(5, 1.0, 3.0)]


class Tables(HTMLParser):
    """Of every table whether it lies in what scrolls; and the page's tags and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.scrolls, self.tags, self.words = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        classes = (dict(attrs).get("class") or "").split()
        if tag == "table":
            self.scrolls.append(any("scroll" in above for _, above in self.open))
        if tag in ("div", "details", "figure", "table", "main"):
            self.open.append((tag, classes))

    def handle_endtag(self, tag):
        if self.open and self.open[-1][0] == tag:
            self.open.pop()

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_the_page_says_all_of_it_and_its_tables_scroll(folders):
    found = Tables(compared_page(compared.compared_runs(folders)))
    assert "script" not in found.tags
    assert len(found.scrolls) == 5
    assert all(found.scrolls)
    assert (
        "mrm: not in mIoU; first car, from step 20, below; 2 classes in all, and 20%" in found.text
    )
    assert "mrm, seed 2 5 total/loss 3 1" in found.text
    assert "drawn data" in found.text
    assert "method.mrm.enabled false true" in found.text
    assert "+30.0" in found.text  # of road


def test_every_table_of_a_report_scrolls_and_single_charts_are_no_larger(folders):
    page = report_page(read_record(folders[0]))
    found = Tables(page)
    assert len(found.scrolls) >= 4
    assert all(found.scrolls)
    assert "Scores without labels" in found.text
    # auto-fit would stretch the only card of a grid over the whole page.
    assert "auto-fill,minmax(min(100%,420px),1fr)" in theme.CSS


def test_runs_without_a_common_step_still_have_curves(folders, tmp_path):
    other = write_run(tmp_path / "odd" / "run", 0, (0.1,), (0.2,), steps=(15,))
    found = Tables(compared_page(compared.compared_runs([folders[0], other])))
    assert "no step at which every run was scored" in found.text
    assert "mIoU of the student" in found.text


def test_runs_that_share_no_step_are_not_said_never_to_differ(folders, tmp_path):
    other = write_run(tmp_path / "odd" / "run", 0, (0.1,), (0.2,), steps=(15,))
    lines = other / "metrics.jsonl"
    lines.write_text(lines.read_text().replace('"step": 5', '"step": 6'))
    found = Tables(compared_page(compared.compared_runs([*folders[:3], other])))
    assert "run, seed 0 no step in common –" in found.text
    assert "run: there is no step at which it and base were scored." in found.text
    assert "by chance" not in found.text


def test_on_a_narrow_page_the_name_of_an_option_breaks_behind_its_dots_alone(folders):
    page = report_page(read_record(folders[0]))
    assert "<code>data.<wbr>classes.<wbr>names</code>" in page
    _, _, narrow = theme.CSS.partition("@media(max-width:640px)")
    assert "td:first-child{white-space:normal;overflow-wrap:normal}" in narrow


def test_the_command_writes_the_page_and_refuses_what_is_no_comparison(
    folders, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main.run(["report", "--compare", *map(str, folders)]) == 0
    assert (tmp_path / "comparison.html").read_text().startswith("<!doctype html>")
    assert "5 runs of 2 configs: base (3), mrm (2)" in capsys.readouterr().out
    with refused("--compare", folders[0], way_out="another"):
        main.run(["report", "--compare", str(folders[0])])
    with refused("--compare", tmp_path / "base"):
        main.run(["report", "--compare", str(folders[0]), str(tmp_path / "base")])
    with refused("--to", way_out="--compare"):
        main.run(["report", "--workdir", str(folders[0]), "--to", "x.html"])
    with refused("--to", tmp_path, way_out="page.html"):
        main.run(["report", "--compare", *map(str, folders), "--to", str(tmp_path)])
