"""`convert` from the command line: what it writes, what it refuses, and back without a loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from refusals import refused

from mrm_jax.convert import leaves
from mrm_jax.convert.classes import named_classes
from mrm_jax.convert.reader import WeightFile, read_weights, write_weights
from mrm_jax.data.labels import CITYSCAPES
from mrm_jax.errors import UsageError
from mrm_jax.main import run
from mrm_jax.runs.checkpoint import load_run

TINY = Path(__file__).parents[2] / "configs" / "tiny.py"
# tiny's run with an encoder of four stages, as published names have them.
MODEL = (
    f"--config={TINY}:source_only",
    "--config.model.encoder.dims=(8,16,24,32)",
    "--config.model.encoder.depths=(1,1,1,1)",
    "--config.model.encoder.heads=(1,2,3,4)",
    "--config.model.encoder.sr_ratios=(2,1,1,1)",
    "--config.model.encoder.strides=(4,2,1,1)",
    "--config.model.encoder.mlp_ratios=(2,2,2,2)",
)
CLASSIFIER = "decode_head.conv_seg"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`run`, trained for three steps; `out.npz`, its student under PyTorch's names; a picture."""
    path = tmp_path_factory.mktemp("convert")
    rng = np.random.default_rng(0)
    cv2.imwrite(str(path / "picture.png"), rng.integers(0, 256, (40, 72, 3), np.uint8))
    # Labelled pictures in no folder: nothing is evaluated, which would compile once more.
    short = [f"--config.{c}" for c in ("train.steps=3", "train.optimise=false")]
    short.append("--config.data.evaluation.kind=folder")
    assert run(["train", *MODEL, *short, "--workdir", str(path / "run")]) == 0
    assert run(["convert", "--from", str(path / "run"), "--to_torch", str(path / "out.npz")]) == 0
    return path


@pytest.fixture(autouse=True)
def norms_only_where_they_are_tested(monkeypatch, request):
    """Compiling the encoder for its norms takes a second a test."""
    if "fingerprint" not in request.node.name:
        monkeypatch.setattr("mrm_jax.runs.fingerprint.feature_norms", lambda *_: [])


def convert(*words: Any) -> int:
    return run(["convert", *map(str, words)])


def altered(folder: Path, to: Path, drop: str = "", **more: np.ndarray) -> Path:
    """`out.npz` without the tensors that start with `drop`, and with some more."""
    tensors = read_weights(folder / "out.npz").tensors
    kept = {k: v for k, v in tensors.items() if not drop or not k.startswith(drop)}
    write_weights(to, kept | more, {})
    return to


def predict(checkpoint: Path, folder: Path, to: Path) -> np.ndarray:
    words = ["--checkpoint", str(checkpoint), "--to", str(to), "--resize", "72", "40"]
    assert run(["predict", str(folder / "picture.png"), *words]) == 0
    return cv2.imread(str(to / "picture.png"), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_trained_network_comes_back_from_torchs_names_bit_for_bit(
    folder, tmp_path, suffix
) -> None:
    file = tmp_path / f"out{suffix}"
    assert convert("--from", folder / "run", "--to_torch", file) == 0
    assert convert("--from", file, "--to", tmp_path / "back", *MODEL) == 0
    ours, theirs = load_run(folder / "run").student, load_run(tmp_path / "back").student
    assert leaves(ours).keys() == leaves(theirs).keys()
    for path, leaf in leaves(ours).items():
        np.testing.assert_array_equal(leaves(theirs)[path], leaf, err_msg=path)
    if suffix == ".npz":
        wanted = predict(folder / "run", folder, tmp_path / "a")
        np.testing.assert_array_equal(predict(tmp_path / "back", folder, tmp_path / "b"), wanted)


def test_a_converted_folder_holds_its_fingerprint_and_can_be_evaluated(
    folder, tmp_path, capsys
) -> None:
    assert convert("--from", folder / "out.npz", "--to", tmp_path / "net", *MODEL) == 0
    shown = capsys.readouterr().out
    facts = load_run(tmp_path / "net").facts
    stored = json.loads((tmp_path / "net" / "weights.json").read_text())
    for name in ("file_sha256", "tensors_sha256", "tensors", "parameters", "feature_norms"):
        assert facts["weights"][name] == stored[name]
    assert stored["file_sha256"] in shown
    assert stored["tensors_sha256"] in shown
    assert all(str(norm) in shown for norm in stored["feature_norms"])
    words = ["--checkpoint", str(tmp_path / "net"), "--to", str(tmp_path)]
    assert run(["evaluate", *words, *MODEL, "--config.evaluation.limit=1"]) == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["protocol"]
    with refused("--to", way_out="give a new folder"):
        convert("--from", folder / "out.npz", "--to", tmp_path / "net", *MODEL)


def test_without_a_config_the_tensors_and_the_file_say_what_they_can(folder, tmp_path) -> None:
    assert convert("--from", folder / "out.npz", "--to", tmp_path / "net") == 0
    config = load_run(tmp_path / "net").config
    assert config.model.encoder.dims == (8, 16, 24, 32)
    assert config.model.encoder.depths == (1, 1, 1, 1)
    assert config.model.decoder.fusion == "conv1"
    assert config.data.classes.names[:2] == ("class_0", "class_1")
    assert len(config.data.classes.names) == 17
    nineteen = {f"{CLASSIFIER}.weight": np.zeros((19, 8, 1, 1), np.float32)}
    nineteen[f"{CLASSIFIER}.bias"] = np.zeros(19, np.float32)
    city = altered(folder, tmp_path / "city.npz", **nineteen)
    assert convert("--from", city, "--to", tmp_path / "city") == 0
    assert load_run(tmp_path / "city").config.data.classes == CITYSCAPES


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"CLASSES": ["a", None]}, "its CLASSES are no names"),
        ({"CLASSES": ["a", "b\nc"]}, "its CLASSES are no names"),
        ({"CLASSES": ["a", "b"], "PALETTE": [1, 2]}, "its PALETTE is no colours"),
        ({"CLASSES": ["a", "b"], "PALETTE": [[1, 2, 3], [0, 0, 256]]}, "its PALETTE is no colours"),
    ],
)
def test_classes_that_are_none_are_refused(meta: dict, message: str) -> None:
    file = WeightFile(Path("x.pth"), {}, meta, "")
    with pytest.raises(UsageError, match=rf"x\.pth: {message}"):
        named_classes(file, 2)


