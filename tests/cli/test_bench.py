"""`bench` as a user calls it: one object a line, and numbers that can be true."""

import contextlib
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mrm_jax.command import load_config
from mrm_jax.errors import UsageError
from mrm_jax.evaluation import inference
from mrm_jax.machine.bench import works
from mrm_jax.main import run

TINY = ["--config", str(Path(__file__).parents[2] / "configs" / "tiny.py")]
KEYS = {
    *("device", "what", "seconds", "compile_seconds", "images_per_second"),
    *("flops", "bytes_accessed", "peak_bytes", "products_seconds"),
}


@pytest.fixture(scope="module")
def lines():
    """What `bench --what all --json` writes to stdout, line by line."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run(["bench", *TINY, "--what", "all", "--repeats", "2", "--json"]) == 0
    return out.getvalue().splitlines()


@pytest.fixture(scope="module")
def reports(lines):
    """Of everything measured, by name."""
    found = [json.loads(line) for line in lines]
    return {report["what"]: report for report in found}


def test_stdout_holds_one_object_for_each_thing_measured_and_nothing_else(lines, reports):
    assert len(lines) == 4
    assert list(reports) == ["inference", "forward", "backward", "step"]
    assert all(set(report) == KEYS for report in reports.values())


def test_every_number_is_finite_and_positive(reports):
    for report in reports.values():
        seconds = report["seconds"]
        assert set(seconds) == {"median", "min", "max", "count"}
        assert seconds["count"] == 2
        assert seconds["min"] <= seconds["median"] <= seconds["max"]
        # The config's batch of 2 source pictures, or one that is predicted, at the median time.
        pictures = 1 if report["what"] == "inference" else 2
        assert report["images_per_second"] == pytest.approx(pictures / seconds["median"])
        numbers = [
            *seconds.values(),
            *(report[key] for key in KEYS - {"device", "what", "seconds"}),
        ]
        assert all(math.isfinite(number) and number > 0 for number in numbers)


def test_a_gradient_costs_more_than_a_forward_and_a_step_more_than_a_gradient(reports):
    flops = [reports[what]["flops"] for what in ("forward", "backward", "step")]
    assert 1.5 * reports["inference"]["flops"] < flops[0]  # one picture, the other two
    # Matrix products have two products in their gradient: about 3 times the forward in all.
    assert 2 * flops[0] < flops[1] < flops[2]


def test_a_step_with_the_feature_distance_needs_no_file(capsys):
    config = [f"{TINY[1]}:daformer", "--config.model.encoder.weights=never_read.pth"]
    enough = "--config.data.rare_class.min_share=0.006"
    assert run(["bench", "--config", *config, enough, "--repeats", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["what"] == "step"


def test_inference_is_one_prediction_of_a_whole_picture_with_hrda_too(monkeypatch):
    config = load_config([f"--config={TINY[1]}:hrda"], {"model.encoder.weights": "any"})
    protocol = replace(config.evaluation, mode="slide", window=(16, 16), stride=(8, 8), flip=True)
    given, real = [], inference.maps

    def maps(module, variables, image, **how):
        given.append(image.shape)
        return real(module, variables, image, **how)

    maps.trace = real.trace
    monkeypatch.setattr(inference, "maps", maps)
    call = works(replace(config, evaluation=protocol), ["inference"])[0].make()
    ids, confidence = call.run()
    # Not in windows and not mirrored, whatever the protocol of evaluation.
    assert given == [(1, *config.data.crop, 3)]
    assert ids.shape == confidence.shape == (1, *config.data.crop)
    assert ids.dtype == "uint8"
    assert len(np.unique(ids)) > 1
    assert 1 / 17 < confidence.min() <= confidence.max() <= 1


def test_for_people_a_report_is_two_lines(capsys):
    assert run(["bench", *TINY, "--what", "forward", "--repeats", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("forward on ")
    assert "images/s" in out
    assert "peak memory" in out
    assert out.count("\n") == 2
    assert "compiling forward" in err


@pytest.mark.parametrize(
    ("words", "says"), [([], "needs a config"), ([*TINY, "--repeats", "0"], "--repeats is 0")]
)
def test_a_command_that_cannot_be_meant_is_refused(words, says):
    with pytest.raises(UsageError, match=says):
        run(["bench", *words])


def test_ways_of_reading_are_compared_with_the_published_one(capsys, monkeypatch):
    from mrm_jax.machine import throughput

    small = tuple(
        replace(case, size=(256, 512), box=(128 * k, 64 * k), crop=(40, 50))
        for case, k in zip(throughput.CASES, (2, 8, 2, 4), strict=True)
    )
    monkeypatch.setattr(throughput, "CASES", small)
    stored, real = {}, throughput.prepare.prepare

    def prepare(data_set, raw, to, options, **rest):
        stored[to.name] = options.resize
        return real(data_set, raw, to, options, **rest)

    monkeypatch.setattr(throughput.prepare, "prepare", prepare)
    assert run(["bench", "--data", "--repeats", "2", "--pictures", "2", "--json"]) == 0
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ways = ["published", "folder", "prepared, png", "prepared, jpeg95"]
    assert [report["way"] for report in reports] == ways * len(small)
    for report in reports:
        assert report["case"].endswith("drawn data")
        assert report["images_per_second"] == 1 / report["seconds"]["median"]
        assert report["ratio"] > 0
        lossy = report["way"] == "prepared, jpeg95"
        assert ("pixels" in report) == lossy
        assert not lossy or 20 < report["pixels"]["psnr"] < 60
    # What is trained at more than its size is kept at it, unless parts of it can be decoded.
    assert stored["gta_1024_png"] == "native"
    assert stored["gta_1024_jpeg95"] == (1024, 512)
    assert stored["gta_256_png"] == (256, 128)
