"""SYNTHIA-RAND-CITYSCAPES to Cityscapes.

    python -m mrm_jax.main --config configs/synthia_to_cityscapes.py:daformer,mrm=true \
        --workdir runs/mine --config.model.encoder.weights=weights/mit_b5

Recipes: `:dacs`, `:daformer`, `:hrda`, `:mic`, each `,mrm=true` (the default is `:dacs,mrm=true`),
and `:source_only`; `encoder=` and `decoder=` choose other networks. Weights: docs/weights.md.
Folders: data/synthia/{RGB,GT/LABELS}/ with labels converted to *_labelTrainIds.png (the
download's are 16-bit) and data/cityscapes/ as for GTA5.

Published figures (of the papers, student at the last step; **not run here**):

| recipe | paper, mIoU16 on val | + MRM |
| --- | --- | --- |
| :dacs | 48.3 | 55.8 |
| :daformer | 60.9 | 62.6 |
| :hrda | 65.8 | 67.1 |
| :mic | 67.3 | 68.1 |
"""

from mrm_jax import benchmarks
from mrm_jax.options import to_config_dict


def get_config(text: str | None = None):
    """The run as a ConfigDict; `text` is what follows the colon, see mrm_jax/recipes.py."""
    return to_config_dict(
        benchmarks.run(benchmarks.SYNTHIA, benchmarks.CITYSCAPES, benchmarks.CITYSCAPES_VAL, text)
    )
