"""An encoder and an objective that are registered here, outside the package, and nowhere else."""

from dataclasses import fields, replace
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import standin
from refusals import refused

from mrm_jax import sharding
from mrm_jax.checks import check_config
from mrm_jax.config import (
    MRM,
    Classes,
    Config,
    Data,
    Decoder,
    Domain,
    Encoder,
    MaskedImages,
    Method,
    Model,
    mim_block,
)
from mrm_jax.data import labels
from mrm_jax.data.pipeline import TrainingSamples, selection_crops
from mrm_jax.errors import UsageError
from mrm_jax.evaluation.network import TrainedNetwork
from mrm_jax.evaluation.selection import label_free
from mrm_jax.models.build import feature_spec
from mrm_jax.ops.mask import hidden_tokens
from mrm_jax.recipes import apply
from mrm_jax.registry import (
    DECODER_KINDS,
    ENCODER_KINDS,
    IMAGENET,
    OBJECTIVE_KINDS,
    DecoderKind,
    EncoderKind,
    InputStats,
    ObjectiveKind,
)
from mrm_jax.registry.table import installed
from mrm_jax.runs.fingerprint import feature_norms
from mrm_jax.runs.weights import published
from mrm_jax.train import optimizer
from mrm_jax.train import step as steps
from mrm_jax.types import SegOutput

KEY = np.array([0, 7], np.uint32)
PATCH, CROP = 7, (14, 21)
LEVELS = InputStats((127.0, 100.0, 20.0), (128.0, 64.0, 200.0))


class Patches(nn.Module):
    """One map, of patches of 7 px with learned positions: no stride is a power of two."""

    dim: int

    @nn.compact
    def __call__(self, image, mode):
        del mode
        batch, rows, columns = len(image), image.shape[1] // PATCH, image.shape[2] // PATCH
        whole = image[:, : rows * PATCH, : columns * PATCH]  # any size has to go through
        cells = whole.reshape(batch, rows, PATCH, columns, PATCH, 3)
        x = nn.Dense(self.dim, dtype=image.dtype)(cells.mean((2, 4)))
        place = self.param("position", nn.initializers.normal(0.02), (1, 1, 1, self.dim))
        return (jnp.tanh(x + place.astype(x.dtype)),)


