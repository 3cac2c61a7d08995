"""SYNTHIA-RAND-CITYSCAPES to Cityscapes.

Recipes: `:dacs`, `:daformer`, `:hrda`, `:mic`, `:vfm`, each `,mrm=true` (the default is
`:dacs,mrm=true`), and `:source_only`; `encoder=` and `decoder=` choose other networks. Weights:
docs/weights.md. Folders: data/synthia/{RGB,GT/LABELS}/ (16-bit label files, as downloaded) and
data/cityscapes/ as for GTA5.

Published figures are mIoU in % of the 16 classes that SYNTHIA has, of val's 500 pictures at a
single scale: those of the baselines' papers are the student's at the last step; MRM's may be the
best of the validations during a run, and are taken for 16 classes because the baselines beside them
are. **Not run here.** Without `,mrm=true` each command is the baseline's.

    # DACS, ResNet-101, DeepLabV2: 48.3, with MRM 55.8
    python -m mrm_jax.main --workdir runs/synthia_dacs_mrm \
        --config.model.encoder.weights=weights/resnet101 \
        --config configs/synthia_to_cityscapes.py:dacs,mrm=true
    # DAFormer, MiT-B5, DAFormer's decoder: 60.9, with MRM 62.6
    python -m mrm_jax.main --workdir runs/synthia_daformer_mrm \
        --config.model.encoder.weights=weights/mit_b5 \
        --config configs/synthia_to_cityscapes.py:daformer,mrm=true
    # HRDA, MiT-B5, DAFormer's decoder: 65.8, with MRM 67.1
    python -m mrm_jax.main --workdir runs/synthia_hrda_mrm \
        --config.model.encoder.weights=weights/mit_b5 \
        --config configs/synthia_to_cityscapes.py:hrda,mrm=true
    # MIC, MiT-B5, DAFormer's decoder: 67.3, with MRM 68.1
    python -m mrm_jax.main --workdir runs/synthia_mic_mrm \
        --config.model.encoder.weights=weights/mit_b5 \
        --config configs/synthia_to_cityscapes.py:mic,mrm=true

VFM-UDA's mean from SYNTHIA is over all 19 classes, three of which never occur in it, and its
released code reads no SYNTHIA: no figure of it is comparable with the mean here, and pictures are
scaled to twice their usual size, as for HRDA. `:vfm,mrm=true` adds MRM, for which there is no
published figure either. Like theirs: `--config.evaluation.classes=()`.

    # VFM-UDA, DINOv2 ViT-B, light head: none of these classes
    python -m mrm_jax.main --workdir runs/synthia_vfm \
        --config.model.encoder.weights=weights/dinov2_b14 \
        --config configs/synthia_to_cityscapes.py:vfm

Prepared sets read faster: docs/data.md.
"""

from mrm_jax import benchmarks
from mrm_jax.data import datasets
from mrm_jax.options import to_config_dict


def get_config(text: str | None = None):
    """The run as a ConfigDict; `text` is what follows the colon, see mrm_jax/recipes.py."""
    return to_config_dict(
        benchmarks.benchmark_run(
            datasets.SYNTHIA, datasets.CITYSCAPES, datasets.CITYSCAPES_VAL, text
        )
    )
