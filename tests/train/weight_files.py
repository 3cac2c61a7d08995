"""Configs and files of weights for the tests of what a run starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from toy_run import TINY

from mrm_jax.config import Config, Encoder
from mrm_jax.convert import export_torch
from mrm_jax.convert.network import leaves
from mrm_jax.main import load_config
from mrm_jax.runs.weights import shapes

ENCODER = Encoder(
    dims=(8, 16, 24, 32),
    depths=(1, 2, 1, 1),
    heads=(1, 2, 3, 4),
    sr_ratios=(2, 1, 1, 1),
    strides=(4, 2, 1, 1),
    mlp_ratios=(2, 2, 2, 2),
)


def config(**model: Any) -> Config:
    """tiny's run with an encoder of four stages, as published names have them."""
    tiny = load_config([f"--config={TINY}:dacs"])
    assert tiny is not None
    return replace(tiny, model=replace(tiny.model, encoder=ENCODER, **model))


def starting(config: Config, *, encoder: Any = None, whole: Any = None) -> Config:
    weights = None if encoder is None else str(encoder)
    model = replace(config.model, encoder=replace(config.model.encoder, weights=weights))
    train = replace(config.train, init_from=None if whole is None else str(whole))
    return replace(config, model=model, train=train)


def variables(config: Config, seed: int) -> dict[str, Any]:
    """Random weights of the config's segmentor."""
    rng = np.random.default_rng(seed)
    tree: dict[str, Any] = {}
    for path, shape in shapes(config, whole=True).items():
        *parents, leaf = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        value = rng.normal(0, 0.05, shape).astype(np.float32)
        node[leaf] = np.abs(value) + 0.5 if leaf in ("var", "scale") else value
    return tree


def same(found: Any, wanted: Any) -> bool:
    found, wanted = leaves(found), leaves(wanted)
    return found.keys() == wanted.keys() and all(
        np.array_equal(np.asarray(found[path]), wanted[path]) for path in wanted
    )


def other_encoder(cfg: Config, encoder: Encoder) -> Config:
    return replace(cfg, model=replace(cfg.model, encoder=encoder))


def write_files(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """`network.npz` (a segmentor), `other.npz` (another one), `encoder.npz` and their values."""
    cfg = config()
    first, second = variables(cfg, 1), variables(cfg, 2)
    savez: Any = np.savez
    savez(folder / "network.npz", **export_torch(first, "segmentor", complete=True))
    savez(folder / "other.npz", **export_torch(second, "segmentor"))
    encoder = {name: below.get("encoder", {}) for name, below in second.items()}
    savez(folder / "encoder.npz", **export_torch(encoder, "mit"))
    return folder, first, second
