"""Losses and gradient norms of one step of narrow networks, which `parity.json` holds for a CPU; on
another device they come out alike, or something computes wrongly there.

    python -m mrm_jax.machine.parity    # writes parity.json again and shows what changed

Parameters and pictures are drawn by numpy's frozen generator, and a step's own draws by JAX's,
which give the same bits everywhere; the weights mean nothing.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mrm_jax import recipes, rngs, sharding
from mrm_jax.config import (
    MRM,
    Classes,
    Config,
    Data,
    Decoder,
    Encoder,
    FeatureDistance,
    Method,
    Model,
    MultiRes,
)
from mrm_jax.paths import write_text
from mrm_jax.train.step import Program, build_step
from mrm_jax.types import Batch, Frozen, Labelled, Unlabelled

STORED = Path(__file__).with_name("parity.json")
TOLERANCES = {"float32": 2e-3, "bfloat16": 0.1}
"""Largest relative difference, of the larger of the two and of 1e-3."""
CLASSES, CROP = 5, (56, 56)
_MIT = Encoder(
    "mit", (16, 32), (1, 2), (4, 2), heads=(1, 2), sr_ratios=(4, 2), mlp_ratios=(2, 2), drop_path=0
)
_RESNET = Encoder("resnet", (16, 32), (1, 2), (4, 2), dilations=(1, 2))
_VIT = Encoder("dinov2", (32,), (2,), (14,), heads=(2,), mlp_ratios=(2,), drop_path=0)
NETWORKS = {
    "mit": ("daformer,mrm=true", _MIT, Decoder("daformer", channels=16, dilations=(1, 2))),
    "resnet": ("dacs", _RESNET, Decoder("deeplabv2", dilations=(1, 2))),
    "dinov2": ("dacs,mrm=true", _VIT, Decoder("vit_light")),
}
"""(method, encoder, decoder)."""


def narrowed(config: Config) -> Config:
    """`config` with a network, and pictures, of a few channels; its method stays."""
    kind = "dinov2" if config.model.encoder.kind == "dinov2" else "mit"
    _, encoder, decoder = NETWORKS[kind]
    if config.model.decoder.kind != decoder.kind:
        decoder = replace(config.model.decoder, channels=16)
    model = Model(encoder, decoder, config.model.multires)
    side = 2 * CROP[0] // 7 * 8 if config.model.multires.enabled else CROP[0]
    data = replace(config.data, crop=(side, side))
    mrm = replace(config.method.mrm, grid=(4, 4), dim=16, depth=1, heads=2)
    model = replace(model, multires=replace(model.multires, attention_channels=16))
    return replace(config, model=model, data=data, method=replace(config.method, mrm=mrm))


def numbers(name: str, dtype: str) -> dict[str, float]:
    """The metrics of one step of a network of `NETWORKS` with `dtype`; products of float32 are not
    rounded."""
    recipe, encoder, decoder = NETWORKS[name]
    names = tuple(f"class{i}" for i in range(CLASSES))
    config = Config(
        data=Data(classes=Classes(names, ((0, 0, 0),) * CLASSES), crop=CROP),
        model=Model(encoder, decoder, MultiRes(), precision="highest"),
        method=Method(mrm=MRM(enabled=False, grid=(4, 4), dim=16, depth=1, heads=2)),
    )
    config = recipes.apply(config, recipe)
    # Every pixel counts, whatever random weights are sure of.
    method = replace(config.method, threshold=0.0)
    if method.kind == "daformer":
        method = replace(method, feature_distance=FeatureDistance(weight=0.005, classes=()))
    config = replace(config, method=method, model=replace(config.model, dtype=dtype))
    program = build_step(config)
    state, frozen = drawn(config, program)
    draw = np.random.RandomState(1)
    shape = (config.train.batch, *CROP)
    source, target = (draw.randint(0, 256, (*shape, 3)).astype(np.uint8) for _ in range(2))
    label = draw.randint(0, CLASSES, shape).astype(np.uint8)
    index = np.arange(shape[0], dtype=np.int32)
    batch = Batch(Labelled(source, label), Unlabelled(target, np.ones_like(label)), index)
    options = sharding.quick(sharding.mesh(1))
    step = jax.jit(program.train_step, compiler_options=options)
    _, metrics = step(state, frozen, batch)
    kept = {key: value for key, value in metrics.items() if np.ndim(value) == 0 and key != "finite"}
    return {key: float(value) for key, value in sorted(kept.items())}


def drawn(config: Config, program: Program) -> tuple[Any, Frozen]:
    """A state and what is frozen, numpy: parameters random, the optimiser's memory empty."""
    key = np.asarray(jax.random.key_data(rngs.root(config.seed)))
    shapes = jax.eval_shape(program.init, key)
    params = filled(shapes.params)
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.opt_state)
    stats, taught = filled(shapes.batch_stats), filled(shapes.teacher_batch_stats)
    teacher = jax.tree.map(
        lambda like, leaf: leaf.astype(like.dtype),
        shapes.teacher_params,
        params["segmentor"] if shapes.teacher_params else {},
    )
    state = shapes.replace(
        step=np.int32(0),
        params=params,
        batch_stats=stats,
        teacher_params=teacher,
        teacher_batch_stats=taught,
        opt_state=empty,
        root_key=key,
    )
    other = {"params": shapes.params["segmentor"], "batch_stats": shapes.batch_stats}
    encoder = {name: filled(tree.get("encoder", {}), 2) for name, tree in other.items()}
    return state, jax.tree.map(np.asarray, program.frozen(config, encoder))


