"""PyTorch's files of weights, without PyTorch: the zip format and the one before it, read and
written.

Both are a pickle of names and shapes beside the bytes of the storages; a tensor is a window of a
storage. Read: `pickles` runs nothing of the file, and storages stay in the mapped file until their
numbers are used. Source of the formats, their names and numbers: torch/serialization.py,
torch/_utils.py and torch/storage.py of PyTorch 2.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ml_dtypes  # noqa: F401 - NumPy then knows bfloat16 and float8 by name
import numpy as np

from mrm_jax.convert.pickles import Calls, Name, Settable, as_key, load_pickle

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""The first two pickles of a file in the format before zip."""
ALIGNMENT = 64
"""Bytes: PyTorch pads its zip archives so that a storage starts at a multiple of it."""

_STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "bfloat16",
    "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1",
    "ByteStorage": "u1", "BoolStorage": "?", "ComplexDoubleStorage": "c16",
    "ComplexFloatStorage": "c8", "UntypedStorage": "u1", "storage.UntypedStorage": "u1",
}  # fmt: skip
_DTYPES = {
    "float64": "f8", "double": "f8", "float32": "f4", "float": "f4", "float16": "f2", "half": "f2",
    "bfloat16": "bfloat16", "int64": "i8", "long": "i8", "int32": "i4", "int": "i4", "int16": "i2",
    "short": "i2", "int8": "i1", "uint8": "u1", "uint16": "u2", "uint32": "u4", "uint64": "u8",
    "bool": "?", "complex64": "c8", "complex128": "c16", "float8_e4m3fn": "float8_e4m3fn",
    "float8_e5m2": "float8_e5m2", "float8_e4m3fnuz": "float8_e4m3fnuz",
    "float8_e5m2fnuz": "float8_e5m2fnuz", "float8_e8m0fnu": "float8_e8m0fnu",
}  # fmt: skip
"""torch's names, both below "torch." -> NumPy's. The rest (quantised, 4 bits) holds no weights."""
_SCALARS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "?")


@dataclass(frozen=True)
class _Storage:
    """A storage, or with a `first` item and a size a view of one."""

    key: str
    dtype: np.dtype[Any]
    size: int
    first: int = 0


@dataclass(frozen=True, eq=False)
class _Tensor(Settable):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


class _NumpyType(Settable):
    """A type of NumPy's scalars: its name, and by its state its order of bytes."""

    def __init__(self, name: Any, *_: Any) -> None:
        if name not in _SCALARS:
            raise ValueError("it holds a NumPy scalar that is no number")
        self.dtype = np.dtype(name)

    def set_state(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> _Tensor:
    """torch._utils._rebuild_tensor_v2, and with a dtype among `more` _v3."""
    if not isinstance(storage, _Storage):
        raise ValueError(f"a tensor lies in a {type(storage).__name__}")
    named = [_dtype(x) for x in more if isinstance(x, Name)]
    found = _Tensor(storage, offset, tuple(shape), tuple(strides), (*named, storage.dtype)[0])
    numbers = (offset, *found.shape, *found.strides)
    if len(found.shape) != len(found.strides) or not all(type(n) is int for n in numbers):
        raise ValueError("a tensor has no shape with as many strides")
    return found


def _dtype(name: Name) -> np.dtype[Any]:
    return np.dtype(_DTYPES[name.text.removeprefix("torch.")])


def _of_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """torch._tensor._rebuild_from_type_v2: a tensor of a subclass, or with attributes."""
    if not isinstance(function, Name) or function.text not in _TENSORS:
        raise ValueError("a tensor is built by what builds none")
    return _TENSORS[function.text](*arguments)


def _scalar(kind: Any, content: Any) -> int | float | bool:
    """A NumPy scalar as a number. Python 2 wrote its bytes as a text."""
    raw = content.encode("latin-1") if isinstance(content, str) else content
    return np.frombuffer(raw, kind.dtype, 1)[0].item()


def _encoded(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("it encodes bytes in another way than pickles do")
    return text.encode("latin-1")


def _mapping(items: Any = ()) -> dict[Any, Any]:
    """collections.OrderedDict of pairs, or a Counter of a mapping."""
    pairs = items.items() if isinstance(items, dict) else items
    return {as_key(name): value for name, value in pairs}


def _set(items: Any = ()) -> set[Any]:
    return set(map(as_key, items))


def _device(*place: Any) -> str:
    return ":".join(str(as_key(part)) for part in place)


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
}
CALLS: Calls = {
    **_TENSORS,
    **dict.fromkeys(f"torch.{name}" for name in (*_STORAGES, *_DTYPES)),
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.nn.parameter.Parameter": None,
    "torch.Tensor": None,
    "torch.Size": tuple,
    "torch.device": _device,
    **dict.fromkeys(("collections.OrderedDict", "collections.Counter"), _mapping),
    **dict.fromkeys(("builtins.set", "__builtin__.set"), _set),
    "_codecs.encode": _encoded,
    "numpy.dtype": _NumpyType,
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _scalar),
}
"""All that a file may name. Every function is ours, and makes data from data."""


