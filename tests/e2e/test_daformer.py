"""DAFormer without downloaded weights: its frozen encoder is that of a run on the source alone."""

import json
import shutil
from pathlib import Path

import pytest

from mrm_jax import main

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny.py"
pytestmark = pytest.mark.e2e


# Two steps of an encoder of one block, scored on nothing.
SHORT = {
    "train.steps": 2,
    "train.checkpoint_every": 1,
    "train.panels_every": 9,
    "data.evaluation.kind": "folder",
    "model.encoder.dims": (8,),
    "model.encoder.depths": (1,),
    "model.encoder.heads": (1,),
    "model.encoder.sr_ratios": (4,),
    "model.encoder.strides": (4,),
    "model.encoder.mlp_ratios": (2,),
}


def _train(recipe, workdir, *words):
    short = [f"--config.{name}={value}" for name, value in SHORT.items()]
    return main.run([f"--config={TINY}:{recipe}", f"--workdir={workdir}", *short, *words])


def test_the_frozen_encoder_of_daformer_is_that_of_a_run_and_stays_with_the_resumed_one(
    tmp_path, capsys
):
    base, run = tmp_path / "base", tmp_path / "run"
    assert _train("source_only", base) == 0
    distance = "--config.method.feature_distance"
    words = [
        *(f"{distance}.source=checkpoint", f"{distance}.checkpoint={base}"),
        "--config.data.rare_class.min_share=0.006",  # crops of 32 x 64 px
    ]
    assert _train("daformer", run, *words) == 0
    lines = (run / "metrics.jsonl").read_text().splitlines()
    shutil.rmtree(base)
    shutil.rmtree(run / "checkpoints" / "2")
    assert _train("daformer", run, *words) == 0
    assert "goes on from step 1" in capsys.readouterr().out
    again = (run / "metrics.jsonl").read_text().splitlines()
    found = [
        [value for line in text if (value := json.loads(line).get("source/feature_distance"))]
        for text in (lines, again)
    ]
    assert len(found[0]) == 2
    assert found[0] == found[1]


def test_without_a_frozen_encoder_daformer_is_refused_with_one_line_that_names_the_way_out(
    tmp_path, refusal
):
    words = [f"--config={TINY}:daformer", f"--workdir={tmp_path / 'run'}"]
    line = refusal(words)
    assert "config.method.feature_distance.source=checkpoint and .checkpoint=RUN" in line
