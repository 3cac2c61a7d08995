"""Where every array of a step lives: the batch spread over all devices, parameters, teacher and
optimizer state over the axis `fsdp` of them.

The only partition specs of the package. Rows are matched in order. What a step means does not
depend on the mesh: under jit, BatchNorm's statistics and the share of confident pixels are those of
the global batch.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mrm_jax.config import Config
from mrm_jax.errors import UsageError
from mrm_jax.registry import DECODER_KINDS, ENCODER_KINDS
from mrm_jax.types import Batch

DATA, FSDP = "data", "fsdp"

_LEARNT = r"(?:params|teacher_params|opt_state)/(?:.+/)?"
RULES: tuple[tuple[str, int | None], ...] = (
    (r"step|root_key|opt_state/count", None),
    (r"(?:batch_stats|teacher_batch_stats)/.+", None),
    # The outputs of these are classes or pixels, whose numbers nothing divides.
    (_LEARNT + r"(?:classifier|pixels/.*)/kernel", -2),
    (_LEARNT + r"kernel", -1),
    (_LEARNT + r"(?:bias|scale|mask_token|vectors)", None),
)
"""(path of a leaf of the state, the axis that is split over `fsdp`, None: all of it everywhere);
the first full match wins, of the rules of registered networks and then of these."""


def mesh(
    devices: int | None = None,
    *,
    batch: int | None = None,
    microbatches: int = 1,
    fsdp: int = 1,
    among: Sequence[Any] | None = None,
) -> Mesh:
    """`devices` of the devices `among` (None: all of those that JAX sees) as (data, fsdp), those of
    one process side by side.

    Raises UsageError where there are fewer, where `fsdp` does not divide them, or where one of the
    `microbatches` of a batch (pictures a step) cannot be shared out evenly.
    """
    available = sorted(among or jax.devices(), key=lambda device: (device.process_index, device.id))
    count = _count(devices, len(available), available[0].platform, fsdp)
    several = bool(available[-1].process_index)
    if count < len(available) and several:
        raise UsageError.of(
            "config.mesh.devices",
            devices,
            f"; several hosts use all of their {len(available)} devices:",
            "leave it empty.",
        )
    if batch is not None:
        _check_shares(batch, microbatches, count, fsdp, fewer=not several)
    grid = np.asarray(available[:count]).reshape(count // fsdp, fsdp)
    return Mesh(grid, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def _count(devices: int | None, available: int, platform: str, fsdp: int) -> int:
    count = available if devices is None else devices
    if not 1 <= count <= available:
        raise UsageError.of(
            "config.mesh.devices",
            count,
            f"; JAX sees {available} {platform} device{'s' if available > 1 else ''}.",
            f"Use 1{f' to {available}' if available > 1 else ''}, or leave it empty for all.",
        )
    if fsdp < 1 or count % fsdp:
        raise UsageError.of(
            "config.mesh.fsdp",
            fsdp,
            f", which does not divide {count} device{'s' if count > 1 else ''}",
            f"use {'one of ' if count > 1 else ''}{', '.join(map(str, _divisors(count)))}.",
        )
    return count


def _divisors(count: int) -> list[int]:
    return [n for n in range(1, count + 1) if count % n == 0]


def _check_shares(batch: int, parts: int, devices: int, fsdp: int, *, fewer: bool) -> None:
    """Raises UsageError, naming the nearest numbers that fit, where a part is not the same number
    of pictures on every device: XLA would fill up in silence and send them around in every layer.

    fewer: whether fewer devices may be used.
    """
    every = devices * parts
    if batch % every == 0:
        return
    batches = [n for n in (batch // every * every, (batch // every + 1) * every) if n]
    ways = [f"config.train.batch={' or '.join(map(str, batches))}"]
    if batch % devices == 0:
        share = batch // devices
        fitting = [n for n in range(1, share + 1) if share % n == 0]
        near = [*[n for n in fitting if n < parts][-1:], *[n for n in fitting if n > parts][:1]]
        ways.insert(0, f"config.train.microbatches={' or '.join(map(str, near))}")
    fit = [n for n in range(fsdp, devices, fsdp) if batch % (n * parts) == 0]
    if fewer and fit:
        ways.append(f"config.mesh.devices={fit[-1]}")
    of = f" in {parts} parts (config.train.microbatches)" if parts > 1 else ""
    raise UsageError.of(
        "config.train.batch",
        batch,
        f"{of}, which {devices} devices cannot share evenly.",
        f"Use {', or '.join(ways)}.",
    )


def run_mesh(config: Config, among: Sequence[Any] | None = None) -> Mesh:
    """The mesh that a config asks for; see `mesh`."""
    wanted, train = config.mesh, config.train
    return mesh(
        wanted.devices,
        batch=train.batch,
        microbatches=train.microbatches,
        fsdp=wanted.fsdp,
        among=among,
    )


def imagined_mesh(config: Config, available: int, platform: str) -> AbstractMesh:
    """The mesh that a config asks for where there were `available` devices of `platform` (cpu, gpu
    or tpu); for shapes alone. Raises UsageError as `mesh`."""
    wanted, train = config.mesh, config.train
    count = _count(wanted.devices, available, "such", wanted.fsdp)
    _check_shares(train.batch, train.microbatches, count, wanted.fsdp, fewer=True)
    shape = (count // wanted.fsdp, wanted.fsdp)
    return AbstractMesh(shape, (DATA, FSDP), abstract_device=imagined_device(platform))


def imagined_device(platform: str) -> AbstractDevice:
    """What JAX says of a device of `platform`, the name of its kind too; see `by_platform`."""
    said = {"device_kind": platform, "num_cores": None, "platform": platform}
    fields = dataclasses.fields(AbstractDevice)  # jax 0.8 has no platform among them
    return AbstractDevice(**{field.name: said[field.name] for field in fields})


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The leading axis in equal contiguous blocks, one a device."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def of_state(state: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A sharding for every leaf of `state` (arrays or abstract), by `RULES`. Raises ValueError for
    a leaf without a rule, UsageError for one that the mesh does not divide; both name it.
    """

    rules = (*_registered_rules(), *RULES)

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, axis in rules:
            if re.fullmatch(pattern, name):
                return NamedSharding(mesh, _spec(name, leaf.shape, axis, mesh.shape[FSDP]))
        raise ValueError(f"No sharding rule covers the state's leaf {name}; add one.")

    return jax.tree_util.tree_map_with_path(sharding, state)


