"""Two steps of one global batch each on several meshes; run as a program of its own, since a
process has one number of devices.

    python many_devices.py FOLDER CONFIG ADDRESS INDEX     one of two processes, of 2 fake devices
    python many_devices.py FOLDER CONFIG                   afterwards, one process of 8

Writes FOLDER/found.<processes>.npz. The first step starts from fresh weights, the second from the
checkpoint that the two processes wrote between them.
"""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import vit_run

from mrm_jax import recipes, sharding
from mrm_jax.command import load_config
from mrm_jax.config import Encoder
from mrm_jax.data.pipeline import train_batches
from mrm_jax.hosts import group
from mrm_jax.machine.plan import collectives
from mrm_jax.runs.checkpoint import Checkpoints
from mrm_jax.runs.saved import facts_under
from mrm_jax.train.step import build_step

MESHES = ((1, 1), (2, 1), (8, 4))
PAIR = "two processes"  # of two devices each, as (4, 2)
VIT = ("vit 1x1", "vit 4x1")
SENT = ("all-gather", "all-to-all", "collective-permute")
"""What moves arrays between devices without adding them up."""


def config(tiny):
    """DAFormer with MRM at the size of a stamp: BatchNorm, rare draws, ClassMix, masks, dropout."""
    base = load_config([f"--config={tiny}"])
    encoder = Encoder("mit", (8,), (1,), (4,), heads=(2,), sr_ratios=(2,), mlp_ratios=(1,))
    made = replace(base, model=replace(base.model, encoder=encoder, unroll=False))
    # All views through one encoder: half the program to compile.
    train = replace(made.train, batch=8, pass_execution="stacked")
    made = replace(made, data=replace(made.data, crop=(32, 32)), train=train)
    made = recipes.apply(made, "daformer,mrm=true")
    rare = replace(made.data.rare_class, min_share=0.01, on_missing="warn")
    made = replace(made, data=replace(made.data, rare_class=rare))
    distance = replace(made.method.feature_distance, classes=())
    mrm = replace(made.method.mrm, grid=(4, 4))
    return replace(made, method=replace(made.method, feature_distance=distance, mrm=mrm))


def batches(made, mesh):
    """The first two, each read where it is needed."""
    rows = {"process_index": group.host_index(), "process_count": group.host_count()}
    both = train_batches(replace(made, train=replace(made.train, steps=2)), **rows)
    return [sharding.put_batch(batch, mesh) for batch in both]


def flat(tree, name, mesh):
    leaves = jax.tree_util.tree_leaves_with_path(sharding.gathered(tree, mesh))
    return {f"{name}{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves}


def two_steps(made, program, mesh, checkpoints):
    """What both steps were given and what they gave, as flat arrays."""
    key = jax.random.key_data(jax.random.key(1))
    state = sharding.init_on_mesh(program.init, key, mesh)
    encoder = sharding.gathered(state.params["segmentor"]["encoder"], mesh)
    encoder = {"params": jax.tree.map(lambda leaf: leaf * 0.9, encoder), "batch_stats": {}}
    frozen = jax.device_put(program.frozen(made, encoder), sharding.replicated(mesh))
    first, second = batches(made, mesh)
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    found = {}
    for number, batch in enumerate((first, second)):
        found |= flat(batch, f"batch/{number}", mesh)
        draws = jax.jit(program.draw)(state.root_key, number, batch.index)
        found |= flat(draws, f"draws/{number}", mesh)
    step = sharding.jit_step(program.train_step, state, mesh)
    compiled = step.lower(state, frozen, first).compile(sharding.quick(mesh))
    sent = collectives(compiled.as_text())
    found["sent"] = np.asarray([sent.get(kind, {"bytes": 0})["bytes"] for kind in SENT])
    learnt = jax.tree.leaves((state.params, state.teacher_params))
    found["learnt"] = np.asarray(sum(leaf.nbytes for leaf in learnt))
    after, metrics = compiled(state, frozen, first)
    found |= flat(after.opt_state, "moments", mesh) | flat(metrics, "metric", mesh)
    kernel = after.params["segmentor"]["decoder"]["classifier"]["kernel"]
    found["held"] = np.asarray(kernel.addressable_shards[0].data.shape)
    if group.host_count() > 1:
        checkpoints.save(1, after, facts_under(made, scores={}))
        checkpoints.wait()
    after, _ = checkpoints.restore(1, like)
    _, metrics = compiled(after, frozen, second)
    return found | flat(metrics, "resumed/metric", mesh)


def vit_step(devices):
    """What a step of `vit_run` gives: hidden tokens and MRM on a ViT."""
    made = vit_run.config(batch=8)
    train = replace(made.train, pass_execution="stacked")
    # No pixel is on the verge of being counted as a sure one.
    made = replace(made, train=train, method=replace(made.method, threshold=0.0))
    program, mesh = build_step(made), sharding.mesh(devices, batch=8)
    state = vit_run.state(program, np.float32)
    state = jax.device_put(state, sharding.of_state(state, mesh))
    frozen = jax.device_put(program.frozen(made), sharding.replicated(mesh))
    batch = sharding.put_batch(vit_run.batch(8), mesh)
    step = sharding.jit_step(program.train_step, state, mesh).lower(state, frozen, batch)
    after, metrics = step.compile(sharding.quick(mesh))(state, frozen, batch)
    return flat(after.opt_state, "moments", mesh) | flat(metrics, "metric", mesh)


def main(folder, tiny, address=None, index="0"):
    made = config(tiny)
    ours = replace(made.mesh, coordinator=address, heartbeat=30)
    if address is not None:
        ours = replace(ours, process_count=2, process_index=int(index))
    with group.joined(replace(made, mesh=ours)):
        checkpoints = Checkpoints(Path(folder) / "checkpoints", keep=1)
        program, found = build_step(made), {}
        meshes = (
            {PAIR: (4, 2)} if group.host_count() > 1 else {f"{d}x{f}": (d, f) for d, f in MESHES}
        )
        for name, (devices, fsdp) in meshes.items():
            mesh = sharding.mesh(devices, batch=8, fsdp=fsdp)
            arrays = two_steps(made, program, mesh, checkpoints)
            found |= {f"{name}:{key}": value for key, value in arrays.items()}
        if group.host_count() == 1:
            for name, devices in zip(VIT, (1, 4), strict=True):
                found |= {f"{name}:{key}": value for key, value in vit_step(devices).items()}
        if group.is_main():
            np.savez(Path(folder) / f"found.{group.host_count()}.npz", **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
