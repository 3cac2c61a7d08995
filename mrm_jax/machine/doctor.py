"""Whether this machine can run: what is installed, which devices JAX really uses, whether they
compute, where there is room, and what the data's order is. On several hosts (`group.joined`) each
looks at its own machine, and the sum and the order are those of all.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mrm_jax import backend
from mrm_jax.config import Config, source_domain
from mrm_jax.errors import RunError, UsageError
from mrm_jax.hosts import group
from mrm_jax.machine.compile_cache import NAME
from mrm_jax.paths import is_remote, located, names_below

ENOUGH_BYTES = 10 * 2**30
"""Free disk below which a warning is given: a few checkpoints of a MiT-B5 with its teacher."""

_REPAIR = "repair it; `check` says more about a data set"

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is, and the way out where it is not well."""

    name: str
    status: Status
    found: str
    fix: str = ""


def accelerators() -> list[str]:
    """Device files of accelerators on this machine, whether or not JAX can use them."""
    patterns = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/kfd")
    return sorted(path for pattern in patterns for path in glob.glob(pattern))


def check_platform(wanted: str, used: str, seen: list[str], environment: str) -> Check:
    """Whether JAX uses the kind of device that the config wants ("any": the best there is).

    used: JAX's platform; seen: `accelerators()`; environment: the variable JAX_PLATFORMS.
    """
    if wanted not in ("any", used):
        return Check(
            "backend",
            "error",
            f"JAX runs on {used}, config.mesh.platform asks for {wanted}",
            "install jax[tpu] or jax[cuda12] and unset JAX_PLATFORMS, or change the config",
        )
    if used == "cpu" and wanted == "any" and seen and environment != "cpu":
        return Check(
            "backend",
            "error",
            f"JAX runs on the CPU, but there is {seen[0]}",
            "install jax[cuda12] or jax[tpu]; to train on the CPU all the same, set "
            "config.mesh.platform=cpu",
        )
    return Check("backend", "ok", used)


def require_platform(config: Config) -> None:
    """Raises UsageError where a run would start on another kind of device than is wanted."""
    import jax

    found = check_platform(
        config.mesh.platform,
        jax.default_backend(),
        accelerators(),
        os.environ.get("JAX_PLATFORMS", ""),
    )
    if found.status == "error":
        raise UsageError(found.found, f"{found.fix}.", field="config.mesh.platform")


def examine(
    config: Config | None, workdir: str | None, problems: Sequence[UsageError] = ()
) -> Iterator[Check]:
    """All checks, one after the other, whatever those before found; none raises. Nothing stays in
    `workdir`. To be called by all hosts.

    problems: what is wrong with the config itself (`checks.problems`).
    """
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    yield Check("versions", "ok", f"Python {platform.python_version()}, {versions}")
    yield from (_error("config", problem) for problem in problems)
    found = _devices()
    yield found
    if found.status == "ok":
        yield from _mesh(config)
    yield _extras()
    if workdir is not None:
        yield from _folder(workdir)
    if config is not None:
        yield from _weights(config)
        yield from _data(config)


def _error(
    name: str, error: UsageError | RunError, fix: str = "", *, status: Status = "error"
) -> Check:
    """What an error says; its way out, where it has one, or `fix`."""
    text = str(error).removesuffix(error.way_out).rstrip(" ;:.")
    return Check(name, status, text, error.way_out.rstrip(".") or fix)


def _devices() -> Check:
    import jax

    try:
        devices = jax.devices()
    except Exception as error:  # AssertionError, say, where no such plugin is installed
        line = backend.device_refusal(error)
        if line is None:
            raise
        return _error("devices", line)
    kinds = sorted({device.device_kind for device in devices})
    of = f"{len(devices)} x {', '.join(kinds)}, process {jax.process_index() + 1} of "
    return Check("devices", "ok", f"{of}{jax.process_count()}{_memory(jax.local_devices()[0])}")


def _mesh(config: Config | None) -> Iterator[Check]:
    import jax

    wanted = config.mesh.platform if config else "any"
    chosen = os.environ.get("JAX_PLATFORMS", "")
    yield check_platform(wanted, jax.default_backend(), accelerators(), chosen)
    yield _sum(config)
    yield _cache()


def _extras() -> Check:
    """Packages that only some commands need, and whether they are here."""
    known = {"gcsfs": "gs://", "libtpu": "TPUs", "jax_cuda12_plugin": "NVIDIA GPUs"}
    known |= {"wandb": "train.tracker=wandb"}
    found = [
        f"{name}{'' if importlib.util.find_spec(name) else ' is not installed'} ({use})"
        for name, use in known.items()
    ]
    return Check("extras", "ok", ", ".join(found))


def _weights(config: Config) -> Iterator[Check]:
    """Whether the weights that a fresh run starts from open and fit its network."""
    from mrm_jax.train import start

    for path, field in start.named_weights(config):
        try:
            start.opened_weights(config, path, field)
        except Exception as error:
            if isinstance(error, UsageError | RunError) and not backend.device_refusal(error):
                yield _error("weights", error, "docs/weights.md says which files are read")
            elif not backend.device_refusal(error):  # which `devices` has told
                raise
        else:
            yield Check("weights", "ok", f"config.{field} {path} fits")
    if line := start.from_random(config):
        yield _error("weights", line, status="warning")


