"""Objectives that are registered from outside the package."""

import jax.numpy as jnp
import pytest
from refusals import refused

from mrm_jax.checks.alternatives import check_alternatives
from mrm_jax.config import MRM, Config, Method
from mrm_jax.errors import UsageError
from mrm_jax.registry import OBJECTIVE_KINDS, ObjectiveKind
from mrm_jax.uda.methods import passes


def half(call, key):
    del call, key
    return jnp.float32(0.5), {"half": jnp.float32(0.5)}


@pytest.fixture
def toy():
    yield OBJECTIVE_KINDS.register(
        ObjectiveKind(name="toy", judge=half, passes=("source", "reconstructed"), target=True)
    )
    OBJECTIVE_KINDS.remove("toy")


def test_a_registered_objective_judges_the_passes_it_names_rebuilt_ones_too(toy):
    rows = passes(Method(mrm=MRM(enabled=True), objectives=(("toy", 2.0),)))
    assert [len(row.objectives) for row in rows] == [2, 1, 2]
    for row in (rows[0], rows[2]):
        loss, metrics = row.objectives[1](None, None)
        assert (float(loss), float(metrics["half"])) == (1.0, 0.5)


def test_a_registered_objective_may_be_mrms_target(toy):
    rows = passes(Method(mrm=MRM(enabled=True, target="toy")))
    assert [row.objectives == (half,) for row in rows] == [False, False, True]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Method(objectives=(("nothing", 1.0),)), "method.objectives is 'nothing'.* contrast"),
        (Method(objectives=(("contrast", 1.0),)), "method.objectives has 'contrast'"),
        (Method(objectives=(("toy", -1.0),)), "'toy' the weight -1.0"),
        (Method(objectives=(("toy", 1.0), ("toy", 2.0))), "has toy, toy; give each name once"),
        (Method(mrm=MRM(enabled=True, target="clases")), "mrm.target is 'clases'.*'classes'"),
        (Method(mrm=MRM(enabled=True, target="contrast")), "mrm.target is contrast"),
    ],
)
def test_an_objective_that_cannot_be_added_is_one_error(method, message, toy):
    with pytest.raises(UsageError, match=message):
        check_alternatives(Config(method=method))


def test_an_objective_of_which_no_pass_runs_is_an_error():
    row = ObjectiveKind(name="lost", judge=half, passes=("mixd",))
    OBJECTIVE_KINDS.register(row)
    try:
        with refused("config.method.objectives", "lost"):
            passes(Method(objectives=(("lost", 1.0),)))
    finally:
        OBJECTIVE_KINDS.remove("lost")
