"""Files of weights <-> names and arrays, without ever running or believing what a file says.

PyTorch's files are pickles, which can hold any code: they are read as data (`torch_files`), without
torch. `.safetensors` and `.npz` hold no code. Whatever floating type a file has, its values become
float32, the type that our networks keep their parameters in. What a header
promises is held against the bytes that are there before memory is taken for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mrm_jax.convert.containers import unwrapped
from mrm_jax.convert.formats import (
    FORMATS,
    OPENERS,
    printable,
    unfit,
    unreadable,
    write_safetensors,
)
from mrm_jax.convert.named import find_weights, licence_of
from mrm_jax.convert.torch_files import save
from mrm_jax.errors import UsageError
from mrm_jax.paths import at_hand, replaced, what_is_wrong

LONGEST_NAME = 500


@dataclass(frozen=True)
class WeightFile:
    """A file's tensors by name (floats as float32) and what it says beside them.

    `meta`: the other entries, as far as they are numbers, texts, lists or mappings of such.
    `sha256`: of the file.   `kind`: its layout of names, where the place that it comes from tells.
    `origin`: what a fingerprint says of that place, and the licence.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    meta: dict[str, Any]
    sha256: str
    kind: str | None = None
    origin: dict[str, str] = field(default_factory=dict)


def read_weights(source: str | Path) -> WeightFile:
    """Opens .pth, .pt, .bin, .ckpt (PyTorch, zip or legacy), .safetensors or .npz, by path or by
    name (`named.find_weights`).

    Raises UsageError, one line with the file, the first bad tensor or the reason, and the way out:
    no such file or name, not what its name says, another digest than its place says, cut short, in
    need of code, without tensors, not finite.
    """
    place = find_weights(source)
    path = place.path
    _check_place(path)
    with at_hand(path) as file:
        kind = _format(file)
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if place.sha256 not in ("", digest):
            raise UsageError.at(
                path, f" has the SHA-256 {digest}, not {place.sha256}", place.repair
            )
        try:
            found, more = OPENERS[kind](file)
            tensors, meta = _unwrap(file, found)
        except UsageError:
            raise
        except Exception as error:  # bytes can make a parser raise anything, MemoryError included
            raise unreadable(file, kind, error) from error
        _check_finite(file, tensors)
    origin = {**place.origin, **licence_of(place, digest)}
    return WeightFile(path, tensors, {**more, **meta}, digest, place.kind, origin)


def _check_place(path: Path) -> None:
    if not path.is_file():
        raise UsageError.at(
            path, f" is {'a folder' if path.is_dir() else 'not there'}", "give a file."
        )


def _format(path: Path) -> str:
    """The format that the name promises; UsageError if the first bytes show another one."""
    wanted = FORMATS.get(path.suffix)
    if wanted is None:
        raise UsageError.at(
            path, f" ends in '{path.suffix}'; files of weights end in {', '.join(FORMATS)}."
        )
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise UsageError.at(path, f" cannot be read: {error.strerror or error}.") from error
    if not head:
        raise UsageError.at(path, " is empty", "download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise UsageError.at(
            path, " is a Git LFS pointer, not the weights", "run 'git lfs pull' where it came from."
        )
    if head.lstrip()[:1] == b"<":
        raise UsageError.at(
            path,
            " is a web page, not weights: its link gave an error page.",
            "Open the link in a browser and see docs/weights.md for other sources.",
        )
    found = _shown(path, head)
    if found not in (wanted, None):
        fitting = next(suffix for suffix, name in FORMATS.items() if name == found)
        raise UsageError.at(
            path, f" is a {found} file by its content", f"rename it to end in {fitting}."
        )
    return wanted


def _shown(path: Path, head: bytes) -> str | None:
    """The format that the content shows, None where it shows none."""
    if head.startswith(b"PK\x03\x04"):
        name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return "NumPy" if name.endswith(b".npy") else "PyTorch"
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "safetensors"
    return "PyTorch" if head[:1] == b"\x80" else None


def _unwrap(path: Path, found: Any) -> tuple[dict[str, np.ndarray], Any]:
    if not isinstance(found, Mapping):
        raise UsageError.at(path, f" holds a {type(found).__name__}, no tensors by name.")
    values, meta = unwrapped(found)
    tensors = {n: _widened(path, n, x) for n, x in values.items()}
    if not tensors:
        keys = ", ".join(key[:LONGEST_NAME] for key in list(found)[:5]) or "none"
        raise UsageError.at(path, f" holds no tensors; its first entries: {printable(keys)}.")
    odd = next((n for n in tensors if not n.isprintable() or len(n) > LONGEST_NAME), None)
    if odd is not None:
        raise UsageError.at(path, f": a tensor is called {ascii(odd[:LONGEST_NAME])}", "rename it.")
    return tensors, meta


def _widened(path: Path, name: str, value: Any) -> np.ndarray:
    """float32 of any floating type, in this machine's order of bytes; integers as they are."""
    if "float" in value.dtype.name:
        with np.errstate(all="ignore"):  # what is too large becomes infinite, and is refused so
            return np.require(value, np.float32, "A")
    if value.dtype.kind not in "biu":
        raise unfit(path, name, value.dtype)
    return np.require(value, value.dtype.newbyteorder("="), "A")


def _check_finite(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    for name, value in tensors.items():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            count = int((~np.isfinite(value)).sum())
            raise UsageError.at(
                path,
                f": {name} has {count} value(s) that are not finite; the training that wrote it "
                "had diverged, or the file is damaged.",
            )


def write_weights(path: Path, tensors: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> None:
    """Writes tensors by name to `path`, in the format its name promises; replaced by one rename.

    `meta` (texts) is kept by .safetensors alone. Raises UsageError for another ending, and where
    the file cannot be written.
    """
    kind = FORMATS.get(path.suffix)
    if kind is None:
        raise UsageError.at(path, f" ends in '{path.suffix}'", f"write {', '.join(FORMATS)}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as new:
            if kind == "PyTorch":
                save(new, tensors)
            elif kind == "safetensors":
                write_safetensors(new, tensors, meta)
            else:
                with new.open("wb") as stream:
                    np.savez(stream, allow_pickle=False, **dict(tensors))
    except OSError as error:
        raise UsageError.at(path, f" cannot be written: {what_is_wrong(error)}.") from error
