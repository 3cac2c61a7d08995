"""Tables of a comparison, from the files of runs that were never trained."""

import json
import math

import numpy as np
import pytest
from refusals import refused
from scipy import stats

from mrm_jax.arms import Arm
from mrm_jax.report import ablation
from mrm_jax.report.comparison import (
    collect_runs,
    estimate,
    picked,
    rank_correlation,
    read_comparison,
    seeds_for,
)

STEPS = 40
SCORES = {"base": {0: 0.41, 1: 0.46, 2: 0.43}, "new one": {0: 0.45, 2: 0.44, 7: 0.52}}
CLASSES = {"road": 0.1, "car": -0.1}  # IoU above the mean


def write_run(
    folder, score, *, last=STEPS, sentence="whole pictures", commit="abc", drawn="evaluation"
):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"train": {"steps": STEPS}, "data": {drawn: {"kind": "drawn"}}})
    )
    (folder / "environment.json").write_text(json.dumps({"commit": commit}))
    (folder / "evaluation.json").write_text(json.dumps({"protocol": {"sentence": sentence}}))
    lines = []
    for step, extra in ((20, 0.04), (last, 0.0)):
        means = {"student": score + extra, "teacher": score + extra / 2}
        line = {"step": step, "perf/steps_per_second": 2.0, "select/infomax": 0.5 + extra}
        line["select/agreement"] = math.nan if step == 20 else 0.2
        for network, mean in means.items():
            line[f"eval/{network}/mIoU"] = mean
            line[f"eval/{network}/ECE"] = mean / 4
            line |= {f"eval/{network}/IoU/{name}": mean + d for name, d in CLASSES.items()}
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def workdir(tmp_path):
    arms = [Arm("base", "dacs"), Arm("new one", "dacs,mrm=true", against="base")]
    (tmp_path / "arms.json").write_text(json.dumps([arm._asdict() for arm in arms]))
    for arm in arms:
        for seed, score in SCORES[arm.name].items():
            write_run(tmp_path / arm.folder / f"seed{seed}", score)
    return tmp_path


def test_means_have_students_intervals_and_differences_are_of_the_same_seeds(workdir):
    base, new = collect_runs(workdir).outcomes
    values = np.array(list(SCORES["new one"].values()))
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert new.student.mean == pytest.approx(values.mean())
    assert new.student.half == pytest.approx((high - low) / 2)
    # Seeds 0 and 2 alone are in both: 4 and 1 points, of which t(1) makes +2.5 +- 19.06.
    assert new.difference is not None
    assert new.difference.count == 2
    assert new.difference.mean == pytest.approx(0.025)
    assert new.difference.half == pytest.approx(12.7062 * 0.015, rel=1e-5)
    assert base.difference is None


def test_one_value_has_no_interval_and_none_no_mean():
    assert estimate([0.5]).text() == "50.0"
    assert estimate([math.nan]).text() == "–"
    assert estimate([0.5, math.nan, 0.7]).count == 2


def test_the_seeds_that_a_difference_needs_give_it_that_interval():
    rng = np.random.default_rng(0)
    values = list(rng.normal(0.02, 0.012, 6))
    count = seeds_for(0.005, estimate(values))
    assert count is not None
    halves = [
        stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)
        for n in (count - 1, count)
    ]
    assert halves[1] <= 0.005 < halves[0]
    assert seeds_for(0.005, estimate([0.3])) is None
    assert seeds_for(0.005, estimate([0.3, 0.3])) == 2


def test_what_is_picked_without_labels_is_the_step_of_the_highest_score(workdir):
    run = collect_runs(workdir).outcomes[0].runs[0]
    assert run.best == picked(run, "infomax") == pytest.approx(0.45)
    assert run.best_step == 20
    assert picked(run, "agreement") == pytest.approx(0.41)  # a score that is no number picks none
    assert math.isnan(picked(run, "masked_agreement"))
    assert rank_correlation(run, "infomax") == pytest.approx(1.0)
    assert math.isnan(rank_correlation(run, "agreement"))


def test_tables_say_what_the_numbers_are(workdir):
    found = collect_runs(workdir)
    assert ablation.scores_table(found)[1][1][:7] == [
        *("new one", "3", "47.0 ± 10.8", "+2.5 ± 19.1", "base", "72", "47.0 ± 10.8"),
    ]
    assert ablation.seeds_table(found) == (
        ["arm", "seed 0", "seed 1", "seed 2", "seed 7"],
        [["base", "41.0", "46.0", "43.0", "–"], ["new one", "45.0", "–", "44.0", "52.0"]],
    )
    assert ablation.arm_class_table(found)[1][0] == ["base", "53.3 ± 6.3", "33.3 ± 6.3"]
    text = ablation.markdown(found)
    assert "Drawn data" in text
    assert "whole pictures" in text
    assert "Left out" not in text


