"""Where every array of a step lives: one axis of devices, the batch spread over it, the state on
all of them.

The only partition specs of the package. Rows are matched in order, so a later split of the
parameters is one row here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mrm_jax.config import UsageError
from mrm_jax.types import Batch

AXIS = "data"

# (path of a leaf of the state, spec); first full match wins.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"step|root_key", PartitionSpec()),
    (r"(?:params|batch_stats|teacher_params|teacher_batch_stats|opt_state)/.+", PartitionSpec()),
)


def mesh(devices: int | None = None, *, batch: int | None = None) -> Mesh:
    """A line of `devices` devices (None: all there are) called "data".

    Raises UsageError where there are fewer, or where `batch` (pictures a step) cannot be shared out
    evenly.
    """
    available = jax.devices()
    count = len(available) if devices is None else devices
    if not 1 <= count <= len(available):
        raise UsageError(
            f"config.mesh.devices is {count}; JAX sees {len(available)} {available[0].platform} "
            f"device(s). Use 1 to {len(available)}, or leave it empty for all."
        )
    if batch is not None and batch % count:
        fitting = max(n for n in range(1, count + 1) if batch % n == 0)
        raise UsageError(
            f"config.train.batch is {batch}, which {count} devices cannot share evenly. "
            f"Use a multiple of {count}, or config.mesh.devices={fitting}."
        )
    return Mesh(np.asarray(available[:count]), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis in equal contiguous blocks, one a device."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def of_state(state: Any, mesh: Mesh) -> Any:
    """A sharding for every leaf of `state` (arrays or abstract), by `RULES`; ValueError for a leaf
    without a rule.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        del leaf
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, spec in RULES:
            if re.fullmatch(pattern, name):
                return NamedSharding(mesh, spec)
        raise ValueError(f"No sharding rule covers the state's leaf {name}; add one.")

    return jax.tree_util.tree_map_with_path(sharding, state)


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """The global batch on the mesh, from the part that this process read (all of it where there is
    one process).
    """
    target = over_batch(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(target, np.asarray(x)), batch
    )


def init(make: Callable[..., Any], key: Any, mesh: Mesh) -> Any:
    """`make(key)` run straight onto the mesh, with the state's shardings."""
    shardings = of_state(jax.eval_shape(make, key), mesh)
    # Run once: on CPU, optimising hundreds of small draws costs four times what it takes without.
    return jax.jit(make, out_shardings=shardings, compiler_options=quick(mesh))(key)


def quick(mesh: Mesh) -> dict[str, int] | None:
    """Compiler options that leave machine code unoptimised: for programs that hardly run. CPU."""
    cpu = mesh.devices.flat[0].platform == "cpu"
    return {"xla_backend_optimization_level": 0} if cpu else None


def jit_step(step: Callable[..., Any], state: Any, mesh: Mesh, *, carried: int = 0) -> Any:
    """`step(state, *carried, frozen, batch) -> (state, *carried, metrics)`, jitted over `mesh`; the
    state it is given is donated.

    state: the state or its abstract form, for its shardings. carried: how many small arrays travel
    beside the state.
    """
    shardings, copies = of_state(state, mesh), (replicated(mesh),) * (carried + 1)
    return jax.jit(
        step,
        in_shardings=(shardings, *copies, over_batch(mesh)),
        out_shardings=(shardings, *copies),
        donate_argnums=0,
    )