def test_what_the_tensors_show_is_printed_with_the_published_size(
    folder, tmp_path, capsys, monkeypatch
) -> None:
    assert convert("--from", folder / "out.npz", "--to", tmp_path / "net") == 0
    shown = capsys.readouterr().out
    assert "encoder: mit, no published size: depths (1, 1, 1, 1), dims (8, 16, 24, 32)" in shown
    assert "decoder: daformer, fusion conv1, 17 classes" in shown
    encoder = load_run(tmp_path / "net").config.model.encoder
    monkeypatch.setattr("mrm_jax.runs.weights.ENCODERS", {"mit_b9": encoder})
    assert convert("--from", folder / "out.npz", "--to", tmp_path / "named") == 0
    assert "encoder: mit, mit_b9: depths (1, 1, 1, 1)" in capsys.readouterr().out


def test_a_file_that_makes_no_network_of_ours_is_blamed_itself(folder, tmp_path) -> None:
    # Patches of 5x5 where ours are of 7x7.
    kernel = np.zeros((8, 3, 5, 5), np.float32)
    odd = altered(folder, tmp_path / "odd.npz", **{"backbone.patch_embed1.proj.weight": kernel})
    with pytest.raises(UsageError, match=r"odd\.npz: these weights do not fit the netw") as caught:
        convert("--from", odd, "--to", tmp_path / "net")
    assert "init_from" not in str(caught.value)


def test_another_kind_for_a_whole_checkpoint_is_answered_with_the_right_one(
    folder, tmp_path
) -> None:
    """The encoder's own takes the encoder out of it, with as without a prefix."""
    whole = read_weights(folder / "out.npz").tensors
    write_weights(
        tmp_path / "uda.npz", {f"model.{name}": value for name, value in whole.items()}, {}
    )
    with pytest.raises(UsageError, match="those of kind segmentor: leave out --kind, or give"):
        convert("--from", tmp_path / "uda.npz", "--to", tmp_path / "no", "--kind", "resnet_v1c")
    for name, source in (("with", tmp_path / "uda.npz"), ("without", folder / "out.npz")):
        assert convert("--from", source, "--to", tmp_path / name, "--kind", "mit") == 0
    found, plain = (leaves(load_run(tmp_path / name).student) for name in ("with", "without"))
    assert all(path.split("/")[1] == "encoder" for path in found)
    assert found.keys() == plain.keys()
    assert all(np.array_equal(found[path], plain[path]) for path in found)


def test_an_encoder_alone_is_kept_and_segments_nothing(folder, tmp_path) -> None:
    encoder = altered(folder, tmp_path / "mit.npz", drop="decode_head.")
    assert convert("--from", encoder, "--to", tmp_path / "mit") == 0
    assert set(load_run(tmp_path / "mit").student["params"]) == {"encoder"}
    for verb in (["predict", str(folder / "picture.png")], ["evaluate"]):
        with refused("config.model.encoder.weights", way_out="train with them by"):
            run([*verb, "--checkpoint", str(tmp_path / "mit"), "--to", str(tmp_path / "x")])
    with refused("--workdir", way_out="give a new or an empty folder"):
        run(["train", *MODEL, "--workdir", str(tmp_path / "mit")])


