"""What a fresh run starts from: the precedence, and what is remembered of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from toy_run import Toy
from weight_files import config, same, starting, write_files

from mrm_jax import sharding
from mrm_jax.checks import check_config
from mrm_jax.config import Config, FeatureDistance
from mrm_jax.errors import UsageError
from mrm_jax.runs.checkpoint import FOLDER, load_run, save_network
from mrm_jax.runs.fingerprint import fingerprint
from mrm_jax.train import loop
from mrm_jax.train.start import Start, frozen_encoder, insert_weights, load_start
from mrm_jax.train.state import build_networks, init_state


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """`write_files` in a folder of this module's."""
    return write_files(tmp_path_factory.mktemp("weights"))


@pytest.fixture(autouse=True)
def no_norms(monkeypatch):
    """Compiling the encoder for its norms takes a second a test."""
    monkeypatch.setattr("mrm_jax.runs.fingerprint.feature_norms", lambda *_: [])


@pytest.fixture(scope="module")
def fresh():
    """A state of random numbers with the real one's leaves and shardings."""
    cfg, mesh, rng = config(), sharding.mesh(batch=2), np.random.default_rng(0)
    key = jax.ShapeDtypeStruct((2,), np.uint32)
    abstract = jax.eval_shape(partial(init_state, cfg, build_networks(cfg)), key)

    def some(leaf, where):
        return jax.device_put(rng.normal(size=leaf.shape).astype(leaf.dtype), where)

    return jax.tree.map(some, abstract, sharding.of_state(abstract, mesh))


def test_init_from_goes_before_encoder_weights_before_random_numbers(files, fresh) -> None:
    folder, first, second = files
    cfg = config()
    assert load_start(starting(cfg)) is None

    start = load_start(starting(cfg, encoder=folder / "encoder.npz"))
    assert start is not None
    state = insert_weights(fresh, start)
    student = state.params["segmentor"]
    assert same(student["encoder"], second["params"]["encoder"])
    assert same(student["decoder"], jax.device_get(fresh.params["segmentor"]["decoder"]))
    assert same(state.batch_stats, jax.device_get(fresh.batch_stats))
    assert start.fingerprint["field"] == "model.encoder.weights"

    both = starting(cfg, encoder=folder / "encoder.npz", whole=folder / "network.npz")
    start = load_start(both)
    assert start is not None
    state = insert_weights(fresh, start)
    assert same(state.params["segmentor"], first["params"])
    assert same(state.batch_stats, first["batch_stats"])
    assert any("model.encoder.weights is not read" in line for line in start.lines())


def test_the_encoder_of_a_whole_network_will_do(files, fresh) -> None:
    folder, first, _ = files
    start = load_start(starting(config(), encoder=folder / "network.npz"))
    assert start is not None
    assert same(
        insert_weights(fresh, start).params["segmentor"]["encoder"], first["params"]["encoder"]
    )


def test_the_teacher_starts_as_a_copy_and_no_two_leaves_share_memory(files, fresh) -> None:
    folder, first, _ = files
    start = load_start(starting(config(), whole=folder / "network.npz"))
    assert start is not None
    state = insert_weights(fresh, start)
    assert same(state.teacher_params, first["params"])
    assert same(state.teacher_batch_stats, first["batch_stats"])
    networks = (state.params["segmentor"], state.teacher_params)
    arrays = [leaf for tree in networks for leaf in jax.tree.leaves(tree)]
    places = [x.addressable_shards[0].data.unsafe_buffer_pointer() for x in arrays]
    assert len(set(places)) == len(places)
    wanted = sharding.of_state(fresh, sharding.mesh(batch=2))
    assert all(
        leaf.sharding.is_equivalent_to(where, leaf.ndim)
        for leaf, where in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True)
    )


def test_a_run_and_a_converted_folder_start_a_run(files, fresh, tmp_path) -> None:
    folder, first, _ = files
    cfg = config()
    found = fingerprint(cfg.model, first, file="network.npz", kind="segmentor")
    facts = {"config": asdict(cfg), "weights": found, "converted": True}
    save_network(tmp_path / "converted", first, facts)
    start = load_start(starting(cfg, whole=tmp_path / "converted"))
    assert start is not None
    assert same(insert_weights(fresh, start).params["segmentor"], first["params"])
    assert start.fingerprint["tensors_sha256"] == found["tensors_sha256"]
    assert start.fingerprint["kind"] == "segmentor"
    start = load_start(starting(cfg, encoder=tmp_path / "converted"))
    assert start is not None
    assert same(
        insert_weights(fresh, start).params["segmentor"]["encoder"], first["params"]["encoder"]
    )


