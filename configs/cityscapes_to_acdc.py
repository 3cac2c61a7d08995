"""Cityscapes to ACDC: clear day to fog, night, rain and snow.

Recipes: `:dacs`, `:daformer`, `:hrda`, `:mic`, each `,mrm=true` (the default is `:dacs,mrm=true`),
and `:source_only`; `encoder=` and `decoder=` choose other networks. Weights: docs/weights.md.
Folders: data/cityscapes/ as for GTA5 and data/acdc/{rgb_anon,gt}/, as they unpack (a folder a
condition) or with all conditions of a split in one folder.

Published figures are mIoU in % of 19 classes, of the hidden test split at a single scale, of the
student at the last step. **Not run here**: what this config scores is val, which differs
from test.

    # DAFormer, MiT-B5, DAFormer's decoder: 55.4
    python -m mrm_jax.main --workdir runs/acdc_daformer \
        --config.model.encoder.weights=weights/mit_b5 \
        --config configs/cityscapes_to_acdc.py:daformer
    # HRDA, MiT-B5, DAFormer's decoder: 68.0
    python -m mrm_jax.main --workdir runs/acdc_hrda \
        --config.model.encoder.weights=weights/mit_b5 \
        --config configs/cityscapes_to_acdc.py:hrda
    # MIC, MiT-B5, DAFormer's decoder: 70.4
    python -m mrm_jax.main --workdir runs/acdc_mic \
        --config.model.encoder.weights=weights/mit_b5 \
        --config configs/cityscapes_to_acdc.py:mic

`,mrm=true` adds MRM; no figure of it has been published on this benchmark, nor one of DACS.
Prepared sets read faster: docs/data.md.
"""

from mrm_jax import benchmarks
from mrm_jax.data import datasets
from mrm_jax.options import to_config_dict


def get_config(text: str | None = None):
    """The run as a ConfigDict; `text` is what follows the colon, see mrm_jax/recipes.py."""
    return to_config_dict(
        benchmarks.benchmark_run(
            benchmarks.CITYSCAPES_SOURCE, datasets.ACDC, datasets.ACDC_VAL, text
        )
    )
