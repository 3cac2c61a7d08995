"""The public benchmarks' configs, against what the papers and their released configs train with."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mrm_jax import recipes
from mrm_jax.config import MIC, Config, detail_crop, mic_block
from mrm_jax.main import load_config, split_config_flags

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
    ],
    "synthia_to_cityscapes": [
        ("dacs", "resnet101", "deeplabv2", 48.3, 55.8),
        ("daformer", "mit_b5", "daformer", 60.9, 62.6),
        ("hrda", "mit_b5", "daformer", 65.8, 67.1),
        ("mic", "mit_b5", "daformer", 67.3, 68.1),
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
        assert config.method.kind == method
        assert config.method.mrm.enabled == (len(published) == 2)
        assert config.model.encoder.weights == f"weights/{encoder}"
        assert replace(config.model.encoder, weights=None) == recipes.ENCODERS[encoder]
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
