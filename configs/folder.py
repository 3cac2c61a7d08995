"""Your own pictures: a labelled source folder, an unlabelled target folder.

    pip install -e '.[pretrained]'
    python -m mrm_jax.main --config configs/folder.py --workdir runs/mine \
        --config.data.source.path=SOURCE --config.data.target.path=TARGET

SOURCE holds images/ and labels/ (8-bit PNG of the same stem); TARGET is any folder of pictures,
searched recursively; either may also be a set that `prepare folder` wrote. Scores need labels:
`--config.data.evaluation.path=FOLDER` and `--config.data.evaluation.labels=labels` name pictures in
FOLDER with labels in FOLDER/labels; without them the run adapts and scores nothing.

The network is an EfficientNet-Lite0 that starts from ImageNet weights (Apache-2.0), which come with
the extra `pretrained`; `:daformer`, `:hrda` and `:mic` compare its features with those. Without
them: `:dacs,encoder=small`, a small network from random numbers at the rates of the quickstart.
Another encoder, say `:dacs,encoder=mit_b2,decoder=daformer`, takes weights of its own
(docs/weights.md). On a CPU add `crop=256` and fewer steps.

Copy this file and edit what stands below: nothing else knows how many classes there are. See what
your labels hold by `python -m mrm_jax.main check folder --config YOUR_COPY.py --from SOURCE`.
"""

from dataclasses import replace

from mrm_jax import config, recipes
from mrm_jax.data import labels
from mrm_jax.options import to_config_dict

# (name, ids in your label files, colour): a row a class. A colour may be left out. Several ids make
# one class, as in ("vehicle", (26, 27, 28)); two classes are ("background", (0,)), ("road", (255,))
# with IGNORED = ().
ROWS = tuple(
    (name, (number,), colour)
    for number, (name, colour) in enumerate(
        zip(labels.CITYSCAPES.names, labels.CITYSCAPES.colours, strict=True)
    )
)
IGNORED = (255,)  # ids that count nowhere; any other id is an error that names the file
MARGINS = (0, 0, 0, 0)  # px at (top, bottom, left, right) of target pictures without pseudo-labels
COUNTED = ()  # names of the classes in mIoU; empty: all of them
RESIZE = None  # box (long, short) in px that pictures are fitted into; None: as they are


def get_config(text: str | None = None):
    """The run as a ConfigDict; `text` is what follows the colon, see mrm_jax/recipes.py."""
    classes, raw_ids = labels.class_table(ROWS)
    ids = {"raw_ids": raw_ids, "ignored_ids": IGNORED}
    base = config.Config(
        data=config.Data(
            classes=classes,
            source=config.Domain(images="images", labels="labels", resize=RESIZE, **ids),
            target=config.Domain(resize=RESIZE, margins=MARGINS),
            evaluation=config.Domain(resize=RESIZE, split="val", **ids),
            crop=(512, 512),
        ),
        model=config.Model(
            encoder=replace(
                recipes.ENCODERS["efficientnet_lite0"], weights="package://efficientnet_lite0"
            ),
            decoder=config.Decoder(channels=128),  # half of MiT's, for maps of 24 to 320 channels
        ),
        evaluation=config.Evaluation(classes=COUNTED),
    )
    return to_config_dict(recipes.apply(base, text, default="dacs,mrm=true"))
