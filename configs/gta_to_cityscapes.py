"""GTA5 to Cityscapes, the benchmark of most papers.

    python -m mrm_jax.main --config configs/gta_to_cityscapes.py:daformer,mrm=true \
        --workdir runs/mine --config.model.encoder.weights=weights/mit_b5

Recipes: `:dacs`, `:daformer`, `:hrda`, `:mic`, each `,mrm=true` (the default is `:dacs,mrm=true`),
and `:source_only`; `encoder=` and `decoder=` choose other networks. Weights: docs/weights.md.
Folders: data/gta/{images,labels}/00001.png (palette label files, as downloaded) and
data/cityscapes/{leftImg8bit,gtFine}/{train,val}/<city>/ (as they unpack).

Published figures (of the papers, student at the last step; **not run here**):

| recipe | paper, mIoU19 on val | + MRM |
| --- | --- | --- |
| :dacs | 52.1 | 55.9 |
| :daformer | 68.3 | 70.3 |
| :hrda | 73.8 | 75.4 |
| :mic | 75.9 | 77.5 |
"""

from mrm_jax import benchmarks
from mrm_jax.options import to_config_dict


def get_config(text: str | None = None):
    """The run as a ConfigDict; `text` is what follows the colon, see mrm_jax/recipes.py."""
    return to_config_dict(
        benchmarks.run(benchmarks.GTA, benchmarks.CITYSCAPES, benchmarks.CITYSCAPES_VAL, text)
    )