def toy_encoder(name="toy", stats=LEVELS):
    return EncoderKind(
        name=name,
        module=lambda model, dtype: Patches(model.encoder.dims[0]),
        map_sizes=lambda encoder, height, width: ((height // PATCH, width // PATCH),),
        multiple=lambda encoder: PATCH,
        input=stats,
        variants={f"{name}_small": {"dims": (6,), "depths": (1,)}},
        shown=("dims",),
        undecayed="position",
        sharding=(("position", None),),
    )


def brightness(call, key):
    """How far the last map's mean is from 0."""
    del key
    loss = jnp.abs(call.maps[-1].mean())
    return loss, {"toy": loss}


TOY_OBJECTIVE = ObjectiveKind(name="toy", judge=brightness, passes=("source", "reconstructed"))


@pytest.fixture(scope="module")
def registered():
    pairs = (
        (ENCODER_KINDS, toy_encoder()),
        (ENCODER_KINDS, toy_encoder("imagenet", IMAGENET)),
        (OBJECTIVE_KINDS, TOY_OBJECTIVE),
    )
    for table, row in pairs:
        table.register(row)
    yield
    for table, row in pairs:
        table.remove(row.name)


def filled(program):
    """A state of small positive numbers in the middle of training, without compiling its start."""
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: rng.uniform(0, 0.1, leaf.shape).astype(leaf.dtype),
        jax.eval_shape(program.init, KEY),
    )
    return replace(state, root_key=KEY, step=np.int32(5))


def _config():
    start = Config(
        data=Data(
            classes=Classes(("a", "b", "c"), ((0, 0, 0),) * 3),
            source=Domain(kind="drawn"),
            target=Domain(kind="drawn"),
            crop=CROP,
        ),
        model=Model(decoder=Decoder(kind="deeplabv2", dilations=(1, 2))),
        method=Method(
            mrm=MRM(enabled=True, grid=(2, 3), dim=8, depth=1, heads=2),
            mim=MaskedImages(weight=1.0),
            objectives=(("toy", 0.5),),
        ),
    )
    config = apply(start, "dacs,mrm=true,encoder=toy_small")
    check_config(config)
    return config


def test_a_step_trains_a_registered_encoder_by_a_registered_objective(registered):
    config = _config()
    assert config.model.encoder == Encoder(kind="toy", dims=(6,), depths=(1,))
    assert published(config.model.encoder) == "toy_small"
    program, mesh = steps.build_step(config), sharding.mesh(1)
    assert program.networks.rebuilder.spec.sizes(28, 35) == ((4, 5),)
    assert program.networks.auxiliary["pixels"].cell == mim_block(config) == PATCH
    state = filled(program)
    rules = sharding.of_state(state, mesh)
    assert rules.params["segmentor"]["encoder"]["position"].is_fully_replicated
    groups = optimizer.groups(state.params, config)
    undecayed = {path for path, group in groups.items() if not group.decayed}
    assert undecayed == {"segmentor/encoder/position", "rebuilder/mask_token"}
    step = jax.jit(program.train_step, compiler_options=sharding.quick(mesh))
    batch = standin.batch(size=(2, *CROP))
    batch.source.label[:] %= 3
    new, metrics = step(state, program.frozen(config), batch)
    assert bool(metrics["finite"])
    ours = {name for name in metrics if name.endswith("/toy")}
    assert ours == {"source/toy", "reconstructed/toy"}
    parts = ("source/ce", "mixed/ce", "inpainted/pixels", "reconstructed/ce")
    total = sum(float(metrics[name]) for name in parts)
    total += 0.5 * sum(float(metrics[name]) for name in ours)
    np.testing.assert_allclose(metrics["total/loss"], total, rtol=1e-5)
    before, after = (x.params["segmentor"]["encoder"] for x in (state, new))
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert jax.tree.all(changed)


def test_a_crop_and_a_detail_have_to_fit_the_maps_of_the_registered_encoder(registered):
    config = _config()
    data = replace(config.data, crop=(16, 21))
    with refused("config.data.crop", (16, 21), way_out="Try 14"):
        check_config(replace(config, data=data))
    assert feature_spec(config.model.encoder).strides == (PATCH,)


NEEDED = {
    EncoderKind: {
        **{"name": "x", "module": "x:x", "map_sizes": max, "multiple": max, "input": IMAGENET}
    },
    DecoderKind: {"name": "x", "module": "x:x", "logits": 0, "rebuilt": None, "reads": None},
    ObjectiveKind: {"name": "x", "judge": "x:x"},
}


@pytest.mark.parametrize(
    ("kind", "missing"), [(kind, name) for kind, pieces in NEEDED.items() for name in pieces]
)
def test_a_registration_that_lacks_a_piece_is_one_error_that_names_it(kind, missing):
    pieces = {name: value for name, value in NEEDED[kind].items() if name != missing}
    with pytest.raises(UsageError) as error:
        kind(**pieces)
    doc = next(field.metadata["doc"] for field in fields(kind) if field.name == missing)
    assert f"lacks {missing}: {doc}." in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "stats", [InputStats((1, 2), (1, 1, 1)), InputStats((1, 2, 3), (1, 0, 1)), (1, 2, 3)]
)
def test_a_deviation_of_zero_or_a_colour_too_few_is_refused(stats):
    with pytest.raises(UsageError, match="has input"):
        toy_encoder(stats=stats)


@pytest.mark.parametrize(
    ("piece", "value", "message"),
    [
        ("shown", ("width",), "'wrong' has width in shown"),
        ("map_sizes", lambda *_: ((2, 2), (1, 1)), r"map_sizes of 7 x 7 px is \(\(2, 2\), \(1, 1"),
        ("map_sizes", lambda *_: ((0, 1),), "map_sizes of 7 x 7 px"),
        ("variants", {"wrong_small": {"width": 3}}, "its variant wrong_small has width"),
    ],
)
def test_pieces_that_do_not_fit_each_other_or_the_options_are_one_error(piece, value, message):
    ENCODER_KINDS.register(replace(toy_encoder("wrong"), **{piece: value}))
    try:
        with pytest.raises(UsageError, match=message):
            check_config(apply(Config(), "dacs,encoder=wrong_small"))
    finally:
        ENCODER_KINDS.remove("wrong")


def test_an_installed_package_may_register_what_a_run_names(monkeypatch):
    """`evaluate` and `predict` open a run without its config file."""
    entry = SimpleNamespace(load=lambda: ENCODER_KINDS.register(toy_encoder("installed")))
    groups = {"mrm_jax": [entry]}
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: groups[group])
    installed.cache_clear()
    try:
        assert ENCODER_KINDS["installed"].input == LEVELS
        with pytest.raises(UsageError, match="is 'another'; .* installed"):
            ENCODER_KINDS["another"]
    finally:
        ENCODER_KINDS.remove("installed")
        installed.cache_clear()


