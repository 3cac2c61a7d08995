"""The formats that weights come in: opened without running or believing a file, and written.

What a header promises is held against the bytes that are there before memory is taken for it.
Openers raise whatever their parser raises; `reader` makes one line of it.
"""

from __future__ import annotations

import json
import math
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mrm_jax.convert import torch_files
from mrm_jax.convert.pickles import Forbidden
from mrm_jax.errors import UsageError

FORMATS = {
    ".pth": "PyTorch",
    ".pt": "PyTorch",
    ".bin": "PyTorch",
    ".ckpt": "PyTorch",  # Lightning
    ".safetensors": "safetensors",
    ".npz": "NumPy",
}
UNPACKED = 100
"""Bytes that a byte of a file may stand for, unpacked or as tensors that share memory. Trained
floats pack to 9 tenths; what is beyond is mostly a trap."""
ROOM = 2**26
"""Bytes that any file may unpack to: small files may be all zeros."""
ENTRIES, DEPTH = 1_000_000, 100
"""Of a pickle's nest: a few hundred of its bytes can name more than memory holds. A checkpoint with
its optimiser has ten thousands of entries, in depth 5."""

Contents = tuple[Any, dict[str, Any]]
"""A nest of mappings with arrays, and what the format says beside it."""


def _open_torch(path: Path) -> Contents:
    most, held = _most(path), 0

    def plain(value: Any) -> Any:
        nonlocal held
        if isinstance(value, Mapping):
            kept = {str(key): plain(entry) for key, entry in value.items()}
            _check_once(map(str, value))
            return kept
        found = arrays(value)
        if isinstance(found, np.ndarray):
            held += found.size * max(found.itemsize, 4)
            if held > most:  # a tensor may repeat one number by a stride of 0
                raise ValueError(f"its tensors are more than {most} bytes")
        return found

    def check(archive: zipfile.ZipFile) -> None:
        _check_members(path, archive)
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} fails its check sum")

    try:
        nest, arrays = torch_files.opened_torch(path, check)
        _check_nest(nest)
        return plain(nest), {}
    except Forbidden as error:
        raise UsageError.at(
            path,
            f" is refused: to open it, code would have to run ({printable(str(error)[:200])}). "
            "Where you trust it, save its tensors alone: torch.save({k: v for k, v in "
            "model.state_dict().items()}, 'tensors.pth').",
        ) from error
    except torch_files.NotWritten as error:
        raise UsageError.at(path, f" is not what torch.save writes: {error}.") from error


def _check_nest(found: Any) -> None:
    """ValueError for a nest that is deeper or has more entries than a checkpoint's."""
    left, seen = [(found, 0)], 0
    while left:
        value, depth = left.pop()
        seen += 1
        if depth > DEPTH or seen > ENTRIES:
            raise ValueError(f"its entries are nested deeper than {DEPTH} or more than {ENTRIES}")
        if isinstance(value, Mapping):
            left += [(entry, depth + 1) for entry in value.values()]
        elif isinstance(value, list | tuple):
            left += [(entry, depth + 1) for entry in value]


def _most(path: Path) -> int:
    """How many bytes the contents of a file may take."""
    return UNPACKED * path.stat().st_size + ROOM


def _check_once(names: Iterable[str]) -> None:
    """ValueError for a name that stands twice: readers differ in which of the two they take."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"it holds {name[:200]!r} twice")
        seen.add(name)


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    _check_once(member.filename for member in members)
    promised = sum(member.file_size for member in members)
    if promised > _most(path):
        raise ValueError(f"it would unpack to {promised} bytes")


_STORED = {
    "F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1",
    "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
"""The format's dtypes -> NumPy's. Others (4 and 6 bits, complex) hold no weights of ours."""


def _open_safetensors(path: Path) -> Contents:
    import ml_dtypes  # noqa: F401 - NumPy then knows bfloat16 and float8 by name
    from safetensors import safe_open

    with safe_open(path, "np") as checked:  # every dtype, shape and offset
        more = checked.metadata() or {}
    # The package takes the second of two equal names, and cannot give NumPy all dtypes.
    content = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes(), object_pairs_hook=_once)
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _STORED:
            raise unfit(path, name, entry["dtype"])
        first, last = (start + offset for offset in entry["data_offsets"])
        dtype = np.dtype(_STORED[entry["dtype"]])
        tensors[name] = content[first:last].view(dtype).reshape(entry["shape"])
    return tensors, dict(more)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON without equal names."""
    _check_once(name for name, _ in pairs)
    return dict(pairs)


def _open_npz(path: Path) -> Contents:
    with path.open("rb") as stream:
        if stream.read(2) != b"PK":
            raise zipfile.BadZipFile("it does not begin as an archive")
    with zipfile.ZipFile(path) as archive:
        _check_members(path, archive)
        members = archive.infolist()
        _check_once(member.filename.removesuffix(".npy") for member in members)
        return {m.filename.removesuffix(".npy"): _array(path, archive, m) for m in members}, {}


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """A member's array. `np.load` would take the memory that the header asks for first."""
    with archive.open(member) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's doubts about headers that Python 2 wrote
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"{member.filename} has the header version {version}")
        shape, columns_first, dtype = _HEADERS[version](stream)
        if dtype.hasobject:
            raise UsageError.at(
                path,
                " is refused: to open it, code would have to run (pickled objects).",
                "Save arrays of numbers only.",
            )
        content = stream.read()
    size = math.prod(shape) * dtype.itemsize
    if len(content) != size:
        raise ValueError(f"{member.filename} promises {size} bytes and has {len(content)}")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if columns_first else "C")


_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
"""By version. The third is that of named fields."""


def unreadable(path: Path, kind: str, error: Exception) -> UsageError:
    """What to raise for a file that its parser refuses."""
    why = printable(str(error)).partition(". ")[0] or type(error).__name__
    return UsageError.at(
        path,
        f" cannot be read as a {kind} file, it may be cut short or damaged: "
        f"{why[:200].rstrip('.')}.",
        "Compare its size with the source's and download it again.",
    )


def unfit(path: Path, name: str, dtype: Any) -> UsageError:
    """What to raise for a sound file with a tensor that is no weight."""
    return UsageError.at(
        path,
        f": {printable(name)} holds {printable(str(dtype))}; weights are floating-point "
        "numbers of 8 bits or more, or integers.",
        "Save such tensors alone.",
    )


def printable(text: str) -> str:
    """`text`, which may come out of a file, on one line and without control characters."""
    shown = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


OPENERS = {"PyTorch": _open_torch, "safetensors": _open_safetensors, "NumPy": _open_npz}


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], meta: Mapping[str, str]
) -> None:
    """.safetensors with the texts `meta`; OSError where the file cannot be written."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # The package writes a tensor's memory as it lies, whatever its strides.
    rows = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    try:
        save_file(rows, path, metadata=dict(meta) or None)
    except SafetensorError as error:
        raise OSError(" ".join(str(error).split())) from error
