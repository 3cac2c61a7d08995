"""The compiled step in a file beside JAX's compilation cache, found by what it was made of, so that
a run which starts again does not trace its step either.

JAX's own cache knows a program by its text, and to write that text a step is traced and lowered:
more than half of what a warm start of a small network takes. Here the name of the file is a digest
of all that the text follows from; whatever is not known to be equal is made anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from mrm_jax import paths
from mrm_jax.registry import as_shipped

FOLDER = "steps"
"""Folder of these files in that of JAX's cache."""
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_HIT = "/jax/compilation_cache/cache_hits"
_MISS = "/jax/compilation_cache/cache_misses"
_DIGEST = hashlib.sha256().digest_size


def folder() -> Path | None:
    """Where steps are kept; None where JAX keeps nothing on this machine's disks."""
    options = jax.config.values
    named = options["jax_compilation_cache_dir"]
    if not named or not options["jax_enable_compilation_cache"] or "://" in named:
        return None
    return Path(named, FOLDER)


def step(key: tuple[Any, ...], arguments: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """The compiled step of `arguments`: from its file, or else of `make`, whose result is kept.

    key: what the step follows from besides the code, the versions, this machine, JAX's options and
    the arguments' shapes and places. The step gives (state, good, metrics) of `arguments`, metrics
    a flat dict. Only `make` raises: a file that is damaged is replaced, and a disk that is full
    keeps nothing. A file holds machine code, as JAX's own do: whoever writes there is trusted.
    """
    where = folder()
    if where is None or jax.process_count() > 1 or not as_shipped() or not (code := _code()):
        return make()
    path = where / _name((key, code), arguments)
    with contextlib.suppress(Exception):  # whatever is wrong with it
        return _read(path, arguments)
    before = len(_heard())
    made = make()
    # Of a program that JAX read from its cache not all can be written again. So a fresh one has to
    # be known as such, by what JAX says when it puts one there (of those that take a second).
    mine = {event for event, thread in _heard()[before:] if thread == threading.get_ident()}
    if mine == {_MISS}:
        with contextlib.suppress(Exception):  # also where a backend cannot write its programs down
            where.mkdir(parents=True, exist_ok=True)
            paths.write_bytes(path, _written(made))
    return made


@functools.cache
def _heard() -> list[tuple[str, int]]:
    """Grows by one with every program that JAX reads from its cache or writes there from now on,
    and by which thread. JAX 0.8 cannot take a listener back, so there is one for good."""
    found: list[tuple[str, int]] = []

    def listen(event: str, **_: Any) -> None:
        if event in (_HIT, _MISS):
            found.append((event, threading.get_ident()))

    jax.monitoring.register_event_listener(listen)
    return found


def _read(path: Path, arguments: tuple[Any, ...]) -> Any:
    content = path.read_bytes()
    if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
        raise ValueError(path)
    names, program = content[_DIGEST:].split(b"\n", 1)
    state, good, *_ = arguments
    given = jax.tree.structure((arguments, {}))
    found = jax.tree.structure((state, good, dict.fromkeys(json.loads(names), 0)))
    return serialize_executable.deserialize_and_load(
        program, given, found, execution_devices=_devices(arguments)
    )


def _written(made: Any) -> bytes:
    program, _, found = serialize_executable.serialize(made)
    *_, metrics = found.unflatten(range(found.num_leaves))
    content = json.dumps(list(metrics)).encode() + b"\n" + program
    return hashlib.sha256(content).digest() + content


def _name(key: tuple[Any, ...], arguments: tuple[Any, ...]) -> str:
    leaves = [
        (jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype), leaf.weak_type, leaf.sharding)
        for path, leaf in jax.tree_util.tree_leaves_with_path(arguments)
    ]
    devices = _devices(arguments)
    about = (
        *(key, leaves, [(device.id, device.device_kind) for device in devices]),
        *(devices[0].client.platform_version, platform.uname()[4:], _processor()),
        *([version(name) for name in _PACKAGES], platform.python_version()),
        *(sorted(_options()), [os.environ.get(name) for name in _VARIABLES]),
    )
    return hashlib.sha256(repr(about).encode()).hexdigest()


def _devices(arguments: tuple[Any, ...]) -> list[Any]:
    return list(jax.tree.leaves(arguments)[0].sharding.mesh.devices.flat)


def _options() -> Iterator[str]:
    """JAX's options, but for the places of its caches."""
    for name, value in jax.config.values.items():
        if not name.endswith("cache_dir"):
            yield f"{name}={value}"


def _processor() -> str:
    """The first processor's instruction set, where the system says it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


@functools.cache
def _code() -> str:
    """Digest of this package's sources; empty where they are no files."""
    root = Path(__file__).parents[1]
    files = sorted(root.rglob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest() if files else ""