def test_what_is_registered_twice_or_not_at_all_is_refused(registered):
    with pytest.raises(UsageError, match="'toy' is registered already"):
        ENCODER_KINDS.register(toy_encoder())
    with pytest.raises(UsageError, match="'other': its variant toy_small is one of 'toy'"):
        ENCODER_KINDS.register(replace(toy_encoder(), name="other"))
    with pytest.raises(UsageError, match="is no DecoderKind"):
        DECODER_KINDS.register(TOY_OBJECTIVE)
    for part, name in (("encoder", "mitt"), ("decoder", "daformr")):
        model = replace(_config().model, **{part: replace(getattr(Model(), part), kind=name)})
        with refused(f"config.model.{part}.kind", name, way_out="Did you mean"):
            check_config(replace(_config(), model=model))


# Mean and deviation: two encoders that differ in nothing else.


def _pair(config):
    """The run with the encoder of `LEVELS`, and with that of ImageNet's."""
    for name in ("toy", "imagenet"):
        encoder = Encoder(kind=name, dims=(6,), depths=(1,))
        yield replace(config, model=replace(config.model, encoder=encoder))


def test_views_are_normalised_by_the_encoders_mean_and_shown_as_they_were(registered):
    """What is augmented, pasted and masked is the same picture, whatever it is normalised by."""
    batch = standin.batch()
    made = standin.config(kind="mic", mrm=False)
    method = replace(made.method, mim=MaskedImages(weight=1.0, block=2))
    panels = []
    for config in _pair(replace(made, method=method)):
        stats = ENCODER_KINDS[config.model.encoder.kind].input
        program = standin.program(config)
        state = filled(program)
        normal = program.normalise(state, batch)
        for ours, theirs in ((batch.source, normal.source), (batch.target, normal.target)):
            wanted = (ours.image - np.float32(stats.mean)) / np.float32(stats.std)
            np.testing.assert_allclose(theirs.image, wanted, atol=1e-5)
        frozen = program.frozen(config)
        inspect = jax.jit(program.inspect, compiler_options=sharding.quick(sharding.mesh(1)))
        panels.append(jax.tree.map(np.array, inspect(state, frozen, batch)))
        draws = program.draw(KEY, 5, batch.index)
        hide = np.asarray(hidden_tokens(draws.mask["masked"], method.mic.ratio, standin.CROP))
        assert hide.any()
        np.testing.assert_array_equal(
            panels[-1]["masked/image"][hide], np.broadcast_to(stats.grey, (hide.sum(), 3))
        )
        panels[-1]["masked/image"][hide] = 0
    for name in ("source/image", "target/image", "mixed/image", "masked/image"):
        first, second = (found[name].astype(int) for found in panels)
        assert np.abs(first - second).max() <= 1, name


class Colours(nn.Module):
    """A segmentor whose logits are the picture that it was given."""

    @nn.compact
    def __call__(self, image, *, mode, **_):
        del mode
        return SegOutput({"main": image}, ())


def test_evaluation_prediction_selection_and_fingerprint_normalise_by_the_encoders_mean(
    registered,
):
    made = standin.config(mrm=False)
    names = Classes(("r", "g", "b"), ((0, 0, 0),) * 3)
    made = replace(made, data=replace(made.data, classes=names))
    image = standin.batch().target
    found = []
    for config in _pair(made):
        stats = ENCODER_KINDS[config.model.encoder.kind].input
        normal = (image.image - np.float32(stats.mean)) / np.float32(stats.std)
        size = (image.image.shape[1], image.image.shape[2])
        ids, _ = TrainedNetwork(config, Colours(), {}).classified([image.image], size)
        np.testing.assert_array_equal(ids, normal.argmax(-1))
        some = {"params": {"unused": np.zeros(1, np.float32)}}
        scores = label_free(config, Colours(), {"student": some}, image)
        logs = np.asarray(jax.nn.log_softmax(normal))
        entropy = -(np.exp(logs) * logs).sum(-1).mean() / np.log(3)
        np.testing.assert_allclose(scores["entropy"], entropy, rtol=1e-4)
        dense = {"kernel": np.ones((3, 6), np.float32), "bias": np.zeros(6, np.float32)}
        tree = {"Dense_0": dense, "position": np.zeros((1, 1, 1, 6), np.float32)}
        cut = replace(config.model, dtype="float32")
        found.append(feature_norms(cut, {"params": {"encoder": tree}}))
    assert found[0] != found[1]


def test_pictures_are_padded_with_the_encoders_mean(registered):
    drawn = Domain(kind="drawn", count=2, size=(32, 64))
    data = Data(classes=labels.DRAWN, source=drawn, target=drawn, crop=(48, 80))
    for config in _pair(Config(data=data)):
        grey = ENCODER_KINDS[config.model.encoder.kind].input.grey
        config = replace(config, evaluation=replace(config.evaluation, selection_pictures=1))
        sample, crops = TrainingSamples(config)(0), selection_crops(config)
        for image in (sample["source_image"], sample["target_image"], crops.image[0]):
            assert (image[32:] == grey).all()
            assert (image[:, 64:] == grey).all()
            assert image[:32, :64].std() > 5