def test_the_calibration_error_is_that_of_the_last_step(workdir):
    assert ablation.calibration_table(collect_runs(workdir))[1] == [
        ["base", "10.8 ± 1.6", "10.8 ± 1.6"],  # a fourth of 43.3 ± 6.3
        ["new one", "11.8 ± 2.7", "11.8 ± 2.7"],
    ]


def test_drawn_pictures_that_are_not_scored_on_are_told_apart(tmp_path):
    (tmp_path / "arms.json").write_text(json.dumps([Arm("base")._asdict()]))
    write_run(tmp_path / "base" / "seed0", 0.4, drawn="source")
    found = collect_runs(tmp_path)
    assert "Drawn data: source. The pictures scored on are not drawn." in ablation.markdown(found)
    assert "drawn source:" in ablation.plot(found)


def test_runs_under_way_and_foreign_folders_are_left_out(workdir):
    write_run(workdir / "base" / "seed5", 0.9, last=30)
    write_run(workdir / "base" / "seed0.bak", 0.9)
    found = collect_runs(workdir)
    assert [run.seed for run in found.outcomes[0].runs] == [0, 1, 2]
    assert "Left out: 1 begun but unfinished" in ablation.markdown(found)


def test_arms_that_are_scored_otherwise_are_told_apart(workdir):
    write_run(workdir / "new_one" / "seed9", 0.5, sentence="windows")
    text = ablation.markdown(collect_runs(workdir))
    assert "Scored (base, new one): whole pictures." in text
    assert "Scored (new one): windows." in text


def test_the_plot_holds_whole_intervals(workdir):
    found = collect_runs(workdir)
    svg = ablation.plot(found)
    xs = [float(word) for part in svg.split('d="M')[1:] for word in [part.split(" ")[0]]]
    assert min(xs) >= 0
    assert max(xs) <= ablation._WIDTH
    ends = [end for outcome in found.outcomes for end in ablation._ends(outcome)]
    marks = [float(part.split("<")[0]) for part in svg.split('text-anchor="middle">')[1:]]
    assert marks[0] <= min(ends)
    assert max(ends) <= marks[-1]


def test_files_are_written_whole_and_numbers_that_do_not_exist_are_null(workdir):
    paths = ablation.write_ablation(workdir)
    assert [path.suffix for path in paths] == [".json", ".md", ".svg", ".html"]
    assert not [path for path in workdir.iterdir() if path.name.startswith(".ablation")]
    found = json.loads((workdir / "ablation.json").read_text())
    assert found["arms"][0]["runs"][0]["scores"]["20"]["select/agreement"] is None
    assert found["drawn_data"] == ["evaluation"]


def test_tables_are_made_anew_from_the_numbers_alone(workdir, tmp_path_factory):
    written = {path.suffix: path.read_text() for path in ablation.write_ablation(workdir)}
    folder = tmp_path_factory.mktemp("stored") / workdir.name
    folder.mkdir()
    stored = folder / "ablation.json"
    stored.write_text(written[".json"])
    again = {path.suffix: path.read_text() for path in ablation.write_ablation(folder, stored)}
    assert again == written


def test_runs_of_an_earlier_comparison_are_added_and_never_replace_a_run(workdir, tmp_path):
    ablation.write_ablation(workdir)
    later = tmp_path / "later"
    write_run(later / "new_one" / "seed2", 0.9)
    write_run(later / "new_one" / "seed3", 0.8)
    arms = [Arm("new one", "dacs,mrm=true", against="base")]
    (later / "arms.json").write_text(json.dumps([arm._asdict() for arm in arms]))
    found = collect_runs(later, read_comparison(workdir / "ablation.json"))
    table = {o.arm.name: {run.seed: run.student for run in o.runs} for o in found.outcomes}
    assert table == {"new one": {0: 0.45, 2: 0.9, 3: 0.8, 7: 0.52}, "base": SCORES["base"]}
    assert found.outcomes[0].difference is not None
    assert found.outcomes[0].difference.count == 2  # seeds 0 and 2, which base has


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '{"arms": [{"name": "a"}]}', '{"arms": [], "x": 1}'),
        '{"arms": [{"name": "a", "text": "", "flags": [], "against": "", "runs": ["x"]}]}',
    ],
)
def test_a_file_that_is_no_comparison_is_named(tmp_path, text):
    (tmp_path / "ablation.json").write_text(text)
    with refused(str(tmp_path / "ablation.json")):
        read_comparison(tmp_path / "ablation.json")


def test_without_scores_there_is_no_plot(tmp_path):
    (tmp_path / "arms.json").write_text(json.dumps([Arm("base")._asdict()]))
    text = ablation.markdown(collect_runs(tmp_path))
    assert ablation.plot(collect_runs(tmp_path)) == ""
    assert "svg" not in text