def filled(shapes: Any, seed: int = 0) -> Any:
    """Arrays for the `shapes` of parameters or statistics: scales and variances 1, biases and means
    0, all others normal with the deviation that keeps a product's."""
    draw = np.random.RandomState(seed)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        if name in ("scale", "var", "ls1", "ls2"):
            return np.ones(leaf.shape, leaf.dtype)
        if name in ("bias", "mean"):
            return np.zeros(leaf.shape, leaf.dtype)
        deviation = max(np.prod(leaf.shape[:-1]), 1) ** -0.5
        return (deviation * draw.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def stored() -> dict[str, dict[str, dict[str, float]]]:
    """{network: {dtype: metrics}} of a CPU."""
    return json.loads(STORED.read_text())["numbers"]


def compared(found: dict[str, float], wanted: dict[str, float], dtype: str) -> dict[str, Any]:
    """`equal`: all of `found` within the tolerance of `dtype`; the `largest` relative difference,
    the `name` of its metric; `found`."""
    if found.keys() != wanted.keys():
        missing = ", ".join(sorted(found.keys() ^ wanted.keys()))
        return {"equal": False, "largest": None, "name": missing, "found": found}
    off = {
        name: abs(found[name] - value) / max(abs(found[name]), abs(value), 1e-3)
        for name, value in wanted.items()
    }
    # What is not finite is compared as unequal.
    name = max(off, key=lambda name: off[name] if np.isfinite(off[name]) else np.inf)
    equal = bool(off[name] <= TOLERANCES[dtype])
    return {"equal": equal, "largest": off[name], "name": name, "found": found}


def main() -> None:
    """Writes `STORED` from this machine's CPU, and shows the largest change of each network."""
    before = stored() if STORED.exists() else {}
    fresh: dict[str, dict[str, dict[str, float]]] = {}
    with jax.default_device(jax.devices("cpu")[0]):
        for name in NETWORKS:
            fresh[name] = {dtype: numbers(name, dtype) for dtype in TOLERANCES}
            for dtype, found in fresh[name].items():
                row = compared(found, before.get(name, {}).get(dtype, {}), dtype)
                print(f"{name} {dtype}: largest change {row['largest']} ({row['name']})")
    text = json.dumps({"jax": jax.__version__, "numbers": fresh}, indent=1)
    write_text(STORED, text + "\n")


if __name__ == "__main__":
    main()