class NotWritten(ValueError):
    """A sound pickle that torch.save did not write."""


def opened_torch(
    path: Path, check_archive: Callable[[zipfile.ZipFile], None]
) -> tuple[Any, Arrays]:
    """The nest of a file, and what turns the tensors in it into arrays.

    check_archive: raises what is wrong with a zip. Raises `pickles.Forbidden`, NotWritten, and
    whatever bytes can make a parser raise.
    """
    content = np.memmap(path, np.uint8, "r")
    if content[:2].tobytes() != b"PK":
        return _legacy(path, content)
    with zipfile.ZipFile(path) as archive:
        check_archive(archive)
        return _zipped(archive, content)


@dataclass(frozen=True)
class Arrays:
    """The storages of a file by key, as bytes, and whether their numbers start with the high byte.
    Called with a value of the nest: the array of a tensor, anything else as it is."""

    storages: Mapping[str, np.ndarray]
    swapped: bool

    def __call__(self, value: Any) -> Any:
        """Raises ValueError for a tensor that reaches beyond its storage."""
        if not isinstance(value, _Tensor):
            return value
        storage, dtype = value.storage, value.dtype
        width, raw = storage.dtype.itemsize, self.storages[storage.key]
        first = storage.first * width
        raw = raw[first : first + storage.size * width]
        if self.swapped and dtype.itemsize > 1:
            part = dtype.itemsize // (2 if dtype.kind == "c" else 1)
            raw = raw[: raw.size // part * part].view(f"u{part}").byteswap().view(np.uint8)
        reach = [(n - 1) * step for n, step in zip(value.shape, value.strides, strict=True)]
        least = min((value.offset, *value.shape, *value.strides))
        count = value.offset + sum(reach) + 1 if all(value.shape) else 0
        if least < 0 or count * dtype.itemsize > raw.size:
            raise ValueError(
                f"a tensor of shape {value.shape} reaches beyond the {raw.size} bytes of its "
                "storage"
            )
        if not count:
            return np.zeros(value.shape, dtype)
        strides = [step * dtype.itemsize for step in value.strides]
        return np.ndarray(
            value.shape, dtype, cast(Any, raw), value.offset * dtype.itemsize, strides
        )


def _storage(found: dict[str, _Storage], key: Any, kind: Any, size: Any) -> _Storage:
    """The storage that a tensor names; a key stands for one storage."""
    name = kind.text.removeprefix("torch.") if isinstance(kind, Name) else None
    if name not in _STORAGES or type(size) is not int or size < 0 or type(key) is not str:
        raise ValueError("it describes a storage in another way than PyTorch does")
    storage = _Storage(key, np.dtype(_STORAGES[name]), size)
    if found.setdefault(key, storage) != storage:
        raise ValueError(f"storage {key:.50} has two types or sizes")
    return storage


def _kept(entry: Any, parts: int) -> tuple[Any, ...]:
    """What a reference to a storage holds behind its first word."""
    if type(entry) is not tuple or len(entry) != parts or entry[0] != "storage":
        raise ValueError("it refers to something else than a storage")
    return entry[1:]


def _zipped(archive: zipfile.ZipFile, content: np.ndarray) -> tuple[Any, Arrays]:
    members = {member.filename: member for member in archive.infolist()}
    roots = [n.removesuffix("data.pkl") for n in members if n.endswith("/data.pkl")]
    if len(roots) != 1:
        raise NotWritten("an archive with one data.pkl is what torch.save writes")
    root, known = roots[0], {}

    def persistent(entry: Any) -> _Storage:
        kind, key, _place, size = _kept(entry, 5)
        return _storage(known, key, kind, size)

    nest = load_pickle(io.BytesIO(archive.read(f"{root}data.pkl")), CALLS, persistent)
    order = archive.read(f"{root}byteorder") if f"{root}byteorder" in members else b"little"
    storages = {}
    for key, storage in known.items():
        member = members.get(f"{root}data/{key}")
        if member is None or member.file_size != storage.size * storage.dtype.itemsize:
            raise ValueError(f"storage {key:.50} does not have its {storage.size} numbers")
        storages[key] = _member(archive, member, content)
    return nest, Arrays(storages, order.strip() == b"big")


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, content: np.ndarray) -> np.ndarray:
    """The bytes of a member: in the mapped file where it is not packed."""
    if member.compress_type != zipfile.ZIP_STORED:
        return np.frombuffer(archive.read(member), np.uint8)
    # The local header: 30 bytes, of which the last 4 are the lengths of a name and of more facts.
    head = content[member.header_offset : member.header_offset + 30].tobytes()
    start = member.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
    return content[start : start + member.file_size]


