"""What a config's step needs on devices that are not there: memory by part, operations, what goes
over the links, and the least time that it can take.

Where their compiler is installed (libtpu, JAX's CUDA plugin) it compiles the very step that
training runs; nothing runs. Without it the figures are counted on the jaxpr (`estimate`).
"""

from __future__ import annotations

import importlib.util
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import AbstractMesh, Mesh

from mrm_jax import rngs, sharding
from mrm_jax.config import Config
from mrm_jax.errors import RunError, UsageError
from mrm_jax.machine.chips import USABLE, UTILISATION, Slice
from mrm_jax.machine.estimate import flops, live_bytes
from mrm_jax.machine.work import costs
from mrm_jax.train.programs import Fed, lower
from mrm_jax.train.step import Program, build_step
from mrm_jax.types import Batch, Frozen, Labelled, TrainState, Unlabelled
from mrm_jax.uda.methods import has_feature_distance, looks_at_target

Arguments = tuple[TrainState, Any, Frozen, Fed]

_OF_STATE = {
    "params": ("params", "batch_stats"),
    "teacher": ("teacher_params", "teacher_batch_stats"),
    "optimizer": ("opt_state",),
}


def plan(
    config: Config,
    where: Slice,
    *,
    level: str = "O1",
    compiled: bool = True,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The step of `config` on the slice `where`, JSON as it is; bytes and flops are of one device.

    `topology`, `devices`, `batch` (all devices), `fsdp`, `source` ("compiled" or
    "estimated"), `hbm_bytes`, `peak_bytes`, `fits` (in `USABLE` of it), `bytes` by part,
    `flops_per_step` of the products, `bytes_accessed` (XLA, loops counted once; None estimated),
    `collectives` {kind: {count, bytes}} (likewise), `lower_bound_seconds` with its `bound_by` and
    `lower_bound_hours` for `train.steps`, `hours` [fewest, most] at the `utilisation` [most, least]
    of `chips.UTILISATION`, `knobs`: options that take less memory, where it does not fit,
    `compile_seconds`.

    level: XLA's effort, O0 to O3. compiled: False estimates in any case. Raises UsageError for a
    slice that its compiler does not know or a mesh that does not fit.
    """
    config = _spread(config, where, say)
    mesh, program = _mesh(config, where, compiled, say), build_step(config)
    arguments = abstract_arguments(config, program, mesh)
    parts = _argument_bytes(arguments)
    jaxpr = _one_device(config, mesh)
    counted: dict[str, Any] = {"flops_per_step": flops(jaxpr)}
    found: dict[str, Any] = {"source": "estimated"}
    if isinstance(mesh, Mesh):
        found = _compile(program, mesh, arguments, level, say)
        parts["temporaries"] = found.pop("temporaries", 0)
    else:
        parts["temporaries"] = live_bytes(jaxpr)
    found = {"bytes_accessed": None, "collectives": None, "compile_seconds": None} | found
    peak = max(sum(parts.values()), found.pop("peak_bytes", 0))
    parts["temporaries"] += peak - sum(parts.values())
    fits = peak <= USABLE * where.chip.memory
    return {
        "topology": where.name,
        "devices": mesh.size,
        "batch": config.train.batch,
        "fsdp": config.mesh.fsdp,
        "hbm_bytes": where.chip.memory,
        "peak_bytes": peak,
        "fits": fits,
        "bytes": parts,
        **counted,
        **found,
        **bound(config, where, counted["flops_per_step"], parts, found["collectives"]),
        "knobs": [] if fits else knobs(config, mesh.size),
    }


def _spread(config: Config, where: Slice, say: Callable[[str], None]) -> Config:
    """`config` with a batch that the devices can share, at least a picture of each microbatch for
    each."""
    wanted, train = config.mesh.devices or where.devices, config.train
    every = wanted * train.microbatches
    if train.batch % every == 0 or config.mesh.devices:
        return config
    batch = math.ceil(train.batch / every) * every
    parts = f" in {train.microbatches} parts" if train.microbatches > 1 else ""
    say(
        f"{wanted} devices cannot share config.train.batch={train.batch}{parts}; planned with "
        f"--config.train.batch={batch}."
    )
    return replace(config, train=replace(train, batch=batch))


def _mesh(
    config: Config, where: Slice, compiled: bool, say: Callable[[str], None]
) -> Mesh | AbstractMesh:
    """Of descriptions of the devices, where there is a compiler for them, or of nothing."""
    compiler = ("libtpu",) if where.is_tpu else ("jax_cuda12_plugin", "jax_cuda13_plugin")
    found = any(importlib.util.find_spec(name) for name in compiler)
    if compiled and not found:
        extra = "jax[tpu]" if where.is_tpu else "jax[cuda12]"
        say(f"{compiler[0]} is not there, so this is an estimate; install {extra}.")
    if not compiled or not found:
        platform = "tpu" if where.is_tpu else "gpu"
        return sharding.imagined_mesh(config, where.devices, platform)
    from jax.experimental import topologies

    if where.is_tpu:
        one = {"chips_per_host_bounds": (1,) * len(where.shape)} if where.devices == 1 else {}
        name, more = where.name, one
    else:
        name, more = "", {"target_config": where.target, "topology": f"1x1x{where.devices}"}
    try:
        found = topologies.get_topology_desc(
            platform="tpu" if where.is_tpu else "cuda", topology_name=name, **more
        )
    except jax.errors.JaxRuntimeError as error:
        raise UsageError.of(
            "--topology",
            where.name,
            f", for which {compiler[0]} does not compile: {str(error).partition(': ')[2]}. "
            "--estimate needs no compiler.",
        ) from error
    # A v4 chip has two cores, which train as one device but are described apart.
    return sharding.run_mesh(config, among=list(found.devices)[: where.devices])


def abstract_arguments(config: Config, program: Program, mesh: Mesh | AbstractMesh) -> Arguments:
    """What the step is given, as shapes with shardings."""
    key = jax.random.key_data(rngs.root(config.seed))
    state = jax.eval_shape(program.init, key)
    student = {"params": state.params["segmentor"], "batch_stats": state.batch_stats}
    encoder = {name: tree.get("encoder", {}) for name, tree in student.items()}
    compared = encoder if has_feature_distance(config.method) else None
    frozen = jax.eval_shape(lambda tree: program.frozen(config, tree), compared)
    copies, rows = sharding.replicated(mesh), sharding.over_batch(mesh)
    return (
        sharding.placed(state, mesh),
        _shape((), np.bool_, copies),
        jax.tree.map(lambda leaf: _shape(leaf.shape, leaf.dtype, copies), frozen),
        Fed(_batch(config, config.train.batch, rows), _shape((mesh.size,), np.int32, rows)),
    )


def _shape(shape: tuple[int, ...], dtype: Any, place: Any = None) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def _batch(config: Config, size: int, place: Any = None) -> Batch:
    def pictures(crop: tuple[int, int]) -> tuple[Any, Any]:
        plane = (size, *crop)
        return _shape((*plane, 3), np.uint8, place), _shape(plane, np.uint8, place)

    source = Labelled(*pictures(config.data.crop))
    target = Unlabelled(*pictures(config.data.crop if looks_at_target(config.method) else (0, 0)))
    return Batch(source, target, _shape((size,), np.int32, place))


def _one_device(config: Config, mesh: Mesh | AbstractMesh) -> Any:
    """The jaxpr of a step on one device's share of the batch."""
    share = config.train.batch // mesh.size
    config = replace(config, train=replace(config.train, batch=share))
    program = build_step(config)
    known = mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh
    alone = AbstractMesh((1, 1), known.axis_names, abstract_device=known.abstract_device)
    state, _, frozen, _ = jax.tree.map(
        lambda leaf: _shape(leaf.shape, leaf.dtype), abstract_arguments(config, program, alone)
    )
    with jax.sharding.use_abstract_mesh(alone):
        traced = jax.make_jaxpr(program.train_step)(state, frozen, _batch(config, share))
    return dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))[0]


