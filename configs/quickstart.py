"""DACS + MRM on drawn street scenes, on a CPU, in minutes. Drawn data: no benchmark.

    python -m mrm_jax.main --config configs/quickstart.py --workdir runs/quickstart

Arms of the comparison in docs/results.md: `:source_only`, `:source_augmented`, `:dacs`,
`:dacs,mrm=true` (the default) and `:target_only`. `:daformer`, `:hrda`, `:mic` and `:vfm` train as
well; the small network has no pretrained weights that daformer's feature distance could compare
with, and 1500 steps are too few for a slower teacher than dacs'.
"""

from dataclasses import replace

from mrm_jax import config, recipes
from mrm_jax.data import labels
from mrm_jax.options import to_config_dict


def get_config(text: str | None = None):
    """The run as a ConfigDict; `text` is what follows the colon, see mrm_jax/recipes.py."""
    base = config.Config(
        data=config.Data(
            classes=labels.DRAWN,
            source=config.Domain(kind="drawn", look="rendered"),
            target=config.Domain(kind="drawn", look="camera"),
            evaluation=config.Domain(kind="drawn", look="camera", split="val", count=100),
            crop=(96, 192),
            rare_class=config.RareClass(min_share=0.005),
            cache=True,
        ),
        method=config.Method(mrm=config.MRM(grid=(6, 12))),
        train=config.Train(
            steps=1500,
            log_every=25,
            eval_every=300,
            checkpoint_every=300,
            panels_every=300,
            pass_execution="looped",  # compiles a fourth faster; a step takes a tenth longer
        ),
        evaluation=config.Evaluation(batch=10),
    )
    small = recipes.small(base)
    run = recipes.apply(small, text, default="dacs,mrm=true")
    if run.method.feature_distance.weight > 0 and run.model.encoder == small.model.encoder:
        off = replace(run.method.feature_distance, weight=0.0)
        run = replace(run, method=replace(run.method, ema_decay=0.99, feature_distance=off))
    return to_config_dict(run)
