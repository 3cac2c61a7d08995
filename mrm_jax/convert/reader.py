"""Files of weights <-> names and arrays, without ever running what a file says.

PyTorch's files are pickles, which can hold any code: they are opened by torch's weights-only loader
alone. `.safetensors` and `.npz` hold no code and need no torch. Half, bfloat16 and double precision
become float32, the type that our networks keep their parameters in.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrm_jax.config import UsageError
from mrm_jax.paths import at_hand, located, replaced, what_is_wrong

FORMATS = {
    ".pth": "PyTorch",
    ".pt": "PyTorch",
    ".bin": "PyTorch",
    ".safetensors": "safetensors",
    ".npz": "NumPy",
}
WRAPPERS = ("state_dict", "model", "params", "model_state_dict")
"""Keys under which a file may hold its state dict, beside other things."""
PREFIXES = ("module.", "_orig_mod.", "net.")
"""What DataParallel, torch.compile and Lightning put before all names."""


@dataclass(frozen=True)
class WeightFile:
    """A file's tensors by name (floats as float32) and what it says beside them.

    `unwrapped`: the keys and prefixes that stood around the names.   `meta`: the other entries, as
    far as they are numbers, texts, lists or mappings of such.   `sha256`: of the file.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    unwrapped: tuple[str, ...]
    meta: dict[str, Any]
    sha256: str


def read(path: str | Path) -> WeightFile:
    """Opens .pth, .pt, .bin (PyTorch, zip or legacy), .safetensors or .npz.

    Raises UsageError, one line with the file, the first bad tensor or the reason, and the way out:
    no such file, not what its name says, cut short, in need of code, without tensors, not finite.
    """
    path = located(path)
    _check_place(path)
    with at_hand(path) as file:
        open_file = _OPENERS[_format(file)]
        found, more = open_file(file)
        tensors, unwrapped, meta = _unwrap(file, found)
        _check_finite(file, tensors)
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return WeightFile(path, tensors, unwrapped, {**more, **meta}, digest)


def _check_place(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path} is {'a folder' if path.is_dir() else 'not there'}; give a file.")


def _format(path: Path) -> str:
    """The format that the name promises; UsageError if the first bytes show another one."""
    wanted = FORMATS.get(path.suffix)
    if wanted is None:
        raise UsageError(
            f"{path} ends in '{path.suffix}'; files of weights end in {', '.join(FORMATS)}."
        )
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise UsageError(f"{path} is empty; download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise UsageError(
            f"{path} is a Git LFS pointer, not the weights; run 'git lfs pull' where it came from."
        )
    if head.lstrip()[:1] == b"<":
        raise UsageError(
            f"{path} is a web page, not weights: its link gave an error page. "
            "Open the link in a browser and see docs/weights.md for other sources."
        )
    found = _shown(path, head)
    if found not in (wanted, None):
        fitting = next(suffix for suffix, name in FORMATS.items() if name == found)
        raise UsageError(f"{path} is a {found} file by its content; rename it to end in {fitting}.")
    return wanted


def _shown(path: Path, head: bytes) -> str | None:
    """The format that the content shows, None where it shows none."""
    if head.startswith(b"PK\x03\x04"):
        name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return "NumPy" if name.endswith(b".npy") else "PyTorch"
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "safetensors"
    return "PyTorch" if head[:1] == b"\x80" else None


Contents = tuple[Any, dict[str, Any]]
"""A nest of mappings with arrays, and what the format says beside it."""


def _open_torch(path: Path) -> Contents:
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        raise UsageError(
            f"{path} is a PyTorch file and torch is not installed: pip install 'mrm-jax[torch]', "
            "or save the tensors as .safetensors or .npz where torch is."
        ) from error

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(entry) for key, entry in value.items()}
        if not isinstance(value, torch.Tensor):
            return value
        if value.dtype in (torch.float16, torch.bfloat16, torch.float64):
            value = value.float()
        return value.detach().numpy()

    try:
        with path.open("rb") as stream:
            mapped = stream.read(2) == b"PK"  # the legacy format cannot be mapped into memory
        with warnings.catch_warnings(), torch.serialization.safe_globals(_number_types()):
            warnings.simplefilter("ignore")  # torch's doubts about pickles that it then refuses
            return plain(torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)), {}
    except pickle.UnpicklingError as error:
        code = re.search(r"(?:GLOBAL|class|type) ([\w.]+\.[\w.]+)|Unsupported operand", str(error))
        if code is None:
            raise _unreadable(path, "PyTorch", error) from error
        raise UsageError(
            f"{path} is refused: to open it, code would have to run ("
            f"{code[1] or 'a pickle that torch.save did not write'}). Where you trust "
            "it, save its tensors alone: torch.save({k: v for k, v in model.state_dict().items()},"
            " 'tensors.pth')."
        ) from error
    except Exception as error:  # torch raises unrelated types for broken files
        raise _unreadable(path, "PyTorch", error) from error


def _number_types() -> list[Any]:
    """NumPy's scalars, which mmcv's meta may hold: building one runs nothing of the file's."""
    scalar: Any = np.float64(0).__reduce__()[0]  # its module's name depends on NumPy
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    return [np.dtype, *kinds, *((scalar, name) for name in names)]


