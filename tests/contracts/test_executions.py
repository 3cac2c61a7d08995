"""All ways of running the passes give equal losses and gradients for every method, with all that
could tell them apart switched on: drop-path, dropout, BatchNorm, MRM, HRDA's two resolutions."""

from dataclasses import replace

import jax
import narrow
import numpy as np
import pytest
from compiler import QUICK

from mrm_jax import recipes
from mrm_jax.config import Encoder
from mrm_jax.train.executions import accumulate
from mrm_jax.uda.methods import passes

# One stage of two blocks, of which the second is dropped, run as a loop: it compiles in seconds.
ENCODER = Encoder(
    "mit", (8,), (2,), (4,), heads=(2,), sr_ratios=(2,), mlp_ratios=(1,), drop_path=0.3
)
HRDA = ("hrda", "mic")


def _config(name):
    row = narrow.Row("mit", "conv1", name in HRDA, "auto", dropping=True)
    made = narrow.config(row, encoder=ENCODER, unroll=False)
    made = recipes.apply(made, f"{name},mrm=true")
    distance = replace(made.method.feature_distance, classes=("class1", "class2"))
    return replace(made, method=replace(made.method, feature_distance=distance))


def _views(made):
    """Noise; the source with the map that a frozen encoder would make of it."""
    views, others = narrow.views(made), narrow.views(made, seed=2)
    anchor = np.random.default_rng(3).normal(size=(narrow.BATCH, 8, 8, 8)).astype(np.float32)
    source = replace(views["source"], anchor=anchor)
    return views | {"source": source, "masked": others["target"]}


@pytest.mark.parametrize("name", ["dacs", "daformer", "hrda", "mic"])
def test_passes_give_equal_losses_and_gradients_however_they_are_run(name):
    made = _config(name)
    assert made.model.multires.enabled == (name in HRDA)
    rows, views = passes(made.method, made.data.classes.names), _views(made)
    params, stats = narrow.variables(made)
    draws = narrow.draws(made, rows)

    def all_three(params, stats, views, draws):
        shared = narrow.shared(made, stats, draws)
        return [
            accumulate(shared, rows, params, views, execution)
            for execution in ("sequential", "looped", "stacked")
        ]

    compiled = jax.jit(all_three, compiler_options=QUICK)
    one, *others = jax.device_get(compiled(params, stats, views, draws))
    expected = {"masked"} if name == "mic" else set()
    names = {key.split("/")[0] for key in one[1]}
    assert names == {"source", "mixed", "reconstructed", "total"} | expected
    assert ("source/feature_distance" in one[1]) == (name != "dacs")
    # The same sums in another order. Gradients that are all rounding, as that of a bias before a
    # BatchNorm, are measured against the largest of all.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one[0]))
    for other in others:
        for first, second, floor in zip(one, other, (1e-2 * largest, 0, 1e-2), strict=True):
            assert jax.tree.structure(first) == jax.tree.structure(second)
            for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
                np.testing.assert_allclose(b, a, rtol=0, atol=1e-4 * max(np.abs(a).max(), floor))
