"""Every option of a run, once: default, meaning, unit, allowed values and source.

The ConfigDict that `configs/*.py` return is generated from these dataclasses: every field is a
flag (`--config.method.mrm.ratio=0.5`). `checks.py` brings it back; nothing below `cli/` sees a
ConfigDict. Imports neither jax nor anything of ours but options.py, so that a mistake is answered
before they load.
"""

from mrm_jax.config.data import Classes, Data, Domain, RareClass
from mrm_jax.config.method import (
    METHODS,
    MIC,
    MRM,
    TEACHER_METHODS,
    THINGS,
    Augment,
    Contrast,
    FeatureDistance,
    MaskedImages,
    Method,
)
from mrm_jax.config.model import (
    Decoder,
    Encoder,
    Model,
    MultiRes,
    crop_multiple,
    input_stats,
    map_sizes,
    smallest_picture,
    smallest_side,
    strides,
)
from mrm_jax.config.run import (
    Config,
    Evaluation,
    Mesh,
    Optimizer,
    Train,
    detail_crop,
    evaluation_domain,
    has_evaluation,
    mic_block,
    mim_block,
    profiled,
    source_domain,
)

__all__ = [
    "Augment",
    "Classes",
    "Config",
    "Contrast",
    "Data",
    "Decoder",
    "Domain",
    "Encoder",
    "Evaluation",
    "FeatureDistance",
    "METHODS",
    "MIC",
    "MRM",
    "MaskedImages",
    "Mesh",
    "Method",
    "Model",
    "MultiRes",
    "Optimizer",
    "RareClass",
    "TEACHER_METHODS",
    "THINGS",
    "Train",
    "crop_multiple",
    "detail_crop",
    "evaluation_domain",
    "has_evaluation",
    "input_stats",
    "map_sizes",
    "mic_block",
    "mim_block",
    "profiled",
    "smallest_picture",
    "smallest_side",
    "source_domain",
    "strides",
]
