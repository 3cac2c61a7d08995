"""Cityscapes to Dark Zurich: day to night.

Recipes: `:dacs`, `:daformer`, `:hrda`, `:mic`, each `,mrm=true` (the default is `:dacs,mrm=true`),
and `:source_only`; `encoder=` and `decoder=` choose other networks. Weights: docs/weights.md.
Folders: data/cityscapes/ as for GTA5 and data/dark_zurich/: rgb_anon/train/night/ (searched
recursively), rgb_anon/val/ and gt/val/.

Published figures are mIoU in % of 19 classes, of the hidden test split at a single scale, of the
student at the last step. **Not run here**: what this config scores is val, which differs
strongly from test.

    # DAFormer, MiT-B5, DAFormer's decoder: 53.8
    python -m mrm_jax.main --workdir runs/dark_zurich_daformer \
        --config.model.encoder.weights=weights/mit_b5 \
        --config configs/cityscapes_to_dark_zurich.py:daformer
    # HRDA, MiT-B5, DAFormer's decoder: 55.9
    python -m mrm_jax.main --workdir runs/dark_zurich_hrda \
        --config.model.encoder.weights=weights/mit_b5 \
        --config configs/cityscapes_to_dark_zurich.py:hrda
    # MIC, MiT-B5, DAFormer's decoder: 60.2
    python -m mrm_jax.main --workdir runs/dark_zurich_mic \
        --config.model.encoder.weights=weights/mit_b5 \
        --config configs/cityscapes_to_dark_zurich.py:mic

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
            benchmarks.CITYSCAPES_SOURCE, datasets.DARK_ZURICH, datasets.DARK_ZURICH_VAL, text
        )
    )