_STORED = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def _open_safetensors(path: Path) -> Contents:
    """Eight bytes with the length of a JSON header, the header, the tensors' bytes.

    Source: the format's description in the safetensors repository.
    """
    try:
        content = np.memmap(path, np.uint8, "r")
        start = 8 + struct.unpack("<Q", content[:8].tobytes())[0]
        header = json.loads(content[8:start].tobytes())
        more = header.pop("__metadata__", {})
        tensors = {}
        for name, entry in header.items():
            first, last = (start + offset for offset in entry["data_offsets"])
            if last > content.size:
                raise ValueError(f"{name} ends at byte {last} of {content.size}")
            value = content[first:last].view(_STORED[entry["dtype"]]).reshape(entry["shape"])
            if entry["dtype"] == "BF16":  # the upper half of a float32
                value = (value.astype(np.uint32) << 16).view(np.float32)
            tensors[name] = value
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise _unreadable(path, "safetensors", error) from error
    return tensors, {str(key): value for key, value in more.items()}


def _open_npz(path: Path) -> Contents:
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it has no table of contents")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}, {}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error):
            raise UsageError(
                f"{path} is refused: to open it, code would have to run (pickled objects). "
                "Save arrays of numbers only."
            ) from error
        raise _unreadable(path, "NumPy", error) from error


_OPENERS = {"PyTorch": _open_torch, "safetensors": _open_safetensors, "NumPy": _open_npz}


def _unreadable(path: Path, kind: str, error: Exception) -> UsageError:
    why = " ".join(str(error).split()).partition(". ")[0] or type(error).__name__
    return UsageError(
        f"{path} cannot be read as a {kind} file, it may be cut short: {why[:200].rstrip('.')}. "
        "Compare its size with the source's and download it again."
    )


def _unwrap(path: Path, found: Any) -> tuple[dict[str, np.ndarray], tuple[str, ...], Any]:
    unwrapped, meta = [], {}
    while True:
        if not isinstance(found, Mapping):
            raise UsageError(f"{path} holds a {type(found).__name__}, no tensors by name.")
        inner = next((name for name in WRAPPERS if isinstance(found.get(name), Mapping)), None)
        if inner is None:
            break
        others = _plain({name: value for name, value in found.items() if name != inner})
        meta |= {**others, **others.pop("meta", {})}  # mmcv's meta holds classes and the step
        unwrapped.append(inner)
        found = found[inner]
    tensors = {name: _floats(value) for name, value in found.items() if hasattr(value, "shape")}
    if not tensors:
        keys = ", ".join(list(found)[:5]) or "none"
        raise UsageError(f"{path} holds no tensors; its first entries: {keys}.")
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in tensors)), ""):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        unwrapped.append(prefix)
    return tensors, tuple(unwrapped), meta


def _plain(value: Any) -> Any:
    """Numbers, texts, lists and mappings of such; other entries of a mapping are left out."""
    if isinstance(value, Mapping):
        kept = {str(name): _plain(entry) for name, entry in value.items()}
        return {name: entry for name, entry in kept.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str | int | float) else None


def _floats(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype in (np.float16, np.float64) else value


def _check_finite(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    for name, value in tensors.items():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            count = int((~np.isfinite(value)).sum())
            raise UsageError(
                f"{path}: {name} has {count} value(s) that are not finite; the training that wrote "
                "it had diverged, or the file is damaged."
            )


def write(path: Path, tensors: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> None:
    """Writes tensors by name to `path`, in the format its name promises; replaced by one rename.

    `meta` (texts) is kept by .safetensors alone. Raises UsageError for another ending and where
    torch is missing.
    """
    kind = FORMATS.get(path.suffix)
    if kind is None:
        raise UsageError(f"{path} ends in '{path.suffix}'; write {', '.join(FORMATS)}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as new:
            if kind == "PyTorch":
                _write_torch(new, tensors)
            elif kind == "safetensors":
                _write_safetensors(new, tensors, meta)
            else:
                with new.open("wb") as stream:
                    np.savez(stream, allow_pickle=False, **dict(tensors))
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {what_is_wrong(error)}.") from error


def _write_torch(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        raise UsageError(
            "Writing .pth needs torch: pip install 'mrm-jax[torch]', or write .safetensors or .npz."
        ) from error
    with path.open("wb") as stream:  # of a path torch stores the name too
        torch.save(
            {k: torch.from_numpy(np.array(v, order="C")) for k, v in tensors.items()}, stream
        )


def _write_safetensors(path: Path, tensors: Mapping[str, Any], meta: Mapping[str, str]) -> None:
    names = {np.dtype(kind): name for name, kind in _STORED.items() if name != "BF16"}
    header: dict[str, Any] = {"__metadata__": dict(meta)} if meta else {}
    at = 0
    for name, value in tensors.items():
        entry = {"dtype": names[value.dtype], "shape": list(value.shape)}
        header[name] = {**entry, "data_offsets": [at, at + value.nbytes]}
        at += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8 bytes
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for value in tensors.values():
            stream.write(np.ascontiguousarray(value).tobytes())
