"""CamVid, day to dusk: real pictures, small enough for a CPU.

    python -m mrm_jax.main --config configs/camvid_day_to_dusk.py --workdir runs/camvid \
        --config.data.source.path=CAMVID --config.data.target.path=CAMVID

Source: the labelled day drives; target: the unlabelled dusk drive; scored on a later stretch of
that drive. CAMVID is a folder with images/<split>/<stem>.jpg, labels/<split>/<stem>.png (train ids
of Cityscapes) and splits/{day_train,dusk_train,dusk_test}.txt; docs/data.md says how to make it.
The network is small and starts from random weights: this shows that learning works on real
pictures, not what a pretrained network reaches (figures: docs/results.md).
Recipes: `:source_only`, `:source_augmented`, `:dacs`, `:dacs,mrm=true` (default), `:daformer`,
`:target_only`. Without a pretrained encoder daformer's feature distance is off, and its teacher
decays as dacs' does. Several seeds of them, all from the same weights of the day drives:

    python -m mrm_jax.main ablate --config configs/camvid_day_to_dusk.py --arms pretraining \
        --seeds 1 --workdir runs/camvid
    python -m mrm_jax.main ablate --config configs/camvid_day_to_dusk.py --arms methods \
        --seeds 3 --workdir runs/camvid
"""

from dataclasses import replace

from mrm_jax import config, recipes
from mrm_jax.arms import Arm
from mrm_jax.data import labels
from mrm_jax.options import to_config_dict


def _arm(name: str, text: str = "", against: str = "") -> Arm:
    """An arm that goes on from the same source-only weights, at half their rate."""
    flags = (
        "train.init_from={workdir}/pretraining/seed0",
        "train.steps=150",
        "train.eval_every=50",
        "optimizer.learning_rate=1e-3",
        "method.mrm.learning_rate=3.33e-3",
    )
    return Arm(name, text, tuple(f"--config.{flag}" for flag in flags), against)


ARMS = {
    "pretraining": (Arm("pretraining", "source_only"),),
    "methods": (
        _arm("source_only"),
        _arm("dacs", against="source_only"),
        _arm("dacs + mrm", "dacs,mrm=true", against="dacs"),
        _arm("daformer", against="dacs"),
        _arm("daformer + mrm", "daformer,mrm=true", against="daformer"),
    ),
}
"""Sets of arms by the name that `ablate --arms` takes."""


def domain(listing: str) -> config.Domain:
    """A list of CamVid frames, fitted into 256 x 192 px."""
    return config.Domain(
        kind="folder",
        path="data/camvid",
        images="images",
        image_suffix=".jpg",
        labels="labels",
        label_suffix=".png",
        listing=f"splits/{listing}.txt",
        split=listing,  # of the set that `prepare camvid` writes
        raw_ids=labels.CAMVID_IDS,
        resize=(256, 192),
    )


def day_to_dusk(crop: tuple[int, int]) -> config.Data:
    """Day drives as the source, the dusk drive as the target, scored on its later part."""
    return config.Data(
        classes=labels.CAMVID,
        source=domain("day_train"),
        target=domain("dusk_train"),
        evaluation=domain("dusk_test"),
        crop=crop,
        rare_class=config.RareClass(min_share=0.005),
        cache=True,
    )


def get_config(text: str | None = None):
    """The run as a ConfigDict; `text` is what follows the colon, see mrm_jax/recipes.py."""
    base = config.Config(
        data=day_to_dusk(crop=(160, 208)),
        model=config.Model(
            encoder=config.Encoder(
                dims=(16, 32, 64, 96),
                depths=(1, 1, 2, 1),
                heads=(1, 2, 4, 4),
                sr_ratios=(8, 4, 2, 2),
                strides=(4, 2, 2, 1),
                drop_path=0.0,
            ),
            decoder=config.Decoder(channels=48, dilations=(1, 3, 6)),
        ),
        method=config.Method(
            mrm=config.MRM(grid=(10, 13), dim=96, depth=2, heads=4, learning_rate=20e-3 / 3),
        ),
        optimizer=config.Optimizer(learning_rate=2e-3, decoder_multiplier=2.0),
        train=config.Train(
            steps=1000, log_every=25, eval_every=250, checkpoint_every=250, panels_every=250
        ),
        evaluation=config.Evaluation(batch=4),
    )
    run = recipes.apply(base, text, default="dacs,mrm=true")
    off = replace(run.method.feature_distance, weight=0.0)
    method = replace(run.method, ema_decay=0.99, feature_distance=off)
    return to_config_dict(replace(run, method=method))
