"""How fast a config's step is on the devices at hand, and what XLA says it costs.

Nothing is read: pictures and labels are random, of the config's crop and batch. Parameters are
fresh. What a network computes takes the same time whatever the numbers are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, cached_property, partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax import rngs, sharding
from mrm_jax.allocator import keep_memory, release
from mrm_jax.config import Config, Evaluation, input_stats, smallest_picture
from mrm_jax.machine import parts
from mrm_jax.machine.estimate import flops
from mrm_jax.machine.noise import noise
from mrm_jax.machine.work import Call, Whats, Work, costs, spread, timed
from mrm_jax.ops.precision import multiplying
from mrm_jax.train.step import Program, build_step
from mrm_jax.types import Batch, Frozen, Labelled, TrainState, Unlabelled
from mrm_jax.uda.methods import has_feature_distance
from mrm_jax.uda.objectives import weighted_cross_entropy

What = Literal["inference", "forward", "backward", "step"]
WHATS: tuple[What, ...] = get_args(What)
"""inference: the classes of one picture of the crop, as prediction makes them; forward: the
student's cross entropy on the source pictures, as in training (HRDA: of the fused logits alone);
backward: that and its gradient; step: all of a training step."""


def random_batch(config: Config, seed: int = 0) -> Batch:
    """A batch of noise with the config's crop and `train.batch`: u8 pictures, every class."""
    source, target, label = noise(config, seed)
    index = np.arange(len(label), dtype=np.int32)
    return Batch(Labelled(source, label), Unlabelled(target, np.ones_like(label)), index)