def _memory(device: Any) -> str:
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return f", {limit / 2**30:.1f} GiB each" if limit else ""


def _sum(config: Config | None) -> Check:
    """A sum over all devices of the mesh: whether they reach each other."""
    import jax
    import jax.numpy as jnp

    from mrm_jax import sharding

    try:
        mesh = sharding.mesh() if config is None else sharding.run_mesh(config)
        row = sharding.put_wish(1, mesh)
        total = int(jax.jit(jnp.sum, out_shardings=sharding.replicated(mesh))(row))
    except UsageError as error:
        return Check("mesh", "error", str(error), "change config.mesh or config.train.batch")
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    if total != mesh.size:
        return Check("mesh", "error", f"a sum over {mesh.size} devices gave {total}", "reboot them")
    return Check("mesh", "ok", f"{shape}; a sum over all devices is right")


def _cache() -> Check:
    import jax

    folder = getattr(jax.config, NAME)
    return Check("compile cache", "ok", folder or "beside the workdir, when a run starts")


def _folder(workdir: str) -> Iterator[Check]:
    try:
        path = located(workdir)
    except UsageError as error:  # in a bucket, say, that no installed package opens
        yield _error("workdir", error, "give another folder")
        return
    yield _room(path)
    yield _writable(path)


def _room(workdir: Path) -> Check:
    from mrm_jax.data.prepared.room import said

    if is_remote(workdir):
        return Check("disk", "ok", "the workdir is in a bucket")
    there = next(p for p in (workdir.absolute(), *workdir.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    text = f"{said(free)} free at {there}"
    if free < ENOUGH_BYTES:
        fix = "checkpoints of a large network need several GiB: choose another disk"
        return Check("disk", "warning", text, fix)
    return Check("disk", "ok", text)


def _writable(workdir: Path) -> Check:
    """Writes a file into the workdir, or into the nearest folder that exists, and removes it."""
    try:
        if is_remote(workdir):
            list(zip(range(1), names_below(workdir), strict=False))
            target = workdir
        else:
            whole = workdir.absolute()
            target = next(p for p in (whole, *whole.parents) if p.exists())
        probe = target / f".doctor-{uuid.uuid4().hex}"
        probe.write_text("")
        probe.unlink()
    except Exception as error:  # file systems and buckets raise unrelated types
        text = " ".join(str(error).split())
        return Check("workdir", "error", f"{workdir}: {text}", "choose a folder you can write to")
    return Check("workdir", "ok", f"{workdir} can be written")


def _data(config: Config) -> Iterator[Check]:
    """Whether each set opens, and a hash of the order in which they are read, compared with that of
    all other hosts."""
    errors = list(_unopened(config))
    text, digest = "", None
    try:
        if not errors:
            text, digest = _order(config)
    except UsageError as error:
        errors.append(_error("data", error, _REPAIR))
    digests = group.together(lambda: digest)
    yield from errors
    other = next((host for host, found in enumerate(digests) if found != digest), None)
    if errors:
        return
    if other is not None:
        yield Check(
            "data",
            "error",
            f"{text}; order {digest} here and {digests[other] or 'none'} on host {other}",
            "give all hosts the same data, config and versions",
        )
        return
    equal = f", equal on {len(digests)} hosts" if len(digests) > 1 else ""
    yield Check("data", "ok", f"{text}; order {digest}{equal}")


def _unopened(config: Config) -> Iterator[Check]:
    """An error for every set that does not open."""
    from mrm_jax.data import rare_class, sources
    from mrm_jax.data.pipeline import evaluation_set
    from mrm_jax.uda.methods import looks_at_target

    classes, field = config.data.classes, rare_class.source_field(config)
    openers: list[Callable[[], Any]] = [
        lambda: sources.open_labelled(source_domain(config), classes, field=field),
        lambda: evaluation_set(config),
    ]
    if looks_at_target(config.method):
        target = config.data.target
        openers.insert(1, lambda: sources.open_pictures(target, field="config.data.target"))
    said = set()
    for opener in openers:
        try:
            opener()
        except UsageError as error:
            if str(error) not in said:
                yield _error("data", error, _REPAIR)
            said.add(str(error))


def _order(config: Config) -> tuple[str, str]:
    """Sizes of the sets, and a hash of what the first samples are: names, crops and flips of drawn
    and read pictures alike. Raises UsageError where a set does not open."""
    from mrm_jax.data.pipeline import TrainingSamples, evaluation_set, sample_index
    from mrm_jax.uda.methods import looks_at_target

    samples = TrainingSamples(config, target=looks_at_target(config.method))
    examples = evaluation_set(config)
    order = [
        sample_index(config.seed, domain, len(reader), number)
        for domain, reader in ((1, samples.source), (2, samples.target))
        if reader is not None
        for number in range(64)
    ]
    digest = hashlib.sha256(repr(order).encode())
    for name, value in samples(0).items():
        digest.update(name.encode() + value.tobytes())
    target = f"{len(samples.target)} target" if samples.target is not None else "no target needed"
    counts = f"{len(samples.source)} source, {target}, {len(examples)} scored"
    return counts, digest.hexdigest()[:12]