def _legacy(path: Path, content: np.ndarray) -> tuple[Any, Arrays]:
    """Five pickles (number, version, system, the nest, keys), then for each key the storage's size
    in 8 bytes and its bytes."""
    known: dict[str, _Storage] = {}

    def persistent(entry: Any) -> _Storage:
        kind, key, _place, size, view = _kept(entry, 6)
        whole = _storage(known, key, kind, size)
        if view is None:
            return whole
        _, first, count = view
        if not (type(first) is type(count) is int and 0 <= first <= first + count <= size):
            raise ValueError(f"a view of storage {whole.key:.50} reaches beyond it")
        return _Storage(whole.key, whole.dtype, count, first)

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        stream = cast(Any, mapped)
        if (
            load_pickle(stream, CALLS, persistent) != MAGIC
            or load_pickle(stream, CALLS, persistent) != PROTOCOL
        ):
            raise NotWritten("a pickle that torch.save did not write")
        system, nest, keys = (load_pickle(stream, CALLS, persistent) for _ in range(3))
        at = mapped.tell()
    storages = {}
    if sorted(keys) != sorted(known):
        raise ValueError("its storages are not those of its tensors")
    order = "<q" if system["little_endian"] else ">q"
    for key in keys:
        storage, start = known[key], at + 8
        at = start + storage.size * storage.dtype.itemsize
        size = content[start - 8 : start].tobytes()
        if at > len(content) or struct.unpack(order, size)[0] != storage.size:
            raise ValueError(f"storage {key:.50} does not have its {storage.size} numbers")
        storages[key] = content[start:at]
    return nest, Arrays(storages, not system["little_endian"])


_WRITTEN = {np.dtype(kind): name for name, kind in _STORAGES.items() if "Untyped" not in name}


def save(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors by name as torch.save does a dict of them. Raises OSError; KeyError for a
    dtype that PyTorch's plain storages have none of."""
    values = [np.array(value, order="C") for value in tensors.values()]
    with path.open("wb") as stream, zipfile.ZipFile(stream, "w") as archive:

        def write(name: str, content: bytes) -> None:
            member = zipfile.ZipInfo(f"archive/{name}")
            start = stream.tell() + 30 + len(member.filename) + 4  # 4: the head of what pads
            pad = -start % ALIGNMENT
            member.extra = b"FB" + struct.pack("<H", pad) + b"Z" * pad
            archive.writestr(member, content)

        write("data.pkl", _pickled(dict(zip(tensors, values, strict=True))))
        write("byteorder", b"little")
        for key, value in enumerate(values):
            write(f"data/{key}", value.tobytes())
        write("version", b"3\n")


def _pickled(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The program that builds a dict of tensors, each in the storage of its number."""

    def plain(value: Any) -> bytes:
        return pickle.dumps(value, 2)[2:-1]  # without the protocol's mark and the stop

    def name(module: str, attribute: str) -> bytes:
        return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()

    program = [pickle.PROTO + b"\2", pickle.EMPTY_DICT, pickle.MARK]
    for key, (text, value) in enumerate(tensors.items()):
        strides = [step // value.itemsize for step in value.strides]
        program += [
            *(plain(text), name("torch._utils", "_rebuild_tensor_v2"), pickle.MARK),
            *(pickle.MARK, plain("storage"), name("torch", _WRITTEN[value.dtype])),
            *(plain(str(key)), plain("cpu"), plain(math.prod(value.shape))),
            *(pickle.TUPLE, pickle.BINPERSID, plain(0), plain(value.shape), plain(tuple(strides))),
            *(plain(False), name("collections", "OrderedDict"), pickle.EMPTY_TUPLE),
            *(pickle.REDUCE, pickle.TUPLE, pickle.REDUCE),
        ]
    return b"".join([*program, pickle.SETITEMS, pickle.STOP])
