"""Files of weights: every format gives the same tensors, and nothing in a bad file is believed."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch_states as states

from mrm_jax.convert.reader import read_weights, write_weights
from mrm_jax.errors import UsageError


def safetensors(entries: dict[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """A file by the format's description: (dtype, shape, bytes) by name."""
    header, body = {}, b""
    for name, (dtype, shape, content) in entries.items():
        offsets = [len(body), len(body) + len(content)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        body += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    state = states.mit() | {"counter": np.asarray(3, np.int64)}
    path = tmp_path / f"weights{suffix}"
    write_weights(path, state, {"note": "of a test"})
    found = read_weights(path)
    assert found.tensors.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found.tensors[name], value)
        assert found.tensors[name].dtype == value.dtype
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.meta == ({"note": "of a test"} if suffix == ".safetensors" else {})
    assert list(tmp_path.iterdir()) == [path]


def test_other_floats_become_float32(tmp_path: Path) -> None:
    value = np.asarray([1.0, -2.5, 3e-3], np.float32)
    upper = (value.view(np.uint32) >> 16).astype(np.uint16)  # bfloat16 cuts the mantissa short
    half = value.astype(np.float16)
    (tmp_path / "x.safetensors").write_bytes(
        safetensors(
            {
                "bf16": ("BF16", (3,), upper.tobytes()),
                "f16": ("F16", (3,), half.tobytes()),
                "f8": ("F8_E4M3", (3,), value.astype(ml_dtypes.float8_e4m3fn).tobytes()),
                "f8wide": ("F8_E5M2", (3,), value.astype(ml_dtypes.float8_e5m2).tobytes()),
                "f64": ("F64", (3,), value.astype(np.float64).tobytes()),
                "f32": ("F32", (3,), value.tobytes()),
            }
        )
    )
    found = read_weights(tmp_path / "x.safetensors").tensors
    assert {x.dtype for x in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(found["f32"], value)
    np.testing.assert_array_equal(found["f64"], value)
    np.testing.assert_array_equal(found["f16"], half.astype(np.float32))
    # Eight bits of mantissa: relative steps of 2**-7.
    np.testing.assert_allclose(found["bf16"], value, rtol=2**-7)
    for name, dtype in (("f8", ml_dtypes.float8_e4m3fn), ("f8wide", ml_dtypes.float8_e5m2)):
        np.testing.assert_array_equal(found[name], value.astype(dtype).astype(np.float32))


def test_prefixes_of_wrapped_networks_are_taken_off(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **states.prefixed("module.net.", states.mit()))
    found = read_weights(tmp_path / "x.npz")
    assert found.tensors.keys() == states.mit().keys()


def test_the_first_tensor_that_is_not_finite_is_named(tmp_path: Path) -> None:
    state = states.mit()
    state["block2.0.norm1.weight"] = np.full(12, np.nan, np.float32)
    np.savez(tmp_path / "x.npz", **state)
    with pytest.raises(UsageError, match=r"x\.npz: block2\.0\.norm1\.weight has 12 value"):
        read_weights(tmp_path / "x.npz")


def _npz(path: Path) -> bytes:
    np.savez(path, a=np.zeros(1000))
    return path.read_bytes()


def _whole() -> bytes:
    return safetensors({"a": ("F32", (100,), bytes(400))})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pth", None, "is not there"),
        ("x.onnx", b"abc", r"ends in '\.onnx'; files of weights end in \.pth"),
        ("x.pth", b"", "is empty"),
        ("x.pth", b"\n<!DOCTYPE html><html>quota exceeded", "is a web page"),
        ("x.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        ("x.npz", b"not an archive", "cannot be read as a NumPy file"),
        (
            "x.npz",
            lambda p: _npz(p)[:500],
            "cannot be read as a NumPy file, it may be cut short or",
        ),
        ("x.pth", _npz, r"is a NumPy file by its content; rename it to end in \.npz"),
        ("x.safetensors", _npz, "is a NumPy file by its content"),
        ("x.npz", lambda _: _whole(), "is a safetensors file by its content"),
        (
            "x.safetensors",
            lambda _: _whole()[:-9],
            "it may be cut short or damaged: Error while deserializing header",
        ),
        ("x.safetensors", lambda _: _whole()[:30], "cannot be read as a safetensors file"),
        ("x.safetensors", struct.pack("<Q", 2) + b"{}", "holds no tensors"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_it(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        data = content(tmp_path / "made.npz") if callable(content) else content
        path.write_bytes(data)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def _entry(first: int = 0, last: int = 8, *, shape: tuple[int, ...] = (2,)) -> str:
    return f'{{"dtype": "F32", "shape": {list(shape)}, "data_offsets": [{first}, {last}]}}'


def _tensors(header: str, size: int = 16) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + bytes(size)


NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "content",
    [
        _tensors(f'{{"a": {_entry()}, "b": {_entry(4, 12)}}}', 12),
        _tensors(f'{{"a": {_entry()}, "b": {_entry()}}}', 8),
        _tensors(f'{{"a": {_entry(-8, 0)}}}', 8),
        _tensors(f'{{"a": {_entry()}, "b": {_entry(12, 20)}}}', 20),
        _tensors(f'{{"a": {_entry()}}}', 9),
        _tensors(f'{{"a": {_entry()}, "a": {_entry()}}}', 8),
        _tensors(f'{{"__metadata__": {{"x": "1", "x": "2"}}, "a": {_entry()}}}', 8),
        _tensors(f'{{"__metadata__": [], "a": {_entry()}}}', 8),
        _tensors(f'{{"__metadata__": {{"x": {NESTED}}}, "a": {_entry()}}}', 8),
        _tensors(f'{{"a": {NESTED}}}', 8),
        _tensors(f'{{"a": {_entry(shape=(2**33, 2**33))}}}', 8),
        _tensors(f'{{"a": {_entry(0, 8).replace("F32", "C64")}}}', 8),
        _tensors(f'{{"a\\nb": {_entry()}}}', 8),
        struct.pack("<Q", 2**63) + b"{" + bytes(20),
    ],
    ids=[
        "overlap", "same place", "negative", "gap", "trailing bytes", "name twice", "note twice",
        "list as notes", "nested notes", "nested entry", "huge shape", "complex", "line break in a "
        "name", "huge header",
    ],
)  # fmt: skip
def test_a_safetensors_file_against_its_format_is_refused_in_one_line(
    tmp_path: Path, content: bytes
) -> None:
    _refused(tmp_path / "x.safetensors", content)


def test_tensors_at_odd_offsets_are_read(tmp_path: Path) -> None:
    entry = '{"c": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, '
    head = _tensors(f'{entry}"a": {_entry(1, 9)}}}', 0)
    (tmp_path / "x.safetensors").write_bytes(head + b"\7" + np.float32([3, 5]).tobytes())
    found = read_weights(tmp_path / "x.safetensors").tensors
    np.testing.assert_array_equal(found["a"], np.float32([3, 5]))
    assert found["a"].flags.aligned


def _npy(header: str, body: bytes = bytes(8), version: bytes = b"\1\0") -> bytes:
    return (
        b"\x93NUMPY" + version + struct.pack("<H", len(header) + 1) + f"{header}\n".encode() + body
    )


def _array(shape: str, descr: str = "'<f4'") -> bytes:
    return _npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}")


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (_array("(1099511627776, 9)"), "promises 39582418599936 bytes and has 8"),
        (_array("(-1, -2)"), "cannot be read"),
        (_array("(-1,)"), "promises -4 bytes"),
        (_array("(1,)"), "promises 4 bytes and has 8"),
        (_array("(2,)", "[" * 3000 + "]" * 3000), "cannot be read"),
        (_array("(2,)", "'|O'"), "code would have to run"),
        (_array("(1,)", "'<U2'"), "a holds <U2; weights are floating-point"),
        (_array("(1,)", "'<c8'"), "a holds complex64"),
        (_npy("[1]"), "cannot be read"),
        (_npy("{}", version=b"\3\0"), "header version"),
        (b"", "cannot be read"),
        # 100 MB of zeros in 100 kB, as the largest ratio of the packing allows.
        (bytes(10**8), "would unpack to 100000000 bytes"),
    ],
    ids=[
        "36 TiB", "two unknown sizes", "negative", "too short", "nested", "objects", "texts",
        "complex", "no header", "version 3", "empty", "bomb",
    ],
)  # fmt: skip
def test_an_array_that_is_not_what_it_promises_is_refused_in_one_line(
    tmp_path: Path, member: bytes, message: str
) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", member)
    line = _refused(tmp_path / "x.npz", (tmp_path / "x.zip").read_bytes())
    assert message in line


