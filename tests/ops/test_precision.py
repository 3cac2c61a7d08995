"""How products of float32 are rounded is one option, which all of them follow."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrm_jax.command import load_config
from mrm_jax.evaluation import inference
from mrm_jax.evaluation.network import TrainedNetwork
from mrm_jax.train.step import build_step
from mrm_jax.types import Batch, Labelled, Unlabelled

TINY = Path(__file__).parents[2] / "configs" / "tiny.py"


def precisions(jaxpr):
    """The precisions of all products and convolutions, in every branch and loop."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            given = equation.params["precision"]
            found |= set(given) if isinstance(given, tuple) else {given}
        for value in jax.tree.leaves(tuple(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            found |= precisions(inner) if hasattr(inner, "eqns") else set()
    return found


EXACT = jax.lax.Precision.HIGHEST


# Some sums that are written as products are exact in any case.
@pytest.fixture(params=[("default", {None, EXACT}), ("highest", {EXACT})])
def asked(request):
    name, expected = request.param
    words = [f"--config={TINY}:dacs,mrm=true,crop=32", f"--config.model.precision={name}"]
    return load_config(words), expected


def test_a_step_and_its_gradients_multiply_as_the_option_says(asked):
    config, expected = asked
    program = build_step(config)
    key = jax.random.key_data(jax.random.key(0))
    state = jax.eval_shape(program.init, key)
    image, label = np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 32, 32), np.uint8)
    batch = Batch(Labelled(image, label), Unlabelled(image, label), np.arange(2, dtype=np.int32))
    frozen = jax.eval_shape(lambda: program.frozen(config, None))
    assert precisions(jax.make_jaxpr(program.train_step)(state, frozen, batch)) == expected


@pytest.mark.parametrize(("name", "expected"), [("default", None), ("highest", "highest")])
def test_a_trained_network_multiplies_as_its_option_says(monkeypatch, name, expected):
    config = load_config([f"--config={TINY}", f"--config.model.precision={name}"])
    seen = []

    def maps(*_, **__):
        seen.append(jax.config.jax_default_matmul_precision)
        return jnp.zeros((1, 8, 16, len(config.data.classes.names)))

    monkeypatch.setattr(inference, "maps", maps)
    network = TrainedNetwork(config, None, {})
    network.classified([np.zeros((1, 32, 64, 3), np.uint8)], (32, 64))
    assert set(seen) == {expected}
