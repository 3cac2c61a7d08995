"""The public benchmarks' configs, against what the papers and their released configs train with."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from mrm_jax import recipes
from mrm_jax.config import MIC, Config, Evaluation, detail_crop, map_sizes, mic_block
from mrm_jax.data import transforms
from mrm_jax.main import load_config, split_config_flags
from mrm_jax.train import optimizer
from mrm_jax.train.step import build_step

CONFIGS = Path(__file__).parents[1] / "configs"


def made(name: str, text: str) -> Config:
    weights = "--config.model.encoder.weights=weights/encoder"
    config = load_config([f"--config={CONFIGS / name}.py:{text}", weights])
    assert config is not None
    return config


# Config, recipe -> boxes of source and target, margins of the target.
DATA = {
    ("gta_to_cityscapes", "dacs"): ((1280, 720), (1024, 512), (0, 0, 0, 0)),
    ("gta_to_cityscapes", "daformer"): ((1280, 720), (1024, 512), (30, 240, 0, 0)),
    ("gta_to_cityscapes", "mic"): ((2560, 1440), (2048, 1024), (30, 240, 30, 30)),
    ("synthia_to_cityscapes", "hrda"): ((2560, 1520), (2048, 1024), (30, 240, 30, 30)),
    ("cityscapes_to_acdc", "daformer"): ((1024, 512), (960, 540), (0, 0, 0, 0)),
    ("cityscapes_to_acdc", "hrda"): ((2048, 1024), (1920, 1080), (0, 0, 0, 0)),
    ("cityscapes_to_dark_zurich", "mic"): ((2048, 1024), (1920, 1080), (0, 0, 0, 0)),
}


@pytest.mark.parametrize(("name", "recipe"), DATA)
def test_pictures_are_fitted_and_margins_set_as_published(name, recipe):
    config = made(name, f"{recipe},mrm=true")
    source, target = config.data.source, config.data.target
    assert (source.resize, target.resize, target.margins) == DATA[name, recipe]
    assert source.category_limit == 0.75
    assert target.category_limit == 1.0
    assert config.data.evaluation.resize == target.resize
    assert config.train.steps == 40_000
    assert config.train.batch == 2


MARGINS = {
    "dacs": (0, 0, 0, 0),
    "daformer": (30, 240, 0, 0),  # 15 and 120 rows of the 512 that it is trained on
    "hrda": (30, 240, 30, 30),
    "mic": (30, 240, 30, 30),
}


@pytest.mark.parametrize("recipe", MARGINS)
def test_margins_are_those_of_the_method_on_cityscapes_and_none_in_adverse_conditions(recipe):
    for name in ("gta_to_cityscapes", "synthia_to_cityscapes"):
        assert made(name, recipe).data.target.margins == MARGINS[recipe]
    for name in ("cityscapes_to_acdc", "cityscapes_to_dark_zurich"):
        assert made(name, recipe).data.target.margins == (0, 0, 0, 0)


@pytest.mark.parametrize("recipe", ["dacs", "daformer", "hrda", "mic"])
def test_networks_crops_and_rates_are_those_of_the_method(recipe):
    config = made("gta_to_cityscapes", recipe)
    high = recipe in ("hrda", "mic")
    assert config.model.encoder.kind == ("resnet" if recipe == "dacs" else "mit")
    assert config.model.decoder.kind == ("deeplabv2" if recipe == "dacs" else "daformer")
    assert config.data.crop == ((1024, 1024) if high else (512, 512))
    assert config.model.multires.enabled == high
    assert detail_crop(config) == ((512, 512) if high else (256, 256))
    assert config.evaluation.mode == ("slide" if high else "whole")
    assert config.method.ema_decay == (0.99 if recipe == "dacs" else 0.999)
    assert config.method.feature_distance.weight == (0 if recipe == "dacs" else 0.005)
    assert config.data.rare_class.enabled == (recipe != "dacs")
    assert config.data.rare_class.crop_share == (2.0 if high else 0.5)
    if recipe == "mic":
        assert config.method.mic == MIC()
        assert mic_block(config) == 64


def test_a_real_source_is_masked_beside_the_target():
    assert made("cityscapes_to_acdc", "mic").method.mic.images == "both"
    assert made("gta_to_cityscapes", "mic").method.mic.images == "target"


def test_synthia_is_scored_on_the_classes_it_has():
    config = made("synthia_to_cityscapes", "dacs")
    assert len(config.evaluation.classes) == 16
    assert set(config.data.classes.names) - set(config.evaluation.classes) == {
        *("terrain", "truck", "train")
    }
    assert config.data.rare_class.on_missing == "warn"


@pytest.mark.parametrize("text", ["vfm", "vfm,mrm=true,encoder=dinov2_l14"])
def test_vfm_is_trained_as_its_released_code_trains(text):
    """github.com/tue-mps/vfm-uda: uda_vit_vanilla.yaml, UDAVITGeneric, RareClassSamplerDataset,
    UDATransform and the data module's defaults."""
    config = made("gta_to_cityscapes", text)
    data, method, options = config.data, config.method, config.optimizer
    assert (config.train.steps, config.train.batch, data.crop) == (40_000, 8, (1024, 1024))
    # scale = 1440 / short side, sides rounded; 1024 of Cityscapes.
    for domain, size, wanted in (
        (data.source, (1052, 1914), (1440, 2620)),
        (data.source, (1080, 1920), (1440, 2560)),
        (data.target, (1024, 2048), (1024, 2048)),
        (data.evaluation, (1024, 2048), (1024, 2048)),
    ):
        assert transforms.fitted_size(*size, domain.resize) == wanted
    assert transforms.fitted_size(1052, 1914, data.source.resize, 1.1) == (1584, 2882)
    assert data.scale == (0.9, 1.1)
    height, width = 1024, 2048
    shares = (0.03 * height, 0.25 * height, 0.03 * width, 0.03 * width)
    assert data.target.margins == tuple(map(int, shares))
    rare = data.rare_class
    assert (rare.enabled, rare.temperature, rare.min_pixels, rare.tries) == (True, 0.05, 3000, 20)
    assert rare.crop_share == 1024 * 1024 / (512 * 1024)
    assert data.source.category_limit == 0.75
    assert (method.ema_decay, method.teacher_flip, method.threshold) == (0.999, True, 0.968)
    assert (method.weight_over, method.mix_classes_of) == ("batch", "batch")
    assert (method.mic.weight, method.mic.images, method.mic.ratio) == (1, "target", 0.7)
    assert method.feature_distance.weight == 0
    assert options.learning_rate * options.decoder_multiplier == pytest.approx(1.41421356e-4)
    assert (options.decoder_multiplier, options.weight_decay) == (10, 0.01)
    assert (options.decay_encoder_norms, options.layer_decay) == (True, 1)
    assert options.warmup * config.train.steps == 1500
    assert (options.warmup_start, options.warmup_shape) == (0.001, "linear")
    encoder = config.model.encoder
    assert (encoder.resize, encoder.positions, encoder.drop_path) == ("1.1", "meta", 0)
    assert map_sizes(encoder, *data.crop) == ((80, 80),)
    assert config.model.decoder.kind == "vit_light"
    assert config.evaluation == Evaluation(
        mode="slide", window=(1024, 1024), stride=(512, 512), blend="probabilities"
    )


