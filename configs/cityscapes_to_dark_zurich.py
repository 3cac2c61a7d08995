"""Cityscapes to Dark Zurich: day to night.

    python -m mrm_jax.main --config configs/cityscapes_to_dark_zurich.py:daformer,mrm=true \
        --workdir runs/mine --config.model.encoder.weights=weights/mit_b5

Recipes: `:dacs`, `:daformer`, `:hrda`, `:mic`, each `,mrm=true` (the default is `:dacs,mrm=true`),
and `:source_only`; `encoder=` and `decoder=` choose other networks. Weights: docs/weights.md.
Folders: data/cityscapes/ as for GTA5 and data/dark_zurich/: rgb_anon/train/night/ (searched
recursively), rgb_anon/val/ and gt/val/.

Published figures (of the papers, student at the last step; **not run here**):

| recipe | paper, mIoU19 on the hidden test split |
| --- | --- |
| :daformer | 53.8 |
| :hrda | 55.9 |
| :mic | 60.2 |

No figure of MRM has been published here. What this config scores is val, which differs strongly
from test.
"""

from mrm_jax import benchmarks
from mrm_jax.options import to_config_dict


def get_config(text: str | None = None):
    """The run as a ConfigDict; `text` is what follows the colon, see mrm_jax/recipes.py."""
    return to_config_dict(
        benchmarks.run(
            benchmarks.CITYSCAPES_SOURCE, benchmarks.DARK_ZURICH, benchmarks.DARK_ZURICH_VAL, text
        )
    )