def test_a_flipped_bit_or_a_name_that_stands_twice_in_an_npz_is_refused(tmp_path: Path) -> None:
    content = bytearray(_npz(tmp_path / "made.npz"))
    content[400] ^= 1
    assert "a.npy" in _refused(tmp_path / "x.npz", bytes(content))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.npy", _array("(2,)"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.npy", _array("(2,)"))
    assert "twice" in _refused(tmp_path / "x.npz", (tmp_path / "x.zip").read_bytes())


def _refused(path: Path, content: bytes) -> str:
    """The one line that answers a file with this content."""
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_weights(path)
    line = str(caught.value)
    assert str(path) in line
    assert line.isprintable()
    return line


def test_arrays_that_lie_otherwise_in_memory_are_written_as_they_read(tmp_path: Path) -> None:
    value = np.arange(12, dtype=np.float32).reshape(3, 4)
    turned = {"t": value.T, "part": value[:, ::2], "one": np.float32(2) * np.ones(())}
    write_weights(tmp_path / "x.safetensors", turned, {})  # type: ignore[arg-type]
    found = read_weights(tmp_path / "x.safetensors").tensors
    for name, wanted in turned.items():
        np.testing.assert_array_equal(found[name], wanted)


class Trap:
    """Runs code when it is unpickled without care."""

    def __reduce__(self):
        return (open, ("sprung", "w"))


def test_pickled_objects_in_an_npz_are_refused_and_not_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "x.npz", a=np.asarray([Trap()], object))
    with pytest.raises(UsageError, match="refused: to open it, code would have to run"):
        read_weights(tmp_path / "x.npz")
    assert not (tmp_path / "sprung").exists()
    with np.load(tmp_path / "x.npz", allow_pickle=True) as careless:
        careless["a"][0].close()
    assert (tmp_path / "sprung").exists()  # the trap works


def test_a_pytorch_file_without_torch_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UsageError, match=r"pip install 'mrm-jax\[torch\]'"):
        read_weights(tmp_path / "x.pth")
    with pytest.raises(UsageError, match=r"pip install 'mrm-jax\[torch\]'"):
        write_weights(tmp_path / "y.pth", states.mit(), {})
    assert not (tmp_path / "y.pth").exists()
