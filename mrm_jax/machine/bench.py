"""How fast a config's step is on the devices at hand, and what XLA says it costs.

Nothing is read: pictures and labels are random, of the config's crop and batch. Parameters are
fresh. What a network computes takes the same time whatever the numbers are.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax import rngs, sharding
from mrm_jax.allocator import keep_memory
from mrm_jax.config import Config
from mrm_jax.ops.precision import multiplying
from mrm_jax.train.step import Program, build_step
from mrm_jax.types import Batch, Frozen, Labelled, TrainState, Unlabelled
from mrm_jax.uda.objectives import weighted_cross_entropy

What = Literal["forward", "backward", "step"]
WHATS: tuple[What, ...] = get_args(What)
"""forward: the student's cross entropy on the source pictures, as in training (HRDA: of the fused
logits alone); backward: that and its gradient; step: all of a training step."""

WARM_UP = 1
"""Calls that are not timed: the first one also loads code and allocates."""


def random_batch(config: Config, seed: int = 0) -> Batch:
    """A batch of noise with the config's crop and `train.batch`: u8 pictures, every class."""
    rng = np.random.default_rng(seed)
    shape = (config.train.batch, *config.data.crop)
    source, target = (rng.integers(0, 256, (*shape, 3), np.uint8) for _ in range(2))
    label = rng.integers(0, len(config.data.classes.names), shape, np.uint8)
    index = np.arange(shape[0], dtype=np.int32)
    return Batch(Labelled(source, label), Unlabelled(target, np.ones_like(label)), index)


def measure_compute(
    config: Config, whats: Collection[What], *, repeats: int, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """One report for each of `whats`, in the order of `WHATS`, JSON as it is:

    `device`, `what`, `seconds` of a call {median, min, max, count}, `compile_seconds` (tracing,
    lowering and compiling), `images_per_second` (source pictures, at the median), and of one device
    by XLA's own count `flops`, `bytes_accessed` and `peak_bytes` (None where XLA does not say). XLA
    counts the body of a loop once, so with model.unroll=False `flops` and `bytes_accessed` are too
    low. say: told what is going on. Raises UsageError for a mesh that does not fit.
    """
    mesh = sharding.run_mesh(config)
    keep_memory(mesh.devices.flat[0].platform)
    program = build_step(config)
    batch = sharding.put_batch(random_batch(config), mesh)
    options = None if config.train.optimise else sharding.quick(mesh)
    key = jax.random.key_data(rngs.root(config.seed))
    state = sharding.init_on_mesh(program.init, key, mesh)
    frozen = jax.device_put(program.frozen(config, _encoder(state)), sharding.replicated(mesh))
    for what in WHATS:  # the step last: as in training, it is given the state to keep (donated)
        if what not in whats:
            continue
        say(f"compiling {what} ...")
        began = time.perf_counter()
        jitted = _jitted(program, what, state, mesh)
        with multiplying(config.model.precision):
            compiled = jitted.lower(state, frozen, batch).compile(compiler_options=options)
        seconds = time.perf_counter() - began
        say(f"compiled {what} in {seconds:.1f} s; {repeats} calls ...")
        times = _time(compiled, what, state, frozen, batch, repeats)
        yield {
            "device": _device(mesh),
            "what": what,
            "seconds": times,
            "compile_seconds": seconds,
            "images_per_second": config.train.batch / times["median"],
            **costs(compiled),
        }


def costs(compiled: Any) -> dict[str, float | None]:
    """`flops`, `bytes_accessed` and `peak_bytes` of a compiled program, by XLA, on one device.

    `peak_bytes`: what XLA says the peak is; where it does not say, arguments, outputs that share no
    memory with them, and temporaries.
    """
    counted = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    peak = None
    if memory is not None:
        # Some back ends report a peak without the arguments, or none at all.
        given = memory.argument_size_in_bytes + memory.output_size_in_bytes
        whole = given - memory.alias_size_in_bytes + memory.temp_size_in_bytes
        peak = max(whole, getattr(memory, "peak_memory_in_bytes", 0))
    return {
        "flops": counted.get("flops"),
        "bytes_accessed": counted.get("bytes accessed"),
        "peak_bytes": peak,
    }


def _encoder(state: TrainState) -> dict[str, Any]:
    """The student's encoder in place of the frozen one of the feature distance: as large, and in
    memory of its own, since the step is given the state's."""
    student = {"params": state.params["segmentor"], "batch_stats": state.batch_stats}
    return {name: jax.tree.map(jnp.copy, tree.get("encoder", {})) for name, tree in student.items()}


def _device(mesh: jax.sharding.Mesh) -> str:
    kind = mesh.devices.flat[0].device_kind
    return kind if mesh.size == 1 else f"{mesh.size} x {kind}"


def _jitted(program: Program, what: What, state: TrainState, mesh: jax.sharding.Mesh) -> Any:
    """`(state, frozen, batch) -> anything`, jitted over `mesh`; "step" donates its state."""
    if what == "step":
        return sharding.jit_step(program.train_step, state, mesh)

    def loss(params: Any, state: TrainState, batch: Batch) -> jax.Array:
        draws = program.draw(state.root_key, state.step, batch.index)
        applied: Any = program.networks.segmentor.apply(
            {"params": params, "batch_stats": state.batch_stats},
            batch.source.image,
            mode="train",
            offset=draws.offset.get("source"),
            rngs={"dropout": rngs.typed(draws.module["source"])},
            mutable=["moments"],
        )
        return weighted_cross_entropy(applied[0].logits["main"], batch.source.label)

    run: Any = loss if what == "forward" else jax.value_and_grad(loss)

    def call(state: TrainState, frozen: Frozen, batch: Batch) -> Any:
        del frozen
        return run(state.params["segmentor"], state, program.normalise(state, batch))

    return jax.jit(call)


def _time(
    compiled: Any, what: What, state: TrainState, frozen: Frozen, batch: Batch, repeats: int
) -> dict[str, float]:
    """Seconds a call, each waited for."""
    seconds = []
    for _ in range(WARM_UP + repeats):
        began = time.perf_counter()
        out = jax.block_until_ready(compiled(state, frozen, batch))
        seconds.append(time.perf_counter() - began)
        if what == "step":
            state = out[0]
    timed = seconds[WARM_UP:]
    return {
        "median": statistics.median(timed),
        "min": min(timed),
        "max": max(timed),
        "count": len(timed),
    }
