"""One step of one global batch on several meshes of 8 fake devices; run as a program of its own,
since a process has one number of devices.

    python many_devices.py OUT.npz CONFIG
"""

import sys
from dataclasses import replace

import jax
import numpy as np

from mrm_jax import recipes, sharding
from mrm_jax.command import load_config
from mrm_jax.config import Encoder
from mrm_jax.train.bench import random_batch
from mrm_jax.train.step import build

MESHES = ((1, 1), (2, 1), (4, 2), (8, 4))


def config(tiny):
    """DAFormer with MRM at the size of a stamp: BatchNorm, rare draws, ClassMix, masks, dropout."""
    base = load_config([f"--config={tiny}"])
    encoder = Encoder("mit", (8,), (1,), (4,), heads=(2,), sr_ratios=(2,), mlp_ratio=1)
    made = replace(base, model=replace(base.model, encoder=encoder, unroll=False))
    # All views through one encoder: half the program to compile.
    train = replace(made.train, batch=8, pass_execution="stacked")
    made = replace(made, data=replace(made.data, crop=(32, 32)), train=train)
    made = recipes.apply(made, "daformer,mrm=true")
    distance = replace(made.method.feature_distance, classes=())
    mrm = replace(made.method.mrm, grid=(4, 4))
    return replace(made, method=replace(made.method, feature_distance=distance, mrm=mrm))


def main(out, tiny):
    made = config(tiny)
    program = build(made)
    found = {}
    for devices, fsdp in MESHES:
        mesh = sharding.mesh(devices, batch=8, fsdp=fsdp)
        key = jax.random.key_data(jax.random.key(1))
        state = sharding.init(program.init, key, mesh)
        encoder = {"params": state.params["segmentor"]["encoder"], "batch_stats": {}}
        encoder = jax.tree.map(lambda leaf: np.asarray(leaf) * 0.9, encoder)
        frozen = jax.device_put(program.frozen(made, encoder), sharding.replicated(mesh))
        batch = sharding.put_batch(random_batch(made), mesh)
        step = sharding.jit_step(program.train_step, state, mesh)
        lowered = step.lower(state, frozen, batch).compile(sharding.quick(mesh))
        after, metrics = lowered(state, frozen, batch)
        name = f"{devices}x{fsdp}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(after.opt_state):
            found[f"{name}:{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
        for key, value in metrics.items():
            found[f"{name}:metric/{key}"] = np.asarray(value)
        kernel = after.params["segmentor"]["decoder"]["classifier"]["kernel"]
        found[f"{name}:held"] = np.asarray(kernel.addressable_shards[0].data.shape)
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