def placed(shapes: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A state's abstract `shapes` with their shardings, see `of_state`."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        of_state(shapes, mesh),
    )


def _registered_rules() -> tuple[tuple[str, int | None], ...]:
    """The rules that encoders and decoders were registered with."""
    return tuple(
        (rf"{_LEARNT}(?:{where})/(?:{pattern})", axis)
        for where, table in (("encoder", ENCODER_KINDS), ("decoder|attention", DECODER_KINDS))
        for kind in table
        for pattern, axis in kind.sharding
    )


def _spec(name: str, shape: tuple[int, ...], axis: int | None, parts: int) -> PartitionSpec:
    if axis is None or parts == 1:
        return PartitionSpec()
    if shape[axis] % parts:
        raise UsageError.of(
            "config.mesh.fsdp",
            parts,
            f", which does not divide axis {axis} of {name}, of shape {shape}",
            f"use a divisor of {shape[axis]}.",
        )
    return PartitionSpec(*[FSDP if i == len(shape) + axis else None for i in range(len(shape))])


def whole(tree: Any) -> Any:
    """The arrays of `tree`, each complete on every device, for use inside a step.

    Under `mesh.fsdp` above 1 a device stores only a part of each parameter. A network needs them
    complete, so the step passes parameters through this function before the network, and so its
    gradients after it. Does nothing outside of a step traced by `jit_step`, nor with fsdp 1.

    Without it XLA splits the arithmetic as the parameters are, and moves activations between
    devices in every layer. A sharding constraint does not stop it at loops; what leaves a
    `shard_map` is complete.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape[FSDP] == 1:
        return tree
    all_of_it = PartitionSpec()
    same = jax.shard_map(lambda leaves: leaves, mesh=mesh, in_specs=all_of_it, out_specs=all_of_it)
    return same(tree)


def by_picture(x: Any) -> Any:
    """`x` with its leading axis over the devices, as the batch's, for use inside a step; as it is
    outside of one traced by `jit_step`, or on one device.

    For what lies between two conditionals: XLA for GPUs (jax 0.10.2) takes the first one's result
    for a copy on every device, and gathers the whole batch's pictures in both of its branches. XLA
    for CPU and TPU does not (tests/test_sharding.py).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec((DATA, FSDP)))


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """The global batch on the mesh, from the part that this process read (all of it where there is
    one process).
    """
    target = over_batch(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(target, np.asarray(x)), batch
    )


