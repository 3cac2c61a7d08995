"""Which weights are refused and with what words, and fingerprints of those that are not."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from weight_files import ENCODER, config, other_encoder, starting, variables, write_files

from mrm_jax.config import Config
from mrm_jax.convert import export_torch
from mrm_jax.errors import UsageError
from mrm_jax.models.build import build_encoder
from mrm_jax.ops.normalise import normalise
from mrm_jax.registry import IMAGENET
from mrm_jax.runs.fingerprint import feature_norms, picture, tensors_sha256
from mrm_jax.train.start import load_start


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """`write_files` in a folder of this module's."""
    return write_files(tmp_path_factory.mktemp("weights"))


@pytest.fixture(autouse=True)
def norms_only_where_they_are_tested(monkeypatch, request):
    """Compiling the encoder for its norms takes a second a test."""
    if "norms" not in request.node.name and "fingerprints" not in request.node.name:
        monkeypatch.setattr("mrm_jax.runs.fingerprint.feature_norms", lambda *_: [])


def test_weights_of_another_network_are_refused_with_the_option_to_change(files) -> None:
    folder, *_ = files
    cfg = config()
    deeper = replace(ENCODER, depths=(2, 2, 1, 1))
    with pytest.raises(UsageError, match=r"encoder depths \(1, 2, 1, 1\), and config\.model\.enc"):
        load_start(starting(other_encoder(cfg, deeper), encoder=folder / "encoder.npz"))
    wider = replace(cfg.model.decoder, channels=12)
    with pytest.raises(
        UsageError, match=r"decoder channels 8, and config\.model\.decoder\.channels"
    ):
        load_start(starting(config(decoder=wider), whole=folder / "network.npz"))
    names, colours = cfg.data.classes.names[:3], cfg.data.classes.colours[:3]
    classes = replace(cfg.data.classes, names=names, colours=colours)
    fewer = replace(cfg, data=replace(cfg.data, classes=classes))
    with pytest.raises(UsageError, match=r"17 classes apart, and config\.data\.classes has 3"):
        load_start(starting(fewer, whole=folder / "network.npz"))
    with pytest.raises(UsageError, match=r"an encoder alone; give it as config\.model\.encoder\.w"):
        load_start(starting(cfg, whole=folder / "encoder.npz"))


def test_a_published_size_is_named_as_the_recipe_key(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("mrm_jax.runs.weights.ENCODERS", {"mit_b9": ENCODER})
    cfg = config()
    np.savez(tmp_path / "x.npz", **_encoder_file(cfg))
    shallow = other_encoder(cfg, replace(ENCODER, depths=(1, 1, 1, 1)))
    with pytest.raises(UsageError, match="add encoder=mit_b9 after the colon"):
        load_start(starting(shallow, encoder=tmp_path / "x.npz"))


def _encoder_file(cfg: Config) -> dict[str, Any]:
    tree = {name: below.get("encoder", {}) for name, below in variables(cfg, 3).items()}
    return export_torch(tree, "mit")


@pytest.mark.parametrize("field", ["encoder", "whole"])
def test_a_missing_file_is_named_with_its_field(tmp_path, field) -> None:
    with pytest.raises(UsageError, match=r"config\.\S+: .*gone\.pth is not there"):
        load_start(starting(config(), **{field: tmp_path / "gone.pth"}))


def test_a_half_matching_file_is_never_loaded_in_part(tmp_path) -> None:
    state = _encoder_file(config())
    del state["block2.1.mlp.fc1.weight"]
    np.savez(tmp_path / "half.npz", **state)
    with pytest.raises(
        UsageError, match=r"missing block2\.1\.mlp\.fc1\.weight; nothing was loaded"
    ):
        load_start(starting(config(), encoder=tmp_path / "half.npz"))


def test_another_epsilon_is_said_and_not_taken(files) -> None:
    folder, *_ = files
    start = load_start(
        starting(
            other_encoder(config(), replace(ENCODER, norm_eps=1e-5)), encoder=folder / "encoder.npz"
        )
    )
    assert start is not None
    assert [n for n in start.notes if "norm_eps 1e-06; config.model.encoder.norm_eps is 1e-05" in n]


def test_fingerprints_tell_weights_apart_and_not_files(files, tmp_path) -> None:
    folder, first, _ = files
    with np.load(folder / "network.npz") as archive:
        np.savez_compressed(tmp_path / "again.npz", **dict(reversed(list(archive.items()))))
    cfg = config()
    found = load_start(starting(cfg, whole=folder / "network.npz"))
    again = load_start(starting(cfg, whole=tmp_path / "again.npz"))
    other = load_start(starting(cfg, whole=folder / "other.npz"))
    assert found is not None
    assert again is not None
    assert other is not None
    ours, theirs = found.fingerprint, again.fingerprint
    assert ours["file_sha256"] != theirs["file_sha256"]
    assert ours["tensors_sha256"] == theirs["tensors_sha256"] == tensors_sha256(first)
    assert ours["feature_norms"] == theirs["feature_norms"]
    assert ours["parameters"] == sum(x.size for x in jax.tree.leaves(first["params"]))
    assert ours["tensors_sha256"] != other.fingerprint["tensors_sha256"]
    # A thousandth more on one bias: too little for the eye, enough for the hash.
    bias = first["params"]["encoder"]["norm4"]["bias"]
    bias += np.float32(1e-3)
    assert tensors_sha256(first) != ours["tensors_sha256"]
    bias -= np.float32(1e-3)


def test_feature_norms_are_those_of_the_encoder_in_evaluation_mode(files) -> None:
    _, first, _ = files
    cfg = config()
    norms = feature_norms(cfg.model, first)
    encoder: Any = build_encoder(cfg.model)
    run = jax.jit(
        lambda v, x: encoder.apply(v, x, mode="eval"),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    variables = {name: below.get("encoder", {}) for name, below in first.items()}
    maps = run(variables, normalise(picture()[None], IMAGENET))
    wanted = [np.linalg.norm(np.asarray(x[0], np.float64).mean((0, 1))) for x in maps]
    # Rounded to five digits: half a unit of the last is at most 5e-5 of the whole.
    np.testing.assert_allclose(norms, wanted, rtol=6e-5)


def test_feature_norms_show_other_weights_under_the_same_last_layernorms(files) -> None:
    _, first, second = files
    ends = {name: first["params"]["encoder"][name] for name in ("norm1", "norm2", "norm3", "norm4")}
    mixed = {**second["params"], "encoder": {**second["params"]["encoder"], **ends}}
    cfg = config()
    ours = feature_norms(cfg.model, first)
    theirs = feature_norms(cfg.model, {**second, "params": mixed})
    # The norm of a whole map moves by 0.02 to 4 % here, as its LayerNorm all but fixes it.
    assert np.all(np.abs(np.divide(theirs, ours) - 1) > 0.01), (ours, theirs)


def test_the_picture_of_fingerprints_never_changes() -> None:
    assert picture().shape == (128, 128, 3)
    digest = hashlib.sha256(picture().tobytes()).hexdigest()
    assert digest == "5b7578d9cbbcf01b96eebc7b2cc0aa05c1e1b4094f7e58b12ca287e119864d7e"
