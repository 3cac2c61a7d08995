"""`export`: what it writes does, in another process, what the network does here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from refusals import refused

import mrm_jax
from mrm_jax.convert.reader import read_weights
from mrm_jax.errors import RunError
from mrm_jax.export import check, formats
from mrm_jax.export.card import Told, model_card
from mrm_jax.export.formats import FORMATS
from mrm_jax.export.program import plain, probabilities
from mrm_jax.main import run
from mrm_jax.runs.checkpoint import Checkpoints
from mrm_jax.train.state import build_networks, init_state

SIZE = (32, 48)


def export(source: Path, form: str, to: Path, *words: str) -> int:
    size = [] if "--size" in words else ["--size", *map(str, SIZE)]
    where = ["--checkpoint", str(source), "--format", form, "--to", str(to)]
    return run(["export", *where, *size, *words])


def pictures(count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, *size, 3), np.uint8)


def elsewhere(folder: Path, given: np.ndarray, tmp_path: Path, *, without: str = "") -> tuple:
    """What run.py of a folder makes of pictures in a process that cannot import `without`."""
    code = f"""
import runpy, sys
import numpy as np
sys.modules.update(dict.fromkeys({without.split()!r}))
ids, found = runpy.run_path(sys.argv[1])["segment"](np.load(sys.argv[2]))
np.savez(sys.argv[3], ids=np.asarray(ids), found=np.asarray(found))
"""
    np.save(tmp_path / "given.npy", given)
    words = [str(folder / "run.py"), str(tmp_path / "given.npy"), str(tmp_path / "found.npz")]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code, *words], check=True, env=environment)
    with np.load(tmp_path / "found.npz") as arrays:
        return arrays["ids"], arrays["found"]


@pytest.fixture(scope="module")
def stablehlo(workdir, tmp_path_factory):
    """The teacher as StableHLO, of a run that has a Rebuilder."""
    to = tmp_path_factory.mktemp("export") / "street net"
    assert export(workdir, "stablehlo", to, "--network", "teacher", "--no_check") == 0
    return to


@pytest.fixture(scope="module")
def segformer(workdir, tmp_path_factory):
    """A run of a network that transformers has, with a Rebuilder, from weights with a licence."""
    config = mrm_jax.load(workdir).config
    encoder = replace(
        config.model.encoder,
        dims=(8, 8, 16, 16),
        depths=(1, 2, 1, 1),
        heads=(1, 1, 2, 2),
        sr_ratios=(2, 1, 1, 1),
        strides=(4, 2, 1, 1),
        mlp_ratios=(2, 1, 1, 1),
    )
    decoder = replace(config.model.decoder, kind="segformer", channels=8)
    config = replace(config, model=replace(config.model, encoder=encoder, decoder=decoder))
    shapes = jax.eval_shape(partial(init_state, config, build_networks(config)), jax.random.key(0))
    rng = np.random.default_rng(2)

    def some(leaf):
        if leaf.dtype != np.float32:
            return np.zeros(leaf.shape, leaf.dtype)
        return rng.normal(0.1, 0.5, leaf.shape).astype(np.float32)

    state = jax.tree.map(some, shapes.replace(root_key=np.zeros(2, np.uint32)))
    spread = jax.tree.map(lambda leaf: np.abs(leaf) + 0.5, state.batch_stats)
    state = state.replace(batch_stats=spread, teacher_batch_stats=spread)
    weights = {"source": "package://x", "licence": "Apache-2.0", "licence_source": "its LICENSE"}
    folder = tmp_path_factory.mktemp("segformer")
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    checkpoints.save(5, state, {"config": asdict(config), "weights": weights})
    checkpoints.close()
    return folder


def test_stablehlo_runs_with_jax_alone_on_any_number_of_pictures(stablehlo, workdir, tmp_path):
    given = pictures(3)
    ids, found = elsewhere(stablehlo, given, tmp_path, without="mrm_jax flax orbax optax")
    wanted = probabilities(plain(mrm_jax.load(workdir, network="teacher")), given)
    assert ids.dtype == np.uint8
    assert found.shape == (3, *SIZE, 3)
    np.testing.assert_array_equal(ids, found.argmax(-1))
    # float32 sums in another order: 3e-7 was seen, a wrong mean of one channel gives 1e-2.
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    student = probabilities(plain(mrm_jax.load(workdir)), given)
    assert np.abs(student - wanted).max() > 0.01


def test_stablehlo_is_for_three_platforms_and_takes_bytes(stablehlo):
    from jax import export as stored

    found = stored.deserialize(bytearray((stablehlo / "network.stablehlo").read_bytes()))
    assert found.platforms == ("cpu", "cuda", "tpu")
    (given,) = found.in_avals
    assert given.dtype == np.uint8
    assert str(given.shape) == "(b, 32, 48, 3)"


def test_no_export_holds_the_rebuilder_or_the_optimizer(segformer, tmp_path):
    assert export(segformer, "torch", tmp_path / "out") == 0
    tensors = read_weights(tmp_path / "out" / "network.pth").tensors
    # Counters, and a layer of mmseg's head that is never called.
    learnt = [v.size for n, v in tensors.items() if not re.search("num_batches|conv_seg", n)]
    student = mrm_jax.load(segformer).variables
    assert sum(learnt) == sum(leaf.size for leaf in jax.tree.leaves(student))
    assert not [name for name in tensors if "rebuilder" in name or "transformer." in name]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("README.md", "network.pth", "network.json", "run.py")
    }
    assert str(segformer) not in (tmp_path / "out" / "network.json").read_text()


def test_a_folder_for_transformers_says_what_it_needs_and_is_compared(segformer, tmp_path, capsys):
    assert export(segformer, "huggingface", tmp_path / "hub") == 0
    assert "in another process" in capsys.readouterr().out
    told = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert told["id2label"] == {"0": "road", "1": "car", "2": "sky"}
    assert told["label2id"] == {"road": 0, "car": 1, "sky": 2}
    assert told["hidden_sizes"] == [8, 8, 16, 16]
    assert told["patch_sizes"] == [7, 3, 3, 3]
    read = json.loads((tmp_path / "hub" / "preprocessor_config.json").read_text())
    np.testing.assert_allclose(read["image_mean"], (0.485, 0.456, 0.406), atol=1e-6)
    np.testing.assert_allclose(read["image_std"], (0.229, 0.224, 0.225), atol=1e-6)
    tensors = read_weights(tmp_path / "hub" / "model.safetensors").tensors
    assert "segformer.encoder.patch_embeddings.0.proj.weight" in tensors
    assert "decode_head.classifier.bias" in tensors
    card = (tmp_path / "hub" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "library_name: transformers" in card
    assert "package://x" in card
    assert "epsilon 1e-05" in card


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers and torch are not in CI"
)
def test_transformers_finds_what_the_network_finds(segformer, tmp_path):
    assert export(segformer, "huggingface", tmp_path / "hub", "--no_check") == 0
    config = mrm_jax.load(segformer).config
    encoder = replace(config.model.encoder, norm_eps=1e-5)
    config = replace(config, model=replace(config.model, encoder=encoder))
    net = formats.with_config(mrm_jax.load(segformer), config)
    _, found = elsewhere(tmp_path / "hub", pictures(2), tmp_path)
    np.testing.assert_allclose(found, probabilities(net, pictures(2)), atol=1e-4)


@pytest.mark.skipif(
    importlib.util.find_spec("jax2onnx") is None, reason="the extra export is not in CI"
)
def test_onnx_finds_what_the_network_finds(workdir, tmp_path):
    assert export(workdir, "onnx", tmp_path / "out") == 0


def test_the_card_has_classes_colours_a_program_and_the_way_to_a_hub(stablehlo):
    card = (stablehlo / "README.md").read_text()
    assert card.split("---")[1].splitlines()[1] == "license: unknown"
    assert "| 1 | car | 0, 0, 142 |" in card
    assert (stablehlo / "run.py").read_text().rstrip() in card
    assert len((stablehlo / "run.py").read_text().splitlines()) < 25
    assert "hf upload YOU/street-net ." in card
    assert "Not measured" in card
    assert "the teacher after 7 steps" in card


def test_a_score_is_in_the_card_only_where_it_is_of_this_step(segformer, tmp_path):
    score = {"protocol": {"network": "student", "sentence": "By a protocol."}, "mIoU": 0.4321}
    score |= {"IoU": {"road": 0.5, "car": None, "sky": 0.25}, "step": 5}
    path = segformer / "evaluation.json"
    try:
        path.write_text(json.dumps(score))
        assert export(segformer, "torch", tmp_path / "a", "--no_check") == 0
        assert export(segformer, "torch", tmp_path / "b", "--no_check", "--network=teacher") == 0
        path.write_text(json.dumps(score | {"step": 4}))
        assert export(segformer, "torch", tmp_path / "c", "--no_check") == 0
    finally:
        path.unlink()
    card = (tmp_path / "a" / "README.md").read_text()
    assert "By a protocol." in card
    assert "| mIoU | 43.2% |" in card
    assert "| car | - |" in card
    assert "Not measured" in (tmp_path / "b" / "README.md").read_text()
    assert "Not measured" in (tmp_path / "c" / "README.md").read_text()


def test_without_a_size_pictures_go_in_as_evaluation_fits_them(segformer, tmp_path):
    where = ["--workdir", str(segformer), "--format", "torch", "--to", str(tmp_path / "out")]
    assert run(["export", *where, "--no-check"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "RGB pictures [b, 48, 64, 3], uint8" in card
    assert "the student after 5 steps of" in card


def test_the_comparison_says_of_no_pixel_that_it_is_a_tie():
    assert check.Comparison(1e-7, 0, 96, "run.py").sentence().endswith("classes nowhere.")
    assert "2 of 96 pixels, all of them ties" in check.Comparison(1e-7, 2, 96, "run.py").sentence()


@pytest.mark.parametrize(
    ("weights", "header"),
    [
        ({}, ["license: unknown"]),
        ({"licence": "unknown"}, ["license: unknown"]),
        ({"licence": "BSD-3-Clause"}, ["license: bsd-3-clause"]),
        (
            {"licence": "Theirs: research only", "licence_source": "https://x.org/L"},
            [
                "license: other",
                'license_name: "Theirs: research only"',
                'license_link: "https://x.org/L"',
            ],
        ),
    ],
)
def test_the_hub_reads_the_licence_of_the_weights_that_a_run_started_from(
    segformer, weights, header
):
    told = Told("n", "jax", "jax", "pass", ["run.py"], SIZE, "uint8", [], weights, None)
    lines = model_card(mrm_jax.load(segformer), told).splitlines()
    assert lines[0] == "---"
    assert lines[1 : len(header) + 1] == header
    assert lines[len(header) + 1].startswith("pipeline_tag")


def test_what_cannot_be_written_is_refused_in_one_line(workdir, segformer, tmp_path):
    with refused("--format", "huggingface", way_out="stablehlo"):
        export(workdir, "huggingface", tmp_path / "hub")
    with refused("--format", "torch", way_out="stablehlo"):  # two stages, layouts have four
        export(workdir, "torch", tmp_path / "two")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with refused("--to", tmp_path / "full", way_out="new folder"):
        export(segformer, "torch", tmp_path / "full")
    with refused("--size", (0, 32)):
        export(segformer, "torch", tmp_path / "new", "--size", "0", "32")
    with refused("--input", "float32", way_out="leave --input out"):
        export(segformer, "torch", tmp_path / "new", "--input", "float32")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]


def test_an_export_that_finds_something_else_is_not_kept(segformer, tmp_path, monkeypatch):
    wrong = replace(
        FORMATS["torch"], program="\n\ndef segment(pictures):\n    raise ValueError('no')\n"
    )
    monkeypatch.setitem(formats.FORMATS, "torch", wrong)
    with refused("--format", kind=RunError, way_out="--no_check"):
        export(segformer, "torch", tmp_path / "out")
    monkeypatch.setattr(
        check, "_elsewhere", lambda *_: (np.zeros((2, *SIZE), np.uint8), np.ones((2, *SIZE, 3)) / 3)
    )
    with refused("--format", kind=RunError, way_out="--no_check"):
        export(segformer, "torch", tmp_path / "out")
    assert not list(tmp_path.iterdir())