def test_every_parameter_of_vfm_is_decayed():
    config = made("gta_to_cityscapes", "vfm,encoder=dinov2_s14")
    params = jax.eval_shape(build_step(config).init, np.zeros(2, np.uint32)).params
    found = optimizer.groups(params, config)
    assert len(found) == len(jax.tree.leaves(params))
    assert all(group.decayed for group in found.values())


# Config -> (method, encoder, decoder, published mIoU, that with MRM) of the commands in its header.
# Sources: the papers of the methods; MRM's tables of hosts and of architectures.
PUBLISHED = {
    "gta_to_cityscapes": [
        ("dacs", "resnet101", "deeplabv2", 52.1, 55.9),
        ("daformer", "mit_b5", "daformer", 68.3, 70.3),
        ("hrda", "mit_b5", "daformer", 73.8, 75.4),
        ("mic", "mit_b5", "daformer", 75.9, 77.5),
        ("dacs", "resnet50", "deeplabv2", 52.0, 55.1),
        ("dacs", "resnet101", "deeplabv3plus", 54.7, 59.3),
        ("mic", "resnet101", "deeplabv2", 64.2, 67.1),
        ("daformer", "mit_b2", "daformer", 64.2, 66.3),
        ("mic", "mit_b3", "daformer", 73.6, 75.8),
        ("vfm", "dinov2_b14", "vit_light", 77.1),
        ("vfm", "dinov2_l14", "vit_light", 78.4),
    ],
    "synthia_to_cityscapes": [
        ("dacs", "resnet101", "deeplabv2", 48.3, 55.8),
        ("daformer", "mit_b5", "daformer", 60.9, 62.6),
        ("hrda", "mit_b5", "daformer", 65.8, 67.1),
        ("mic", "mit_b5", "daformer", 67.3, 68.1),
        ("vfm", "dinov2_b14", "vit_light"),
    ],
    "cityscapes_to_acdc": [
        ("daformer", "mit_b5", "daformer", 55.4),
        ("hrda", "mit_b5", "daformer", 68.0),
        ("mic", "mit_b5", "daformer", 70.4),
    ],
    "cityscapes_to_dark_zurich": [
        ("daformer", "mit_b5", "daformer", 53.8),
        ("hrda", "mit_b5", "daformer", 55.9),
        ("mic", "mit_b5", "daformer", 60.2),
    ],
}


