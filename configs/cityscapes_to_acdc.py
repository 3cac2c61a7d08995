"""Cityscapes to ACDC: clear day to fog, night, rain and snow.

    python -m mrm_jax.main --config configs/cityscapes_to_acdc.py:daformer,mrm=true \
        --workdir runs/mine --config.model.encoder.weights=weights/mit_b5

Recipes: `:dacs`, `:daformer`, `:hrda`, `:mic`, each `,mrm=true` (the default is `:dacs,mrm=true`),
and `:source_only`; `encoder=` and `decoder=` choose other networks. Weights: docs/weights.md.
Folders: data/cityscapes/ as for GTA5 and data/acdc/{rgb_anon,gt}/{train,val}/, all conditions
of a split in one folder.

Published figures (of the papers, student at the last step; **not run here**):

| recipe | paper, mIoU19 on the hidden test split |
| --- | --- |
| :daformer | 55.4 |
| :hrda | 68.0 |
| :mic | 70.4 |

No figure of MRM has been published here. What this config scores is val, which differs from test.
"""

from mrm_jax import benchmarks
from mrm_jax.options import to_config_dict


def get_config(text: str | None = None):
    """The run as a ConfigDict; `text` is what follows the colon, see mrm_jax/recipes.py."""
    return to_config_dict(
        benchmarks.run(benchmarks.CITYSCAPES_SOURCE, benchmarks.ACDC, benchmarks.ACDC_VAL, text)
    )
