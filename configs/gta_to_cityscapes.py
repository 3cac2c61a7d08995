"""GTA5 to Cityscapes, the benchmark of most papers.

Recipes: `:dacs`, `:daformer`, `:hrda`, `:mic`, `:vfm`, each `,mrm=true` (the default is
`:dacs,mrm=true`), and `:source_only`; `encoder=` and `decoder=` choose other networks. Weights:
docs/weights.md. Folders: data/gta/{images,labels}/00001.png (palette label files, as downloaded)
and data/cityscapes/{leftImg8bit,gtFine}/{train,val}/<city>/ (as they unpack).

Published figures are mIoU in % of 19 classes, of val's 500 pictures at a single scale: those of
the baselines' papers are the student's at the last step; MRM's may be the best of the validations
during a run. **Not run here.** Without `,mrm=true` each command is the baseline's.

    # DACS, ResNet-101, DeepLabV2: 52.1, with MRM 55.9
    python -m mrm_jax.main --workdir runs/gta_dacs_mrm \
        --config.model.encoder.weights=weights/resnet101 \
        --config configs/gta_to_cityscapes.py:dacs,mrm=true
    # DAFormer, MiT-B5, DAFormer's decoder: 68.3, with MRM 70.3
    python -m mrm_jax.main --workdir runs/gta_daformer_mrm \
        --config.model.encoder.weights=weights/mit_b5 \
        --config configs/gta_to_cityscapes.py:daformer,mrm=true
    # HRDA, MiT-B5, DAFormer's decoder: 73.8, with MRM 75.4
    python -m mrm_jax.main --workdir runs/gta_hrda_mrm \
        --config.model.encoder.weights=weights/mit_b5 \
        --config configs/gta_to_cityscapes.py:hrda,mrm=true
    # MIC, MiT-B5, DAFormer's decoder: 75.9, with MRM 77.5
    python -m mrm_jax.main --workdir runs/gta_mic_mrm \
        --config.model.encoder.weights=weights/mit_b5 \
        --config configs/gta_to_cityscapes.py:mic,mrm=true
    # DACS, ResNet-50, DeepLabV2: 52.0, with MRM 55.1
    python -m mrm_jax.main --workdir runs/gta_dacs_r50_mrm \
        --config.model.encoder.weights=weights/resnet50 \
        --config configs/gta_to_cityscapes.py:dacs,mrm=true,encoder=resnet50
    # DACS, ResNet-101, DeepLabV3+: 54.7, with MRM 59.3
    python -m mrm_jax.main --workdir runs/gta_dacs_v3plus_mrm \
        --config.model.encoder.weights=weights/resnet101 \
        --config configs/gta_to_cityscapes.py:dacs,mrm=true,encoder=resnet101,decoder=deeplabv3plus
    # MIC, ResNet-101, DeepLabV2: 64.2, with MRM 67.1
    python -m mrm_jax.main --workdir runs/gta_mic_r101_mrm \
        --config.model.encoder.weights=weights/resnet101 \
        --config configs/gta_to_cityscapes.py:mic,mrm=true,encoder=resnet101,decoder=deeplabv2
    # DAFormer, MiT-B2, DAFormer's decoder: 64.2, with MRM 66.3
    python -m mrm_jax.main --workdir runs/gta_daformer_b2_mrm \
        --config.model.encoder.weights=weights/mit_b2 \
        --config configs/gta_to_cityscapes.py:daformer,mrm=true,encoder=mit_b2
    # MIC, MiT-B3, DAFormer's decoder: 73.6, with MRM 75.8
    python -m mrm_jax.main --workdir runs/gta_mic_b3_mrm \
        --config.model.encoder.weights=weights/mit_b3 \
        --config configs/gta_to_cityscapes.py:mic,mrm=true,encoder=mit_b3

Nobody has published MRM on a ViT: `:vfm,mrm=true` adds it. Its figures are those that the release
of VFM-UDA states for its models, the student's at the last step, of windows of 1024 px every 512 px
whose probabilities are averaged, at a single scale:

    # VFM-UDA, DINOv2 ViT-B, light head: 77.1
    python -m mrm_jax.main --workdir runs/gta_vfm \
        --config.model.encoder.weights=weights/dinov2_b14 \
        --config configs/gta_to_cityscapes.py:vfm
    # VFM-UDA, DINOv2 ViT-L, light head: 78.4
    python -m mrm_jax.main --workdir runs/gta_vfm_l \
        --config.model.encoder.weights=weights/dinov2_l14 \
        --config configs/gta_to_cityscapes.py:vfm,encoder=dinov2_l14

Prepared sets read faster: docs/data.md.
"""

from mrm_jax import benchmarks
from mrm_jax.data import datasets
from mrm_jax.options import to_config_dict


def get_config(text: str | None = None):
    """The run as a ConfigDict; `text` is what follows the colon, see mrm_jax/recipes.py."""
    return to_config_dict(
        benchmarks.benchmark_run(datasets.GTA, datasets.CITYSCAPES, datasets.CITYSCAPES_VAL, text)
    )
