"""Passes on parts of a batch give the losses and gradients of all of it, whatever a loss counts:
pixels, cells of some classes, or what is hidden."""

from dataclasses import replace

import jax
import narrow
import numpy as np
from compiler import QUICK

from mrm_jax import recipes
from mrm_jax.config import Contrast, Encoder, MaskedImages
from mrm_jax.train.executions import accumulate
from mrm_jax.uda.methods import passes

# No BatchNorm (DeepLabV2 on MiT has none) and nothing dropped: those see one part at a time.
ENCODER = Encoder(
    "mit", (8,), (1,), (4,), heads=(2,), sr_ratios=(2,), mlp_ratios=(1,), drop_path=0.0
)


def _config():
    row = narrow.Row("mit", "deeplabv2", hrda=False, mrm="auto", dropping=False)
    made = recipes.apply(narrow.config(row, encoder=ENCODER), "daformer,mrm=true")
    method = replace(
        made.method,
        feature_distance=replace(made.method.feature_distance, classes=("class1", "class2")),
        contrast=Contrast(weight=0.1, prototypes=2, dim=8),
        mim=MaskedImages(weight=0.3, block=8),
        mrm=replace(made.method.mrm, target="student_features"),
    )
    return replace(made, method=method)


def test_parts_of_a_batch_give_the_losses_and_gradients_of_the_whole():
    made = _config()
    rows = passes(made.method, made.data.classes.names)
    views = narrow.views(made)
    # Parts that count differently much: one picture without cells of the classes, another without
    # anything hidden.
    source, label = views["source"], np.array(views["source"].label)
    label[0] = 0
    anchor = np.random.default_rng(3).normal(size=(narrow.BATCH, 8, 8, 8)).astype(np.float32)
    views["source"] = replace(source, label=label, anchor=anchor)
    params, stats = narrow.variables(made)
    draws = narrow.draws(made, rows)
    draws.mask["reconstructed"][1] = 1.0
    draws.mask["inpainted"] = np.random.default_rng(4).uniform(0, 1, (narrow.BATCH, 4, 4))
    draws.mask["inpainted"] = draws.mask["inpainted"].astype(np.float32)

    def every(params, stats, views, draws):
        shared = narrow.shared(made, stats, draws)
        return [
            accumulate(shared, rows, params, views, execution, parts, unroll=unroll)
            for execution, parts, unroll in (
                *(("sequential", 1, True), ("sequential", 3, False)),
                ("looped", 3, False),
            )
        ]

    compiled = jax.jit(every, compiler_options=QUICK)
    whole, *in_parts = jax.device_get(compiled(params, stats, views, draws))
    assert {"source/feature_distance", "mixed/contrast", "inpainted/pixels"} < set(whole[1])
    assert "reconstructed/features" in whole[1]
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole[0]))
    for part in in_parts:
        for a, b in zip(jax.tree.leaves(whole[0]), jax.tree.leaves(part[0]), strict=True):
            # The same sums in another order.
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-4 * max(np.abs(a).max(), largest / 99))
        for name, value in whole[1].items():
            np.testing.assert_allclose(part[1][name], value, rtol=1e-5, err_msg=name)
