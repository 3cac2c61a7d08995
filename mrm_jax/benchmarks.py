"""The public benchmarks: which network, margins and protocol each method is run with on which data
sets.

Sources: DAFormer sec. 4.1, HRDA sec. 4.1, MIC sec. 4.1 and their released configs; VFM-UDA's
released code. Paths are below the folder that a run is started from.
"""

from __future__ import annotations

from dataclasses import replace

from mrm_jax import recipes
from mrm_jax.config import Config, Data, Domain, Evaluation, Model
from mrm_jax.data import labels
from mrm_jax.data.datasets import (
    CITYSCAPES,
    SYNTHIA,
)

CITYSCAPES_SOURCE = replace(CITYSCAPES, category_limit=0.75)

SYNTHIA_16 = tuple(
    name for name in labels.CITYSCAPES.names if name not in ("terrain", "truck", "train")
)
"""The classes that SYNTHIA has; its mIoU is over these."""

SYNTHIA_13 = tuple(name for name in SYNTHIA_16 if name not in ("wall", "fence", "pole"))
"""The classes of the mIoU that older papers report beside it."""

RECTIFIED = {
    "daformer": (30, 240, 0, 0),
    "hrda": (30, 240, 30, 30),
    "mic": (30, 240, 30, 30),
    "vfm": (30, 256, 61, 61),  # 3 %, 25 %, 3 %, 3 %, rounded down
}
"""Margins (top, bottom, left, right) of a Cityscapes picture, px of its 1024 x 2048, that get no
pseudo-label: artefacts of its rectification and the bonnet. DACS trains on all of it."""


NETWORKS = {"dacs": ("resnet101", "deeplabv2"), "vfm": ("dinov2_b14", "vit_light")}
"""Encoder and decoder of a recipe; all others have a MiT-B5 with DAFormer's."""


def benchmark_run(source: Domain, target: Domain, evaluation: Domain, text: str | None) -> Config:
    """The run of the recipe `text` from `source` to `target`: 40,000 steps on 2 + 2 crops of
    512 x 512 px, or of 1024 x 1024 for hrda and mic; vfm on 8 + 8 of these.

    The recipe has its network of `NETWORKS`; keys after it change that. Raises UsageError for an
    unknown word.
    """
    text = text or "dacs,mrm=true"
    recipe = text.split(",")[0].strip()
    names = NETWORKS.get(recipe, ("mit_b5", "daformer"))
    if target.path == CITYSCAPES.path:
        target = replace(target, margins=RECTIFIED.get(recipe, (0, 0, 0, 0)))
    model = Model(encoder=recipes.ENCODERS[names[0]], decoder=recipes.DECODERS[names[1]])
    data = Data(
        classes=labels.CITYSCAPES,
        source=source,
        target=target,
        evaluation=evaluation,
        crop=(512, 512),
    )
    counted = SYNTHIA_16 if source.path == SYNTHIA.path else ()
    if counted:  # three classes never occur in it
        data = replace(data, rare_class=replace(data.rare_class, on_missing="warn"))
    also = (("mIoU13", *SYNTHIA_13),) if counted else ()
    base = Config(data=data, model=model, evaluation=Evaluation(classes=counted, also=also))
    if source.path == CITYSCAPES.path:  # as MIC trains where the source is real
        method = replace(base.method, mic=replace(base.method.mic, images="both"))
        base = replace(base, method=method)
    return recipes.apply(base, text)
