"""What a fresh run starts from: the precedence, what is refused, and what is remembered of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from toy_run import TINY, Toy

from mrm_jax import sharding
from mrm_jax.checks import check
from mrm_jax.config import Config, Encoder, FeatureDistance, UsageError
from mrm_jax.convert import export_torch
from mrm_jax.convert.network import leaves
from mrm_jax.main import load_config
from mrm_jax.models.build import build_encoder
from mrm_jax.ops.normalise import normalise
from mrm_jax.train import loop
from mrm_jax.train.checkpoint import FOLDER, load_run, save_network
from mrm_jax.train.fingerprint import feature_norms, fingerprint, picture, tensors_sha256
from mrm_jax.train.start import Start, frozen_encoder, load, place
from mrm_jax.train.state import init, networks
from mrm_jax.train.weights import shapes

ENCODER = Encoder(
    dims=(8, 16, 24, 32),
    depths=(1, 2, 1, 1),
    heads=(1, 2, 3, 4),
    sr_ratios=(2, 1, 1, 1),
    strides=(4, 2, 1, 1),
    mlp_ratio=2,
)


def config(**model: Any) -> Config:
    """tiny's run with an encoder of four stages, as published names have them."""
    tiny = load_config([f"--config={TINY}:dacs"])
    assert tiny is not None
    return replace(tiny, model=replace(tiny.model, encoder=ENCODER, **model))


def starting(config: Config, *, encoder: Any = None, whole: Any = None) -> Config:
    weights = None if encoder is None else str(encoder)
    model = replace(config.model, encoder=replace(config.model.encoder, weights=weights))
    train = replace(config.train, init_from=None if whole is None else str(whole))
    return replace(config, model=model, train=train)


def variables(config: Config, seed: int) -> dict[str, Any]:
    """Random weights of the config's segmentor."""
    rng = np.random.default_rng(seed)
    tree: dict[str, Any] = {}
    for path, shape in shapes(config, whole=True).items():
        *parents, leaf = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        value = rng.normal(0, 0.05, shape).astype(np.float32)
        node[leaf] = np.abs(value) + 0.5 if leaf in ("var", "scale") else value
    return tree


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """`network.npz` (a segmentor), `other.npz` (another one), `encoder.npz` and their values."""
    folder, cfg = tmp_path_factory.mktemp("weights"), config()
    first, second = variables(cfg, 1), variables(cfg, 2)
    np.savez(folder / "network.npz", **export_torch(first, "segmentor", complete=True))
    np.savez(folder / "other.npz", **export_torch(second, "segmentor"))
    encoder = {name: below.get("encoder", {}) for name, below in second.items()}
    np.savez(folder / "encoder.npz", **export_torch(encoder, "mit"))
    return folder, first, second


@pytest.fixture(scope="module")
def fresh():
    """A state of random numbers with the real one's leaves and shardings."""
    cfg, mesh, rng = config(), sharding.mesh(batch=2), np.random.default_rng(0)
    key = jax.ShapeDtypeStruct((2,), np.uint32)
    abstract = jax.eval_shape(partial(init, cfg, networks(cfg)), key)

    def some(leaf, where):
        return jax.device_put(rng.normal(size=leaf.shape).astype(leaf.dtype), where)

    return jax.tree.map(some, abstract, sharding.of_state(abstract, mesh))


@pytest.fixture(autouse=True)
def norms_only_where_they_are_tested(monkeypatch, request):
    """Compiling the encoder for its norms takes a second a test."""
    if "norms" not in request.node.name and "fingerprints" not in request.node.name:
        monkeypatch.setattr("mrm_jax.train.fingerprint.feature_norms", lambda *_: [])


def same(found: Any, wanted: Any) -> bool:
    found, wanted = leaves(found), leaves(wanted)
    return found.keys() == wanted.keys() and all(
        np.array_equal(np.asarray(found[path]), wanted[path]) for path in wanted
    )


def test_init_from_goes_before_encoder_weights_before_random_numbers(files, fresh) -> None:
    folder, first, second = files
    cfg = config()
    assert load(starting(cfg)) is None

    start = load(starting(cfg, encoder=folder / "encoder.npz"))
    assert start is not None
    state = place(fresh, start)
    student = state.params["segmentor"]
    assert same(student["encoder"], second["params"]["encoder"])
    assert same(student["decoder"], jax.device_get(fresh.params["segmentor"]["decoder"]))
    assert same(state.batch_stats, jax.device_get(fresh.batch_stats))
    assert start.fingerprint["field"] == "model.encoder.weights"

    both = starting(cfg, encoder=folder / "encoder.npz", whole=folder / "network.npz")
    start = load(both)
    assert start is not None
    state = place(fresh, start)
    assert same(state.params["segmentor"], first["params"])
    assert same(state.batch_stats, first["batch_stats"])
    assert any("model.encoder.weights is not read" in line for line in start.lines())


def test_the_encoder_of_a_whole_network_will_do(files, fresh) -> None:
    folder, first, _ = files
    start = load(starting(config(), encoder=folder / "network.npz"))
    assert start is not None
    assert same(place(fresh, start).params["segmentor"]["encoder"], first["params"]["encoder"])