def _argument_bytes(arguments: Arguments) -> dict[str, int]:
    """Bytes that one device holds of each thing that the step is given: parameters, teacher,
    optimizer, frozen networks and batch."""
    state, _, frozen, fed = arguments
    parts = {
        part: sum(_bytes(getattr(state, field)) for field in fields)
        for part, fields in _OF_STATE.items()
    }
    return {**parts, "frozen": _bytes(frozen), "batch": _bytes(fed.batch)}


def _bytes(tree: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _compile(
    program: Program, mesh: Mesh, arguments: Arguments, level: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """What XLA says of the step: `peak_bytes`, or only its `temporaries` where it is too large."""
    device = mesh.devices.flat[0]
    say(f"compiling for {mesh.size} x {device.device_kind}: minutes for a MiT-B5 ...")
    began = time.perf_counter()
    before = jax.config.values[_LEVEL]
    jax.config.update(_LEVEL, level)
    try:
        compiled = lower(program, mesh, arguments).compile(
            compiler_options=_OPTIONS[device.platform]
        )
    except jax.errors.JaxRuntimeError as error:
        return {"source": "compiled", "temporaries": too_large(error)}
    finally:
        jax.config.update(_LEVEL, before)
    found = costs(compiled)
    return {
        "source": "compiled",
        "peak_bytes": found["peak_bytes"],
        "bytes_accessed": found["bytes_accessed"],
        "collectives": collectives(compiled.as_text()),
        "compile_seconds": time.perf_counter() - began,
    }


_LEVEL = "jax_optimization_level"
_OPTIONS: dict[str, dict[str, Any] | None] = {
    "tpu": None,
    # Both try kernels on the device to choose one.
    "gpu": {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False},
}


_TEMPORARIES = re.compile(r"RESOURCE_EXHAUSTED.*?temporaries \(([\d.]+)([KMG])\)", re.DOTALL)
"""In what libtpu says of a step that is too large: its error has text alone."""


def too_large(error: Exception) -> int:
    """Bytes of temporaries that libtpu refused; RunError where it failed for another reason."""
    found = _TEMPORARIES.search(str(error))
    if found is None:
        raise RunError(
            f"The step does not compile: {' '.join(str(error).split())[:300]}", field="XLA"
        ) from error
    return int(float(found[1]) * 1024 ** ("KMG".index(found[2]) + 1))


_COLLECTIVE = re.compile(
    r"^ *(?:ROOT )?%\S+ = (.*?) "
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(",
    re.MULTILINE,
)
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+))\w*\[([\d,]*)\]")


def collectives(text: str) -> dict[str, dict[str, int]]:
    """{kind: {"count", "bytes"}} of the operations between devices in compiled HLO; bytes are those
    of their results on one device, and a loop's body counts once."""
    found: dict[str, dict[str, int]] = {}
    for shapes, kind in _COLLECTIVE.findall(text):
        row = found.setdefault(kind, {"count": 0, "bytes": 0})
        row["count"] += 1
        for _, bits, sides in _ARRAY.findall(shapes):
            size = math.prod(int(side) for side in sides.split(",") if side)
            row["bytes"] += size * max(1, int(bits or 8) // 8)
    return found


def bound(
    config: Config,
    where: Slice,
    operations: int,
    parts: dict[str, int],
    traffic: dict[str, dict[str, int]] | None,
) -> dict[str, Any]:
    """The least time of a step, by arithmetic, by memory or over the links, whichever is longest,
    and the hours of the run where chips reach a usual share of their peak.

    Memory: what the step is given is read once, the state and the temporaries are also written.
    XLA's own count is no bound, since it includes what stays on the chip.
    """
    both = sum(parts[part] for part in (*_OF_STATE, "temporaries"))
    moved = 2 * both + parts["frozen"] + parts["batch"]
    sent = sum(row["bytes"] for row in (traffic or {}).values())
    seconds = {
        "arithmetic": operations / where.chip.operations(config.model.dtype),
        "memory": moved / where.chip.bandwidth,
        "links": sent / where.chip.links,
    }
    by = max(seconds, key=lambda name: seconds[name])
    hours = seconds[by] * config.train.steps / 3600
    shares = sorted(UTILISATION, reverse=True)
    return {
        "lower_bound_seconds": seconds[by],
        "bound_by": by,
        "lower_bound_hours": hours,
        "hours": [hours / share for share in shares],
        "utilisation": shares,
    }


def knobs(config: Config, devices: int) -> list[str]:
    """Options that take less memory and are not yet set, the first ones at no or little cost."""
    model, train, method, share = config.model, config.train, config.method, config.mesh.fsdp
    images, fewest = train.batch // devices, devices * train.microbatches
    wider = next((n for n in range(share + 1, devices + 1) if devices % n == 0), None)
    return [
        words
        for words, helps in (
            ("--config.model.dtype=bfloat16", model.dtype == "float32"),
            ("--config.model.remat=blocks", model.remat == "none"),
            ("--config.train.pass_execution=sequential", train.pass_execution == "stacked"),
            (f"--config.mesh.fsdp={wider}", wider is not None),
            (f"--config.train.batch={fewest}", fewest < train.batch),
            (f"--config.train.microbatches={images}", 1 < images != train.microbatches),
            ("--config.method.teacher_dtype=bfloat16", method.teacher_dtype == "float32"),
            ("--config.model.remat=full", model.remat == "blocks"),
        )
        if helps
    ]
