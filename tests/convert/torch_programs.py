"""PyTorch's files put together operation by operation, for what torch.save never writes."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

FOUR = struct.pack("<4f", 1, 2, 3, 4)


def plain(value: Any) -> bytes:
    """The operations that push numbers, texts, tuples, lists and mappings."""
    return pickle.dumps(value, 2)[2:-1]


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def called(name: str, *arguments: bytes) -> bytes:
    return named(name) + pickle.MARK + b"".join(arguments) + pickle.TUPLE + pickle.REDUCE


def storage(
    size: Any = 4, *, key: Any = "0", kind: str = "torch.FloatStorage", legacy: bool = False,
    view: Any = None, what: Any = "storage",
) -> bytes:  # fmt: skip
    more = plain(view) if legacy else b""
    parts = plain(what) + named(kind) + plain(key) + plain("cpu") + plain(size) + more
    return pickle.MARK + parts + pickle.TUPLE + pickle.BINPERSID


def tensor(
    shape: Any = (4,), strides: Any = (1,), offset: Any = 0, lies_in: bytes | None = None
) -> bytes:
    where = storage() if lies_in is None else lies_in
    rest = plain(offset) + plain(shape) + plain(strides) + plain(False) + plain(None)
    return called("torch._utils._rebuild_tensor_v2", where, rest)


def mapping(**entries: bytes) -> bytes:
    """A dict of values that the given operations push."""
    pairs = b"".join(plain(name) + value for name, value in entries.items())
    return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS


def ended(program: bytes) -> bytes:
    return pickle.PROTO + b"\2" + program + pickle.STOP


def zipped(
    path: Path, program: bytes, packed: bool = False, order: bytes = b"little", **storages: bytes
) -> Path:
    """`program` as data.pkl; storages by "_KEY", without any the four numbers of `FOUR` as 0."""
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("x/data.pkl", ended(program))
        archive.writestr("x/byteorder", order)
        for key, content in (storages or {"_0": FOUR}).items():
            archive.writestr(f"x/data/{key[1:]}", content)
    return path


def legacy(
    path: Path, program: bytes, keys: Any = ("0",), body: bytes | None = None, little: bool = True
) -> Path:
    """The format before: without a body one storage of the four numbers of `FOUR`."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": little}]
    parts = [*(pickle.dumps(part, 2) for part in head), ended(program)]
    rest = struct.pack("<q", 4) + FOUR if body is None else body
    path.write_bytes(b"".join([*parts, pickle.dumps(list(keys), 2), rest]))
    return path
