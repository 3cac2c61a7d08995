"""DACS + MRM on drawn street scenes, on a CPU, in minutes. Drawn data: no benchmark.

    python -m mrm_jax.main --config configs/quickstart.py --workdir runs/quickstart

Arms of the comparison in docs/results.md: `:source_only`, `:source_augmented`, `:dacs`,
`:dacs,mrm=true` (the default) and `:target_only`.
"""

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
            cache=True,
        ),
        method=config.Method(mrm=config.MRM(grid=(6, 12))),
        train=config.Train(
            steps=1500,
            log_every=25,
            eval_every=300,
            checkpoint_every=300,
            panels_every=300,
        ),
        evaluation=config.Evaluation(batch=10),
    )
    return to_config_dict(recipes.apply(recipes.small(base), text, default="dacs,mrm=true"))
