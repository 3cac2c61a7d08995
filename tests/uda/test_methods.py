"""The table of methods."""

import pytest

from mrm_jax.config import METHODS, MRM, FeatureDistance, Method
from mrm_jax.uda import methods
from mrm_jax.uda.methods import has_teacher, looks_at_target, passes


def _names(**fields):
    return [row.name for row in passes(Method(**fields))]


def test_every_method_starts_from_the_source():
    for kind in METHODS:
        assert _names(kind=kind)[0] == "source"
    assert _names(kind="dacs") == ["source", "mixed"]
    assert _names(kind="source_only", augmented_source=True) == ["source", "augmented"]


@pytest.mark.parametrize(
    ("images", "rows"),
    [
        ("target", [("reconstructed", "target")]),
        ("source", [("reconstructed_source", "source")]),
        ("both", [("reconstructed_source", "source"), ("reconstructed_target", "target")]),
    ],
)
def test_mrm_adds_rebuilt_rows_after_all_others(images, rows):
    found = passes(Method(mrm=MRM(enabled=True, images=images)))
    assert [row.name for row in found[:2]] == ["source", "mixed"]
    assert [(row.name, row.view) for row in found[2:]] == rows
    assert all(
        row.transform == "rebuild" and row.weight == "method.mrm.weight" for row in found[2:]
    )


def test_mrm_may_look_at_strongly_augmented_pictures():
    for images, views in (
        ("target", ["augmented_target"]),
        ("source", ["augmented"]),
        ("both", ["augmented", "augmented_target"]),
    ):
        clean, other = (
            passes(Method(mrm=MRM(enabled=True, images=images, image=image)))[2:]
            for image in ("clean", "augmented")
        )
        assert [row.view for row in other] == views
        assert [row.name for row in other] == [row.name for row in clean]


def test_only_adapting_methods_keep_a_teacher():
    without = [kind for kind in METHODS if not has_teacher(Method(kind=kind))]
    assert without == ["source_only", "target_only"]


def test_whether_a_step_needs_the_target_follows_from_its_passes(monkeypatch):
    without = [kind for kind in METHODS if not looks_at_target(Method(kind=kind))]
    assert without == ["source_only", "target_only"]
    assert not looks_at_target(Method(kind="source_only", augmented_source=True))
    rows = (methods.SOURCE, methods.INPAINTED)
    monkeypatch.setitem(methods._BASE, "source_only", rows)
    assert looks_at_target(Method(kind="source_only"))


def test_mic_adds_a_masked_row_before_the_rebuilt_one():
    assert _names(kind="mic") == ["source", "mixed", "masked"]
    assert _names(kind="mic", mrm=MRM(enabled=True))[2:] == ["masked", "reconstructed"]


def test_the_feature_distance_judges_the_source_alone_by_the_classes_of_the_table():
    names = ("road", "car", "sky", "person")
    method = Method(kind="daformer", feature_distance=FeatureDistance(weight=0.005))
    rows = passes(method, names)
    assert [len(row.objectives) for row in rows] == [2, 1]
    assert rows[0].objectives[1].keywords["classes"] == (1, 3)
    assert all(len(row.objectives) == 1 for row in passes(Method(kind="daformer"), names))