def commands(name: str) -> list[tuple[list[float], list[str]]]:
    """(figures, words of the command) of every command in a config's header."""
    doc = ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text())) or ""
    found = re.findall(r"# [^:]+: (.+)\n +python -m mrm_jax\.main (.+)", doc)
    return [([float(x) for x in re.findall(r"[0-9.]+", said)], c.split()) for said, c in found]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_commands_of_a_header_are_the_published_rows(name, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    assert len(commands(name)) == len(PUBLISHED[name])
    workdirs = set()
    for (figures, words), row in zip(commands(name), PUBLISHED[name], strict=True):
        method, encoder, decoder, *published = row
        given, others = split_config_flags(words)
        assert any(f"configs/{name}.py:" in word for word in given)
        config = load_config(given)
        assert config is not None
        assert figures == published
        vfm = method == "vfm"
        assert config.method.kind == ("mic" if vfm else method)
        assert config.method.mrm.enabled == (len(published) == 2)
        assert config.model.encoder.weights == f"weights/{encoder}"
        named = replace(recipes.ENCODERS[encoder], resize="1.1" if vfm else "native")
        assert replace(config.model.encoder, weights=None) == named
        assert config.model.decoder == recipes.DECODERS[decoder]
        assert config.model.multires.enabled == (method in ("hrda", "mic"))
        workdirs.add(" ".join(others))
    assert len(workdirs) == len(PUBLISHED[name])


@pytest.mark.parametrize("mrm", ["", ",mrm=true"])
@pytest.mark.parametrize("recipe", ["dacs", "daformer", "hrda", "mic"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_recipe_has_its_networks_with_and_without_mrm(name, recipe, mrm):
    config = made(name, recipe + mrm)
    encoder, decoder = ("resnet101", "deeplabv2") if recipe == "dacs" else ("mit_b5", "daformer")
    assert config.method.kind == recipe
    assert config.method.mrm.enabled == bool(mrm)
    assert replace(config.model.encoder, weights=None) == recipes.ENCODERS[encoder]
    assert config.model.decoder == recipes.DECODERS[decoder]
