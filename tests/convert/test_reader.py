"""Files of weights: every format gives the same tensors, and nothing in a bad file is believed."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch_states as states

from mrm_jax.config import UsageError
from mrm_jax.convert.reader import read, write


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
    write(path, state, {"note": "of a test"})
    found = read(path)
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
                "f64": ("F64", (3,), value.astype(np.float64).tobytes()),
                "f32": ("F32", (3,), value.tobytes()),
            }
        )
    )
    found = read(tmp_path / "x.safetensors").tensors
    assert {x.dtype for x in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(found["f32"], value)
    np.testing.assert_array_equal(found["f64"], value)
    np.testing.assert_array_equal(found["f16"], half.astype(np.float32))
    # Eight bits of mantissa: relative steps of 2**-7.
    np.testing.assert_allclose(found["bf16"], value, rtol=2**-7)


def test_prefixes_of_wrapped_networks_are_taken_off(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **states.prefixed("module.net.", states.mit()))
    found = read(tmp_path / "x.npz")
    assert found.tensors.keys() == states.mit().keys()
    assert found.unwrapped == ("module.", "net.")


def test_the_first_tensor_that_is_not_finite_is_named(tmp_path: Path) -> None:
    state = states.mit()
    state["block2.0.norm1.weight"] = np.full(12, np.nan, np.float32)
    np.savez(tmp_path / "x.npz", **state)
    with pytest.raises(UsageError, match=r"x\.npz: block2\.0\.norm1\.weight has 12 value"):
        read(tmp_path / "x.npz")


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
        ("x.npz", lambda p: _npz(p)[:500], "cannot be read as a NumPy file, it may be cut short"),
        ("x.pth", _npz, r"is a NumPy file by its content; rename it to end in \.npz"),
        ("x.safetensors", _npz, "is a NumPy file by its content"),
        ("x.npz", lambda _: _whole(), "is a safetensors file by its content"),
        (
            "x.safetensors",
            lambda _: _whole()[:-9],
            "it may be cut short: a ends at byte 473 of 464",
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
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class Trap:
    """Runs code when it is unpickled without care."""

    def __reduce__(self):
        return (open, ("sprung", "w"))


def test_pickled_objects_in_an_npz_are_refused_and_not_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "x.npz", a=np.asarray([Trap()], object))
    with pytest.raises(UsageError, match="refused: to open it, code would have to run"):
        read(tmp_path / "x.npz")
    assert not (tmp_path / "sprung").exists()
    with np.load(tmp_path / "x.npz", allow_pickle=True) as careless:
        careless["a"][0].close()
    assert (tmp_path / "sprung").exists()  # the trap works


def test_a_pytorch_file_without_torch_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UsageError, match=r"pip install 'mrm-jax\[torch\]'"):
        read(tmp_path / "x.pth")
    with pytest.raises(UsageError, match=r"pip install 'mrm-jax\[torch\]'"):
        write(tmp_path / "y.pth", states.mit(), {})
    assert not (tmp_path / "y.pth").exists()
