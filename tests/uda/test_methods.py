"""The table of methods."""

import pytest

from mrm_jax.config import METHODS, MRM, Method
from mrm_jax.uda.methods import has_teacher, passes


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
    assert all(row.transform == "rebuild" and row.weight == "mrm_weight" for row in found[2:])


def test_only_adapting_methods_keep_a_teacher():
    assert [has_teacher(Method(kind=kind)) for kind in METHODS] == [False, False, True]
