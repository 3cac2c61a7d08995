"""Methods compared on drawn street scenes, on a CPU, at most 90 s a run. Drawn data: no benchmark
of anybody else's.

    python -m mrm_jax.main ablate --config configs/benchmark.py --arms methods --seeds 5 \
        --workdir runs/benchmark --jobs 2

Everything here was fixed before methods were compared: pictures, network, crop, steps, rates and
the teacher's decay. What the recipes' papers set for 40,000 steps from pretrained weights is
replaced where it cannot hold: the teacher's decay is 0.99 for all methods (0.999 averages over 1000
steps, more than there are), rare class sampling counts by shares of the small crop, and the feature
distance is off, there being no pretrained encoder (the arm "daformer + distance" takes that of
source_only). HRDA sees the same pictures as the others: its context is at half their resolution.
Figures: docs/results.md.
"""

from dataclasses import replace

from mrm_jax import config, recipes
from mrm_jax.arms import Arm, values
from mrm_jax.data import labels
from mrm_jax.options import to_config_dict

STEPS = 800

NETWORK = config.Model(
    encoder=config.Encoder(
        dims=(16, 32, 48, 64),
        depths=(1, 1, 1, 1),
        heads=(1, 2, 3, 4),
        sr_ratios=(8, 4, 2, 2),
        strides=(4, 2, 2, 1),
        drop_path=0.0,
    ),
    decoder=config.Decoder(channels=32, dilations=(1, 4)),
    multires=config.MultiRes(attention_channels=32),
)

_MRM = "dacs,mrm=true"
_DISTANCE = (
    "--config.method.feature_distance.weight=0.005",
    "--config.method.feature_distance.source=checkpoint",
    "--config.method.feature_distance.checkpoint={workdir}/source_only/seed{seed}",
)

ARMS = {
    "methods": (
        Arm("source_only"),
        Arm("source_augmented", against="source_only"),
        Arm("target_only", against="source_only"),
        Arm("dacs", against="source_augmented"),
        Arm("daformer", against="dacs"),
        Arm("hrda", against="daformer"),
        Arm("mic", against="hrda"),
        *(
            Arm(f"{name} + mrm", f"{name},mrm=true", against=name)
            for name in ("dacs", "daformer", "hrda", "mic")
        ),
    ),
    "distance": (Arm("daformer + distance", "daformer", _DISTANCE, against="daformer"),),
    "ratio": values("ratio", "method.mrm.ratio", (0.2, 0.6, 0.8), _MRM, against="dacs"),
    "domain": values("domain", "method.mrm.images", ("source", "both"), _MRM, against="dacs"),
    "target": values(
        "target",
        "method.mrm.target",
        ("pixels", "student_features", "teacher_features"),
        _MRM,
        against="dacs",
    ),
    "alternatives": (
        Arm("contrast", "dacs", ("--config.method.contrast.weight=0.1",), against="dacs"),
        Arm("image modelling", "dacs", ("--config.method.mim.weight=1.0",), against="dacs"),
    ),
    "parts": (
        Arm("mask alone", _MRM, ("--config.method.mrm.hidden=blank",), against="dacs"),
        *values("trains", "method.mrm.trains", ("encoder", "decoder"), _MRM, against="dacs"),
    ),
}
"""Sets of arms by the name that `ablate --arms` takes."""


def get_config(text: str | None = None):
    """The run as a ConfigDict; `text` is what follows the colon, see mrm_jax/recipes.py."""
    base = config.Config(
        data=config.Data(
            classes=labels.DRAWN,
            source=config.Domain(kind="drawn", look="rendered"),
            target=config.Domain(kind="drawn", look="camera"),
            evaluation=config.Domain(kind="drawn", look="camera", split="val", count=100),
            crop=(64, 128),
            rare_class=config.RareClass(min_share=0.005),
            cache=True,
        ),
        model=NETWORK,
        method=config.Method(
            # The Rebuilder learns at 10/3 of the encoder's rate, as in the paper (2e-4 to 6e-5).
            mrm=config.MRM(grid=(4, 8), dim=64, depth=2, heads=4, learning_rate=20e-3 / 3),
        ),
        # A network from scratch: a higher rate than a pretrained one, and nearly one for all parts.
        optimizer=config.Optimizer(learning_rate=2e-3, decoder_multiplier=2.0),
        train=config.Train(
            steps=STEPS, log_every=25, eval_every=STEPS // 4, checkpoint_every=STEPS
        ),
        evaluation=config.Evaluation(batch=10),
    )
    run = recipes.apply(base, text, default="dacs,mrm=true")
    distance = replace(run.method.feature_distance, weight=0.0)
    method = replace(run.method, ema_decay=0.99, feature_distance=distance)
    return to_config_dict(replace(run, method=method))