def put_wish(wish: int, mesh: Mesh) -> jax.Array:
    """i32[devices] with this process's `wish` in the entries of its devices."""
    mine = np.full(len(mesh.local_devices), wish, np.int32)
    return jax.make_array_from_process_local_data(over_batch(mesh), mine)


def gathered(tree: Any, mesh: Mesh) -> Any:
    """`tree` as numpy on every host; to be called by all of them."""
    return jax.device_get(_everywhere(tree, mesh))


def on_this_host(tree: Any, mesh: Mesh) -> Any:
    """`tree` with all of it on this host's own devices, for programs that only this host runs; to
    be called by all of them. As it is where there is one.
    """
    if len(mesh.local_devices) == mesh.size:
        return tree
    here = np.asarray(mesh.local_devices).reshape(-1, 1)
    target = replicated(Mesh(here, (DATA, FSDP), axis_types=mesh.axis_types))
    return jax.tree.map(
        lambda leaf: jax.make_array_from_single_device_arrays(
            leaf.shape, target, [shard.data for shard in leaf.addressable_shards]
        ),
        _everywhere(tree, mesh),
    )


def _everywhere(tree: Any, mesh: Mesh) -> Any:
    if all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.jit(_same, out_shardings=replicated(mesh))(tree)


def _same(tree: Any) -> Any:
    return tree


def init_on_mesh(make: Callable[..., Any], key: Any, mesh: Mesh) -> Any:
    """`make(key)` run straight onto the mesh, with the state's shardings."""
    return traced_init(make, key, mesh)()


def traced_init(make: Callable[..., Any], key: Any, mesh: Mesh) -> Callable[[], Any]:
    """What compiles and runs `init_on_mesh`, which is traced by now."""
    traced = jax.jit(make).trace(key)  # made once, also where shapes were asked for before
    leaves, structure = jax.tree.flatten(of_state(traced.out_info, mesh))
    # JAX keeps a program as long as its function lives, 100 MB of a small network's and 560 of a
    # MiT-B5's. This function ends here.
    lowered = jax.jit(jaxpr_as_fun(traced.jaxpr), out_shardings=leaves).lower(key)
    # Run once: on CPU, optimising hundreds of small draws costs four times what it takes without.
    options = quick(mesh)
    return lambda: structure.unflatten(lowered.compile(compiler_options=options)(key))


def quick(mesh: Mesh) -> dict[str, Any] | None:
    """Compiler options that leave machine code unoptimised: for programs that hardly run. CPU."""
    cpu = mesh.devices.flat[0].platform == "cpu"
    return {"xla_backend_optimization_level": 0} if cpu else None


_IN_PLACE = {"xla_cpu_copy_insertion_use_region_analysis": True}
"""With it XLA's CPU compiler sees that the new moments of AdamW may overwrite the old ones, which
it copies otherwise when a step begins: twice the parameters. Results are the same."""


def jit_step(step: Callable[..., Any], state: Any, mesh: Mesh, *, carried: int = 0) -> Any:
    """`step(state, *carried, frozen, batch) -> (state, *carried, metrics)`, jitted over `mesh`; the
    state it is given is donated.

    state: the state or its abstract form, for its shardings. carried: how many small arrays travel
    beside the state.
    """
    shardings, copies = of_state(state, mesh), (replicated(mesh),) * (carried + 1)

    def on_mesh(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for `whole`
            return step(*arguments)

    return jax.jit(
        on_mesh,
        in_shardings=(shardings, *copies, over_batch(mesh)),
        out_shardings=(shardings, *copies),
        donate_argnums=0,
        compiler_options=_IN_PLACE if mesh.devices.flat[0].platform == "cpu" else None,
    )