def measure_compute(
    config: Config, whats: Whats, *, repeats: int, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """One report for each of `whats`, in the order of `WHATS`, and of each part under "parts", JSON
    as it is:

    `device`, `what`, `seconds` of a call {median, min, max, count}, `compile_seconds` (tracing,
    lowering and compiling), `images_per_second` (source pictures, or the one of inference, at the
    median), and of one device by XLA's own count `flops`, `bytes_accessed` and `peak_bytes` (None
    where XLA does not say; of inference the network's alone); of a part also `part` and `times`,
    how often the network holds it. XLA counts the body of a loop once, so with model.unroll=False
    `flops` and `bytes_accessed` are too low. say: told what is going on. Raises UsageError for a
    mesh that does not fit.
    """
    whole = config.train.batch, sharding.run_mesh(config)
    listed = works(config, whats)
    for number, work in enumerate(listed, 1):
        name = f"{work.part} {work.what}".strip()
        say(f"compiling {name} ({number} of {len(listed)}) ...")
        began = time.perf_counter()
        with multiplying(config.model.precision):
            call = work.make()
        seconds = time.perf_counter() - began
        say(f"compiled {name} in {seconds:.1f} s; {repeats} calls ...")
        times = spread(timed(call.run, repeats)["wall"])
        pictures, mesh = (1, sharding.mesh(1)) if work.what == "inference" else whole
        yield {
            "device": _device(mesh),
            "what": work.what,
            **({"part": work.part, "times": work.times} if work.part else {}),
            "seconds": times,
            "compile_seconds": seconds,
            "images_per_second": pictures / times["median"],
            **call.costs,
        }


def works(config: Config, whats: Whats) -> list[Work]:
    """What can be timed of a config: a picture's classes, the student's loss, its gradient, a
    training step, parts."""
    mesh = sharding.run_mesh(config)
    keep_memory(mesh.devices.flat[0].platform)
    run = _Run(config, mesh)
    found = [
        Work(what, make=lambda what=what: run.call(what)) for what in WHATS if what in whats
    ]  # the step last: as in training, it is given the state to keep (donated)
    return found + (parts.works(config, mesh) if "parts" in whats else [])


def versions() -> dict[str, str]:
    """Of what computes."""
    return {"jax": jax.__version__}


class _Run:
    """The step of a config, with a state and a batch, made when they are first needed."""

    def __init__(self, config: Config, mesh: jax.sharding.Mesh):
        self.config, self.mesh, self.program = config, mesh, build_step(config)
        self.batch = sharding.put_batch(random_batch(config), mesh)

    @cached_property
    def state(self) -> TrainState:
        key = jax.random.key_data(rngs.root(self.config.seed))
        return sharding.init_on_mesh(self.program.init, key, self.mesh)

    @cached_property
    def frozen(self) -> Frozen:
        compared = has_feature_distance(self.config.method)
        made = self.program.frozen(self.config, _encoder(self.state) if compared else None)
        return jax.device_put(made, sharding.replicated(self.mesh))

    def call(self, what: str) -> Call:
        if what == "inference":
            return self._inference()
        options = None if self.config.train.optimise else sharding.quick(self.mesh)
        jitted = _jitted(self.program, what, self.state, self.mesh)
        traced = jitted.trace(self.state, self.frozen, self.batch)
        compiled = traced.lower().compile(compiler_options=options)
        alone = flops(traced.jaxpr) / self.mesh.size / product_rate(self.config.model.dtype)
        counted = {**costs(compiled), "products_seconds": alone}
        release()  # also what counting and the large product took, which no step needs

        def run() -> None:
            out = _finished(compiled, self.state, self.frozen, self.batch)
            if what == "step":
                self.state = out[0]

        return Call(run, counted)

    def _inference(self) -> Call:
        """run() gives what a user gets of a picture: (train ids u8[1, H, W], probability of each
        f32[1, H, W]), on the host. The costs are the network's, without what makes pixels of its
        map."""
        # Here, since it takes 30 MB that no step holds.
        from mrm_jax.evaluation.inference import maps
        from mrm_jax.evaluation.network import TrainedNetwork

        def drawn(key: jax.Array) -> dict[str, Any]:
            state = self.program.init(key)
            return {"params": state.params["segmentor"], "batch_stats": state.batch_stats}

        # The network alone, without teacher and moments, so that memory is that of prediction.
        options = sharding.quick(self.mesh)
        key = jax.random.key_data(rngs.root(self.config.seed))
        variables = jax.jit(drawn, compiler_options=options)(key)
        size, model = self.config.data.crop, self.config.model
        # Once through the network, whatever the config's protocol does with larger pictures.
        config = replace(self.config, evaluation=Evaluation(whole_pixels=size[0] * size[1]))
        net = TrainedNetwork(config, self.program.networks.segmentor, variables)
        picture = noise(config).target[:1]
        how: Any = {"stats": input_stats(model), "smallest": smallest_picture(model)}
        with multiplying(model.precision):
            traced = maps.trace(net.module, variables, picture, **how)
            counted = costs(traced.lower().compile())
        alone = flops(traced.jaxpr) / product_rate(model.dtype)
        release()
        run = partial(net.classified, (picture,), size)
        return Call(run, {**counted, "products_seconds": alone})


@cache
def product_rate(dtype: str) -> float:
    """Floating point operations a second of a large matrix product on one device: the best of five
    that took 0.1 s at least (on a CPU)."""
    for side in (1024, 2048, 4096, 8192):
        x = jnp.ones((side, side), dtype)
        product = jax.jit(jnp.dot).lower(x, x).compile()
        best = min(timed(partial(_finished, product, x, x), 5)["wall"])
        if best > 0.1:
            break
    return 2 * side**3 / best


def _finished(program: Any, *arguments: Any) -> Any:
    return jax.block_until_ready(program(*arguments))


def _encoder(state: TrainState) -> dict[str, Any]:
    """The student's encoder in place of the frozen one of the feature distance: as large, and in
    memory of its own, since the step is given the state's."""
    student = {"params": state.params["segmentor"], "batch_stats": state.batch_stats}
    return {name: jax.tree.map(jnp.copy, tree.get("encoder", {})) for name, tree in student.items()}


def _device(mesh: jax.sharding.Mesh) -> str:
    kind = mesh.devices.flat[0].device_kind
    return kind if mesh.size == 1 else f"{mesh.size} x {kind}"


def _jitted(program: Program, what: str, state: TrainState, mesh: jax.sharding.Mesh) -> Any:
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