def test_leaves_that_a_conversion_left_out_keep_their_initial_values(
    files, fresh, tmp_path
) -> None:
    _, first, _ = files
    cfg = config()
    tree = {name: dict(below) for name, below in first.items()}
    tree["params"]["decoder"] = {
        name: leaf for name, leaf in first["params"]["decoder"].items() if name != "classifier"
    }
    missing = ["decoder/classifier/bias", "decoder/classifier/kernel"]
    facts = {"config": asdict(cfg), "converted": True, "weights": {"missing": missing}}
    save_network(tmp_path / "partial", tree, facts)
    start = load_start(starting(cfg, whole=tmp_path / "partial"))
    assert start is not None
    assert sorted(start.fingerprint["missing"]) == missing
    student = insert_weights(fresh, start).params["segmentor"]["decoder"]
    assert same(
        student["classifier"], jax.device_get(fresh.params["segmentor"]["decoder"]["classifier"])
    )
    assert same(student["fuse"], first["params"]["decoder"]["fuse"])
    save_network(tmp_path / "torn", tree, {"config": asdict(cfg), "weights": {}})
    with pytest.raises(UsageError, match="params/decoder/classifier/bias is missing and 1 more"):
        load_start(starting(cfg, whole=tmp_path / "torn"))


def test_a_resumed_run_reads_no_weights_and_remembers_them(tmp_path, monkeypatch) -> None:
    toy = Toy(tmp_path, monkeypatch)
    asked = []

    def once(config):
        asked.append(config.train.init_from)
        return Start(
            {"params": {"scale": np.float32(5)}}, {"file": "x.npz", "file_sha256": "abc"}, ()
        )

    monkeypatch.setattr(loop, "load_start", once)
    toy.train(train__steps=6)
    assert len(asked) == 1
    assert toy.weight("last") > 5  # scratch is 1, and six steps add less than 4 a piece
    run = tmp_path / "run"
    environment = json.loads((run / "environment.json").read_text())
    assert environment["weights"] == {"file": "x.npz", "file_sha256": "abc"}
    last = toy.weight("last")
    shutil.rmtree(run / FOLDER / "6")
    toy.train(train__steps=6)
    assert len(asked) == 1  # resume goes before everything
    assert toy.weight("last") == last
    assert load_run(run).facts["weights"]["file_sha256"] == "abc"
    assert json.loads((run / "environment.json").read_text())["weights"]["file"] == "x.npz"


def compared(config: Config, **options: Any) -> Config:
    distance = FeatureDistance(weight=0.005, **options)
    return replace(config, method=replace(config.method, feature_distance=distance))


def test_the_frozen_encoder_is_kept_in_the_run_whatever_becomes_of_its_file(files, tmp_path):
    folder, _, second = files
    shutil.copy(folder / "encoder.npz", tmp_path / "weights.npz")
    cfg = compared(starting(config(), encoder=tmp_path / "weights.npz"))
    (tmp_path / "run").mkdir()
    first = frozen_encoder(cfg, tmp_path / "run")
    assert first is not None
    assert same(first["params"], second["params"]["encoder"])
    (tmp_path / "weights.npz").unlink()
    again = frozen_encoder(cfg, tmp_path / "run")
    assert again is not None
    assert same(again["params"], first["params"])
    assert frozen_encoder(config(), tmp_path / "run") is None


def test_the_frozen_encoder_may_be_that_of_a_trained_run(files, tmp_path):
    _, first, _ = files
    save_network(tmp_path / "trained", first, {"config": asdict(config()), "weights": {}})
    (tmp_path / "run").mkdir()
    cfg = compared(config(), source="checkpoint", checkpoint=str(tmp_path / "trained"))
    found = frozen_encoder(cfg, tmp_path / "run")
    assert found is not None
    assert same(found["params"], first["params"]["encoder"])
    missing = compared(config(), source="checkpoint", checkpoint=str(tmp_path / "nowhere"))
    (tmp_path / "other").mkdir()
    with pytest.raises(
        UsageError, match=r"config\.method\.feature_distance\.checkpoint: .*nowhere"
    ):
        frozen_encoder(missing, tmp_path / "other")


def test_a_distance_to_random_features_is_refused():
    with pytest.raises(UsageError, match=r"config\.model\.encoder\.weights names no frozen encod"):
        check_config(compared(config()))
    with pytest.raises(UsageError, match="feature_distance.checkpoint names no frozen encoder"):
        check_config(compared(config(), source="checkpoint"))
    with pytest.raises(UsageError, match="none of them is in the class table"):
        check_config(compared(starting(config(), encoder="x"), classes=("unicorn",)))
