"""DACS + MRM on drawn street scenes, on a CPU, in minutes. Drawn data: no benchmark.

    python -m mrm_jax.main --config configs/quickstart.py --workdir runs/quickstart

Arms of the comparison in docs/results.md: `:source_only`, `:source_augmented`, `:dacs`,
`:dacs,mrm=true` (the default) and `:target_only`.
"""

from mrm_jax import config, recipes
from mrm_jax.data import labels
from mrm_jax.options import to_config_dict

NETWORK = config.Model(
    encoder=config.Encoder(
        dims=(16, 32, 48, 64),
        depths=(1, 1, 2, 1),
        heads=(1, 2, 3, 4),
        sr_ratios=(8, 4, 2, 2),
        strides=(4, 2, 2, 1),
        drop_path=0.0,
    ),
    decoder=config.Decoder(channels=32, dilations=(1, 4)),
)


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
        model=NETWORK,
        method=config.Method(
            # The Rebuilder learns at 10/3 of the encoder's rate, as in the paper (2e-4 to 6e-5).
            mrm=config.MRM(grid=(6, 12), dim=64, depth=2, heads=4, learning_rate=20e-3 / 3),
        ),
        # A network from scratch: a higher rate than a pretrained one, and nearly one for all parts.
        optimizer=config.Optimizer(learning_rate=2e-3, decoder_multiplier=2.0),
        train=config.Train(
            steps=1500,
            log_every=25,
            eval_every=300,
            checkpoint_every=300,
            panels_every=300,
        ),
        evaluation=config.Evaluation(batch=10),
    )
    return to_config_dict(recipes.apply(base, text, default="dacs,mrm=true"))
