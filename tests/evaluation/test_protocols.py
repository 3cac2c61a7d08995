"""The benchmarks count what their papers count, and say what their papers leave to the reader."""

from pathlib import Path

import numpy as np
import pytest

from mrm_jax.config import evaluation_domain
from mrm_jax.evaluation import confusion, protocols
from mrm_jax.main import load_config

CONFIGS = Path(__file__).parents[2] / "configs"


def described(name):
    weights = "--config.model.encoder.weights=x"
    config = load_config([f"--config={CONFIGS / name}.py:hrda", weights])
    how = {"network": "student", "pictures": 1, "input_sizes": set(), "label_sizes": set()}
    return config, protocols.protocol_of(config, **how)


@pytest.mark.parametrize(
    ("name", "counted", "also"),
    [
        ("gta_to_cityscapes", 19, {}),
        ("synthia_to_cityscapes", 16, {"mIoU13": 13}),
        ("cityscapes_to_acdc", 19, {}),
        ("cityscapes_to_dark_zurich", 19, {}),
    ],
)
def test_a_benchmark_counts_the_classes_of_its_papers(name, counted, also):
    config, protocol = described(name)
    assert len(protocol.classes_counted) == counted
    assert {row[0]: len(row) - 1 for row in protocol.also} == also
    assert protocol.crop == (1024, 1024)
    hidden = "val, where papers report the hidden test split"
    assert (hidden in protocol.sentence()) == (
        name in ("cityscapes_to_acdc", "cityscapes_to_dark_zurich")
    )
    assert ("margins of 30, 240, 30, 30 px" in protocol.sentence()) == name.endswith(
        "to_cityscapes"
    )
    assert evaluation_domain(config).split == "val"


def test_camvid_counts_its_11_classes():
    config = load_config([f"--config={CONFIGS / 'camvid_day_to_dusk.py'}"])
    assert len(protocols.counted(config)) == 11


def test_16_and_13_classes_are_counted_and_not_rescaled():
    """A network that sees terrain where there is none loses in the classes it takes it from; the
    mean of 19 classes times 19 / 16 would count that IoU of 0 as well."""
    config, _ = described("synthia_to_cityscapes")
    rng = np.random.default_rng(0)
    table = rng.integers(1, 50, (19, 19)) + np.diag(rng.integers(100, 900, 19))
    names = list(config.data.classes.names)
    for lacking in ("terrain", "truck", "train"):
        table[names.index(lacking)] = 0
    by_hand = {}
    for name in names:
        i = names.index(name)
        by_hand[name] = table[i, i] / (table[i].sum() + table[:, i].sum() - table[i, i])
    lacking = {"terrain", "truck", "train"}
    sixteen = np.mean([by_hand[n] for n in names if n not in lacking])
    few = lacking | {"wall", "fence", "pole"}
    thirteen = np.mean([by_hand[n] for n in names if n not in few])
    found = confusion.scores(table, protocols.counted(config)).mean_iou
    assert found == pytest.approx(sixteen)
    ((_, *names13),) = config.evaluation.also
    found = confusion.scores(table, protocols.train_ids(config, tuple(names13))).mean_iou
    assert found == pytest.approx(thirteen)
