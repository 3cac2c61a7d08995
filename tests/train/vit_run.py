"""VFM-UDA's run in a few numbers, with MRM besides: DINOv2, the light head, hidden tokens.

Crops of 26 x 33 px are no whole patches of 7, and the Rebuilder's grid fits neither axis of them.
"""

from dataclasses import replace

import jax
import numpy as np

from mrm_jax.config import (
    MIC,
    MRM,
    Augment,
    Classes,
    Config,
    Data,
    Decoder,
    Encoder,
    Method,
    Model,
    Optimizer,
    Train,
)
from mrm_jax.types import Batch, Labelled, Unlabelled

CLASSES, CROP, TOKENS = 4, (26, 33), (4, 5)
ENCODER = Encoder(
    *("dinov2", (16,), (2,), (7,)),
    **{"heads": (2,), "mlp_ratios": (3,), "position_grid": 3, "drop_path": 0.0},
)
MASKED = MRM(enabled=True, weight=0.7, ratio=0.5, grid=(2, 3), dim=12, depth=1, heads=2)


def config(batch=2):
    """MIC by tokens and MRM without strong augmentation; a threshold that some pixels reach."""
    return Config(
        data=Data(classes=Classes(tuple("abcd"), ((0, 0, 0),) * CLASSES), crop=CROP),
        model=Model(ENCODER, Decoder("vit_light"), unroll=False),
        method=Method(
            kind="mic",
            ema_decay=0.6,
            threshold=0.3,
            augment=Augment(jitter_probability=0.0, blur_probability=0.0),
            mic=MIC(weight=0.8, hide="tokens", ratio=0.4),
            mrm=MASKED,
        ),
        optimizer=Optimizer(learning_rate=1e-2, decoder_multiplier=3.0, warmup=0.05),
        train=Train(steps=100, batch=batch),
    )


def batch(count=2, seed=0):
    """Noise; labels in blocks, ignored ones among them; target pixels that do not count."""
    rng, shape = np.random.default_rng(seed), (count, *CROP)
    label = rng.choice([0, 1, 3, 255], (count, 4, 5)).repeat(7, 1).repeat(7, 2)
    label = label[:, : CROP[0], : CROP[1]].astype(np.uint8)
    source, target = rng.integers(0, 256, (2, *shape, 3), np.uint8)
    valid = np.ones(shape, np.uint8)
    valid[:, -5:] = 0
    return Batch(
        Labelled(source, label), Unlabelled(target, valid), np.arange(count, dtype=np.int32)
    )


def numbers(shapes, seed, dtype):
    """A tree of numbers of which none is one that would hide a parameter."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        middle = 1.0 if jax.tree_util.keystr(path).endswith("['scale']") else 0.0
        return (middle + 0.3 * rng.normal(size=leaf.shape)).astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def state(program, dtype, step=3):
    """The state after some steps: the teacher is another network, and Adam has seen gradients."""
    key = jax.ShapeDtypeStruct((2,), np.uint32)
    shapes = jax.eval_shape(program.init, key)
    moments = numbers(shapes.opt_state.mu, 2, dtype), numbers(shapes.opt_state.nu, 3, dtype)
    first, second = (jax.tree.map(lambda x: 0.01 * x, moments[0])), moments[1]
    second = jax.tree.map(lambda x: 0.01 * np.square(x), second)
    return replace(
        shapes,
        step=np.int32(step),
        params=numbers(shapes.params, 0, dtype),
        teacher_params=numbers(shapes.teacher_params, 1, dtype),
        opt_state=shapes.opt_state._replace(count=np.int32(step), mu=first, nu=second),
        root_key=np.array([0, 7], np.uint32),
    )