def test_the_teacher_starts_as_a_copy_and_no_two_leaves_share_memory(files, fresh) -> None:
    folder, first, _ = files
    start = load(starting(config(), whole=folder / "network.npz"))
    assert start is not None
    state = place(fresh, start)
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
    start = load(starting(cfg, whole=tmp_path / "converted"))
    assert start is not None
    assert same(place(fresh, start).params["segmentor"], first["params"])
    assert start.fingerprint["tensors_sha256"] == found["tensors_sha256"]
    assert start.fingerprint["kind"] == "segmentor"
    start = load(starting(cfg, encoder=tmp_path / "converted"))
    assert start is not None
    assert same(place(fresh, start).params["segmentor"]["encoder"], first["params"]["encoder"])


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
    start = load(starting(cfg, whole=tmp_path / "partial"))
    assert start is not None
    assert sorted(start.fingerprint["missing"]) == missing
    student = place(fresh, start).params["segmentor"]["decoder"]
    assert same(
        student["classifier"], jax.device_get(fresh.params["segmentor"]["decoder"]["classifier"])
    )
    assert same(student["fuse"], first["params"]["decoder"]["fuse"])
    save_network(tmp_path / "torn", tree, {"config": asdict(cfg), "weights": {}})
    with pytest.raises(UsageError, match="params/decoder/classifier/bias is missing and 1 more"):
        load(starting(cfg, whole=tmp_path / "torn"))


def test_weights_of_another_network_are_refused_with_the_option_to_change(files) -> None:
    folder, *_ = files
    cfg = config()
    deeper = replace(ENCODER, depths=(2, 2, 1, 1))
    with pytest.raises(UsageError, match=r"encoder depths \(1, 2, 1, 1\), and config\.model\.enc"):
        load(starting(_with(cfg, deeper), encoder=folder / "encoder.npz"))
    wider = replace(cfg.model.decoder, channels=12)
    with pytest.raises(
        UsageError, match=r"decoder channels 8, and config\.model\.decoder\.channels"
    ):
        load(starting(config(decoder=wider), whole=folder / "network.npz"))
    names, colours = cfg.data.classes.names[:3], cfg.data.classes.colours[:3]
    classes = replace(cfg.data.classes, names=names, colours=colours)
    fewer = replace(cfg, data=replace(cfg.data, classes=classes))
    with pytest.raises(UsageError, match=r"17 classes apart, and config\.data\.classes has 3"):
        load(starting(fewer, whole=folder / "network.npz"))
    with pytest.raises(UsageError, match=r"an encoder alone; give it as config\.model\.encoder\.w"):
        load(starting(cfg, whole=folder / "encoder.npz"))


def _with(cfg: Config, encoder: Encoder) -> Config:
    return replace(cfg, model=replace(cfg.model, encoder=encoder))


def test_a_published_size_is_named_as_the_recipe_key(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("mrm_jax.train.weights.ENCODERS", {"mit_b9": ENCODER})
    cfg = config()
    np.savez(tmp_path / "x.npz", **_encoder_file(cfg))
    with pytest.raises(UsageError, match="add encoder=mit_b9 after the colon"):
        load(
            starting(_with(cfg, replace(ENCODER, depths=(1, 1, 1, 1))), encoder=tmp_path / "x.npz")
        )


def _encoder_file(cfg: Config) -> dict[str, np.ndarray]:
    tree = {name: below.get("encoder", {}) for name, below in variables(cfg, 3).items()}
    return export_torch(tree, "mit")


@pytest.mark.parametrize("field", ["encoder", "whole"])
def test_a_missing_file_is_named_with_its_field(tmp_path, field) -> None:
    with pytest.raises(UsageError, match=r"config\.\S+: .*gone\.pth is not there"):
        load(starting(config(), **{field: tmp_path / "gone.pth"}))


def test_a_half_matching_file_is_never_loaded_in_part(tmp_path) -> None:
    state = _encoder_file(config())
    del state["block2.1.mlp.fc1.weight"]
    np.savez(tmp_path / "half.npz", **state)
    with pytest.raises(
        UsageError, match=r"missing block2\.1\.mlp\.fc1\.weight; nothing was loaded"
    ):
        load(starting(config(), encoder=tmp_path / "half.npz"))


def test_another_epsilon_is_said_and_not_taken(files) -> None:
    folder, *_ = files
    start = load(
        starting(_with(config(), replace(ENCODER, norm_eps=1e-5)), encoder=folder / "encoder.npz")
    )
    assert start is not None
    assert [n for n in start.notes if "norm_eps 1e-06; config.model.encoder.norm_eps is 1e-05" in n]


def test_fingerprints_tell_weights_apart_and_not_files(files, tmp_path) -> None:
    folder, first, _ = files
    with np.load(folder / "network.npz") as archive:
        np.savez_compressed(tmp_path / "again.npz", **dict(reversed(list(archive.items()))))
    cfg = config()
    found = load(starting(cfg, whole=folder / "network.npz"))
    again = load(starting(cfg, whole=tmp_path / "again.npz"))
    other = load(starting(cfg, whole=folder / "other.npz"))
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
    maps = run(variables, normalise(picture()[None]))
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


def test_a_resumed_run_reads_no_weights_and_remembers_them(tmp_path, monkeypatch) -> None:
    toy = Toy(tmp_path, monkeypatch)
    asked = []

    def once(config):
        asked.append(config.train.init_from)
        return Start({"params": {"w": np.float32(5)}}, {"file": "x.npz", "file_sha256": "abc"}, ())

    monkeypatch.setattr(loop, "load", once)
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
        check(compared(config()))
    with pytest.raises(UsageError, match="feature_distance.checkpoint names no frozen encoder"):
        check(compared(config(), source="checkpoint"))
    with pytest.raises(UsageError, match="none of them is in the class table"):
        check(compared(starting(config(), encoder="x"), classes=("unicorn",)))
