"""Seconds instead of minutes, for tests and for trying a command: a toy network on toy scenes.

python -m mrm_jax.main --config configs/tiny.py --workdir runs/tiny
"""

from mrm_jax import config, recipes
from mrm_jax.data import labels
from mrm_jax.options import to_config_dict


def get_config(text: str | None = None):
    """The run as a ConfigDict; `text` is what follows the colon, see mrm_jax/recipes.py."""
    size = (32, 64)
    base = config.Config(
        data=config.Data(
            classes=labels.DRAWN,
            source=config.Domain(kind="drawn", look="rendered", count=8, size=size),
            target=config.Domain(kind="drawn", look="camera", count=8, size=size),
            evaluation=config.Domain(kind="drawn", look="camera", split="val", count=3, size=size),
            crop=size,
            rare_class=config.RareClass(min_share=0.005),
            cache=True,
        ),
        model=config.Model(
            encoder=config.Encoder(
                dims=(8, 16),
                depths=(1, 1),
                heads=(1, 2),
                sr_ratios=(4, 1),
                strides=(4, 2),
                mlp_ratios=(2, 2),
                drop_path=0.0,
            ),
            decoder=config.Decoder(channels=8, fusion="conv1"),
        ),
        method=config.Method(
            mrm=config.MRM(grid=(4, 8), dim=16, depth=1, heads=2, learning_rate=2e-3)
        ),
        optimizer=config.Optimizer(learning_rate=1e-3, decoder_multiplier=2.0),
        train=config.Train(
            optimise=False, steps=6, log_every=1, eval_every=3, checkpoint_every=2, panels_every=3
        ),
        evaluation=config.Evaluation(batch=3),
    )
    return to_config_dict(recipes.apply(base, text, default="dacs,mrm=true"))