def test_a_dry_run_shows_every_tensor_and_writes_nothing(folder, tmp_path, capsys) -> None:
    assert convert("--from", folder / "out.npz", "--to", tmp_path / "net", "--dry_run") == 0
    shown = capsys.readouterr().out
    assert "kind segmentor" in shown
    for wanted in (
        "backbone.block2.0.attn.q.weight",
        "params/encoder/block2/attn/q/kernel",
        "num_batches_tracked",
        "dropped: a counter",
        "nothing was written",
    ):
        assert wanted in shown
    assert list(tmp_path.iterdir()) == []


def test_a_half_matching_file_is_refused_whole(folder, tmp_path, capsys) -> None:
    half = altered(folder, tmp_path / "half.npz", drop=CLASSIFIER, extra=np.zeros(3, np.float32))
    with pytest.raises(UsageError, match=rf"missing {CLASSIFIER}\.weight and 2 more; nothing was"):
        convert("--from", half, "--to", tmp_path / "net")
    assert not (tmp_path / "net").exists()
    assert convert("--from", half, "--dry_run") == 1
    shown = capsys.readouterr().out
    assert f"missing {CLASSIFIER}.bias" in shown
    assert "not expected extra" in shown


def test_what_may_be_missing_is_recorded_and_trained_from_but_not_used(folder, tmp_path) -> None:
    half = altered(folder, tmp_path / "half.npz", drop=CLASSIFIER)
    allow = ("--allow_missing", "decoder/classifier/.*")
    assert convert("--from", half, "--to", tmp_path / "net", *allow, *MODEL) == 0
    missing = ["decoder/classifier/kernel", "decoder/classifier/bias"]
    assert load_run(tmp_path / "net").facts["weights"]["missing"] == missing
    with pytest.raises(UsageError, match="These weights lack 2 leaves, decoder/classifier/kernel"):
        predict(tmp_path / "net", folder, tmp_path / "x")


def test_a_classifier_of_other_classes_may_be_left_out(folder, tmp_path) -> None:
    fewer = {f"{CLASSIFIER}.weight": np.zeros((3, 8, 1, 1), np.float32)}
    fewer[f"{CLASSIFIER}.bias"] = np.zeros(3, np.float32)
    other = altered(folder, tmp_path / "other.npz", **fewer)
    with pytest.raises(UsageError, match=r"3 classes apart.*--allow_missing 'decoder/classifier"):
        convert("--from", other, "--to", tmp_path / "net", *MODEL)
    allow = ("--allow_missing", "decoder/classifier/.*")
    assert convert("--from", other, "--to", tmp_path / "net", *allow, *MODEL) == 0
    loaded = load_run(tmp_path / "net")
    assert "classifier" not in loaded.student["params"]["decoder"]
    assert len(loaded.facts["weights"]["missing"]) == 2


def test_parts_and_names_of_an_export_can_be_chosen(folder, tmp_path, capsys) -> None:
    whole = read_weights(folder / "out.npz").tensors
    assert convert("--from", folder / "run", "--to_torch", tmp_path / "e.npz", "--kind", "mit") == 0
    encoder = read_weights(tmp_path / "e.npz").tensors
    assert {f"backbone.{name}" for name in encoder} == {n for n in whole if n[:8] == "backbone"}
    assert "added, " not in capsys.readouterr().out
    assert convert("--from", folder / "run", "--to_torch", tmp_path / "w.safetensors") == 0
    assert "counters of BatchNorm, 0: 1 (decode_head.fuse_layer.bn.num_b" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to_torch", "x.onnx"], r"must end in one of \.pth"),
        (["--to_torch", "x.npz", "--network", "teacher"], "holds none"),
        (["--to_torch", "x.npz", "--kind", "hf_segformer"], "kind hf_segformer: "),
        (["--to_torch", "x.npz", "--kind", "mitt"], "try one of mit"),
        (["--to_torch", "x.npz", "--kind", "rebuilder"], "holds no Rebuilder"),
        (["--to_torch", "x.npz", "--dry_run"], "--to_torch FILE and --dry_run"),
        (["--to_torch", "x.npz", "--to", "x"], "--to_torch FILE and --to"),
        ([], "give --to DIR, --to_torch FILE or --dry_run"),
        (["--to", "x"], "is a folder; give a file"),
        (["--to", "x", "--which", "best"], "--which goes with --to_torch FILE alone"),
        (["--dry_run", "--network", "student"], "--network goes with --to_torch FILE alone"),
    ],
)
def test_a_wrong_command_is_one_line(folder, tmp_path, monkeypatch, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        convert("--from", folder / "run", *words)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
