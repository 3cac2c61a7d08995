"""Your own pictures: a labelled source folder, an unlabelled target folder.

    python -m mrm_jax.main --config configs/folder.py --workdir runs/mine \
        --config.data.source.path=SOURCE --config.data.target.path=TARGET

SOURCE holds images/ and labels/ (8-bit PNG of the same stem); TARGET is any folder of pictures,
searched recursively. Scores need labels: `--config.data.evaluation.path=FOLDER` and
`--config.data.evaluation.labels=labels` name pictures in FOLDER with labels in FOLDER/labels;
without them the run adapts and scores nothing.
Copy this file and edit `CLASSES` (names, colours) and `RAW_IDS` (the label ids of each class).
"""

from mrm_jax import config, recipes
from mrm_jax.data import labels
from mrm_jax.options import to_config_dict

CLASSES = labels.CITYSCAPES
RAW_IDS = ()  # labels hold train ids 0..K-1 already; 255 counts nowhere


def get_config(text: str | None = None):
    """The run as a ConfigDict; `text` is what follows the colon, see mrm_jax/recipes.py."""
    labelled = config.Domain(kind="folder", images="images", labels="labels", raw_ids=RAW_IDS)
    base = config.Config(
        data=config.Data(
            classes=CLASSES,
            source=labelled,
            target=config.Domain(kind="folder"),
            evaluation=config.Domain(kind="folder", raw_ids=RAW_IDS),
            crop=(512, 512),
        ),
        model=config.Model(encoder=recipes.ENCODERS["mit_b2"]),
    )
    return to_config_dict(recipes.apply(base, text, default="dacs,mrm=true"))
