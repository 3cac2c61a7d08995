"""Networks of a few channels for tests of what numbers come out, and everything random that goes
in."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.config import MRM, Classes, Config, Data, Decoder, Encoder, Method, Model, MultiRes
from mrm_jax.train import state
from mrm_jax.train.passes import Shared
from mrm_jax.types import Draws, View
from mrm_jax.uda import methods

# Three pictures, since BatchNorm of two single cells (DeepLabV3+ pools to one) gives +-1 whatever
# they hold.
BATCH, CLASSES = 3, 5
# Two stages, for compiling is what costs; the second has stacked blocks.
ENCODERS = {
    "mit": Encoder(
        "mit", (8, 16), (1, 2), (4, 2), heads=(1, 2), sr_ratios=(4, 2), mlp_ratios=(3, 2)
    ),
    "resnet_v1c": Encoder("resnet", (16, 32), (1, 3), (4, 2), dilations=(1, 2)),
}
ENCODERS["efficientnet_lite"] = Encoder(
    *("efficientnet_lite", (8, 12), (2, 2), (4, 2)),
    **{"kernels": (3, 5), "expansions": (1, 3), "stem_width": 8},
)
ENCODERS["mobilenet_v2"] = replace(
    ENCODERS["efficientnet_lite"], kind="mobilenet_v2", kernels=(3, 3)
)
_VIT = Encoder("dinov2", (16,), (2,), (7,), heads=(2,), mlp_ratios=(2,), position_grid=3)
# Pictures of 32 px are padded to 35, or looked at as 35 px.
ENCODERS["dinov2"] = replace(_VIT, ffn="swiglu", registers=1)
ENCODERS["dinov2_pyramid"] = replace(_VIT, pyramid=True, resize="1.1")
ENCODERS["resnet_7x7"] = replace(ENCODERS["resnet_v1c"], stem="7x7")
_V3PLUS = Decoder("deeplabv3plus", channels=8, dilations=(1, 2), low_channels=4)
DECODERS = {
    "aspp": Decoder(channels=8, dilations=(1, 2)),
    "conv1": Decoder(channels=8, fusion="conv1"),
    "segformer": Decoder("segformer", channels=8),
    "deeplabv2": Decoder("deeplabv2", dilations=(1, 2)),
    "deeplabv3plus": _V3PLUS,
    "deeplabv3plus_bn": replace(_V3PLUS, norm=True),
    "vit_light": Decoder("vit_light"),
}


@dataclass(frozen=True)
class Row:
    """One network and how it is run; `mrm` is off, auto or multi."""

    encoder: str
    decoder: str
    hrda: bool
    mrm: str
    dropping: bool
    remat: str = "none"
    dtype: str = "float32"

    def __str__(self) -> str:
        marks = ["hrda"] * self.hrda + [f"mrm_{self.mrm}"] * (self.mrm != "off")
        return "-".join([self.encoder, self.decoder, *marks, self.remat, self.dtype])

    def factors(self) -> dict[str, object]:
        """What is crossed pair by pair."""
        return {
            "batch_norm": self.encoder != "mit",
            "decoder": DECODERS[self.decoder].kind,
            "hrda": self.hrda,
            "mrm": self.mrm != "off",
            "dropping": self.dropping,
        }


# Every pair of levels of two factors occurs: with a, b, c in {0, 1} the decoder's kind is (a, b),
# that the encoder has BatchNorm is c, HRDA is a + c, MRM is b + c, dropping is a + b + c, all
# modulo 2.
ROWS = (
    Row("mit", "aspp", False, "off", False, remat="blocks"),
    Row("efficientnet_lite", "conv1", True, "auto", True),
    Row("mit", "segformer", False, "auto", True, remat="blocks", dtype="bfloat16"),
    Row("resnet_7x7", "segformer", True, "off", False),
    Row("mit", "deeplabv2", True, "off", True),
    Row("mobilenet_v2", "deeplabv2", False, "auto", False, remat="blocks", dtype="bfloat16"),
    Row("mit", "deeplabv3plus", True, "multi", False),
    Row("resnet_v1c", "deeplabv3plus_bn", False, "off", True, remat="full"),
)

# HRDA is refused on a ViT, so these are not crossed with the others.
VIT_ROWS = (
    Row("dinov2", "vit_light", False, "auto", True, remat="blocks"),
    Row("dinov2_pyramid", "conv1", False, "multi", True),
)
EVERY = ROWS + VIT_ROWS


def uncovered(rows: tuple[Row, ...]) -> list[tuple[tuple[str, object], ...]]:
    """Pairs of (factor, level) that no row has, of all levels that occur."""
    found = [row.factors() for row in rows]
    levels = sorted({level for row in found for level in row.items()}, key=str)
    pairs = [(a, b) for a, b in itertools.combinations(levels, 2) if a[0] != b[0]]
    return [pair for pair in pairs if not any(set(pair) <= set(row.items()) for row in found)]


def config(row: Row, **model: object) -> Config:
    """The run of `row`: all drop rates 0.2 or 0, crop 32 px (HRDA: 64 with details of 32)."""
    encoder = replace(ENCODERS[row.encoder], drop_path=0.2 * row.dropping)
    decoder = replace(DECODERS[row.decoder], dropout=0.2 * row.dropping)
    multires = MultiRes(enabled=row.hrda, attention_channels=8)
    stages = "multi" if row.mrm == "multi" else "auto"
    mrm = MRM(enabled=row.mrm != "off", grid=(4, 4), dim=16, depth=1, heads=2, stages=stages)
    side = 64 if row.hrda else 32
    names = tuple(f"class{i}" for i in range(CLASSES))
    built = Model(encoder, decoder, multires, dtype=row.dtype, remat=row.remat)
    return Config(
        data=Data(classes=Classes(names, ((0, 0, 0),) * CLASSES), crop=(side, side)),
        method=Method(mrm=mrm),
        model=replace(built, **model),
    )


def variables(made: Config, seed: int = 0) -> tuple[dict, dict]:
    """(params, batch_stats), drawn so that nothing is degenerate: no zero biases, no BatchNorm
    that is off."""
    start = functools.partial(state.init_state, made, state.build_networks(made))
    fresh = jax.eval_shape(start, jax.ShapeDtypeStruct((2,), jnp.uint32))
    rng = np.random.default_rng(seed)

    def drawn(path, leaf):
        name = path[-1].key
        noise = rng.normal(0, 1, leaf.shape)
        if name == "scale":
            noise = 1 + 0.2 * noise
        elif name == "var":
            noise = np.exp(0.3 * noise)
        elif name == "kernel":
            noise /= np.prod(leaf.shape[-4:-1]) ** 0.5
        else:
            noise *= 0.3
        return noise.astype(np.float32)

    return jax.tree_util.tree_map_with_path(drawn, (fresh.params, fresh.batch_stats))


def views(made: Config, seed: int = 1) -> dict[str, View]:
    """Noise with labels in blocks, a fifth of them to be ignored, and weights in 0..1."""
    rng, shape = np.random.default_rng(seed), (BATCH, *made.data.crop)

    def view() -> View:
        label = rng.integers(0, CLASSES + 1, (BATCH, shape[1] // 8, shape[2] // 8))
        label = np.where(label == CLASSES, 255, label).repeat(8, 1).repeat(8, 2)
        image, weight = rng.normal(0, 1, (*shape, 3)), rng.uniform(0, 1, shape)
        return View(image.astype(np.float32), label.astype(np.int32), weight.astype(np.float32))

    return {name: view() for name in ("source", "mixed", "target")}


def draws(made: Config, rows: tuple[methods.Pass, ...], seed: int = 2) -> Draws:
    """Draws of the passes, other ones for each."""
    rng, hrda = np.random.default_rng(seed), made.model.multires.enabled
    masks = {}
    for row in rows:
        for name in (row.name, f"{row.name}/detail"):
            uniforms = rng.uniform(0, 1, (BATCH, *made.method.mrm.grid))
            masks[name] = uniforms.astype(np.float32)
    corners = {row.name: (8 * rng.integers(1, 4, 2)).astype(np.int32) for row in rows}
    keys = {row.name: rng.integers(0, 2**32, 2, np.uint32) for row in rows}
    return Draws(
        mix=np.zeros((BATCH, 256), np.float32),
        augment={},
        mask=masks,
        offset=corners if hrda else {},
        module=keys,
    )


def shared(made: Config, batch_stats: dict, drawn: Draws) -> Shared:
    """What the passes of the run read."""
    return Shared.of(state.build_networks(made), batch_stats, state.frozen(made), drawn)
