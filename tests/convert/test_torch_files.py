"""PyTorch's files without PyTorch: what torch wrote is what we read, and nothing in a file runs.

The files in torch_files/ and the numbers in wanted.npz there are torch's own; test_torch.py
compares with its loader where it is installed.
"""

from __future__ import annotations

import builtins
import copyreg
import pickle
import pickletools
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_programs as made
import torch_states as states

from mrm_jax.convert import pickles
from mrm_jax.convert.reader import read_weights, write_weights
from mrm_jax.convert.torch_files import CALLS
from mrm_jax.errors import UsageError

FILES = Path(__file__).parent / "torch_files"
FORMATS = {"zip": made.zipped, "legacy": made.legacy}


@pytest.mark.parametrize("name", ["zip", "zip_protocol4", "legacy"])
def test_what_torch_wrote_is_read_number_by_number(name: str) -> None:
    found = read_weights(FILES / f"{name}.pth")
    with np.load(FILES / "wanted.npz") as wanted:
        newer = {"float8_e4m3fn", "float8_e5m2", "uint16"} if name == "legacy" else set()
        assert found.tensors.keys() == set(wanted.files) - newer
        for key in found.tensors:
            np.testing.assert_array_equal(found.tensors[key], wanted[key], err_msg=key, strict=True)
    assert (found.meta["iter"], found.meta["loss"]) == (40_000, 0.5)
    assert found.meta["CLASSES"] == ["road", "sky"]
    assert found.meta["place"] == "cuda:1"
    assert found.meta["optimizer"]["param_groups"] == [{"lr": 6e-5, "params": [0, 1]}]


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_a_file_that_is_cut_short_anywhere_is_refused_in_one_line(tmp_path, name: str) -> None:
    content = (FILES / f"{name}.pth").read_bytes()
    for length in range(2, len(content), 97):
        with pytest.raises(UsageError, match=r"x\.pth") as caught:
            _read(tmp_path, content[:length])
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_a_damaged_byte_gives_other_numbers_at_worst_and_else_one_line(tmp_path, name) -> None:
    content = (FILES / f"{name}.pth").read_bytes()
    refused = 0
    for at in range(0, len(content), 29):
        try:
            _read(tmp_path, content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        except UsageError:
            refused += 1
    assert refused > len(content) // 29 // 3


def _read(folder: Path, content: bytes) -> Any:
    (folder / "x.pth").write_bytes(content)
    return read_weights(folder / "x.pth")


def test_a_written_pth_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    state = states.mit() | {"counter": np.asarray(3, np.int64), "empty": np.zeros((0, 3), "f4")}
    state["turned"] = np.arange(12, dtype=np.float32).reshape(3, 4).T
    write_weights(tmp_path / "x.pth", state, {})
    found = read_weights(tmp_path / "x.pth").tensors
    assert found.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value, strict=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "x.pth"]


def test_numbers_stay_in_the_mapped_file_where_they_can(tmp_path: Path) -> None:
    write_weights(tmp_path / "x.pth", {"a": np.ones(1000, np.float32)}, {})
    found: Any = read_weights(tmp_path / "x.pth").tensors["a"]
    while found.base is not None and not isinstance(found, np.memmap):
        found = found.base
    assert isinstance(found, np.memmap)


@pytest.mark.parametrize("form", FORMATS)
def test_files_of_machines_with_the_high_byte_first_are_read(tmp_path: Path, form: str) -> None:
    big = struct.pack(">4f", 1, 2, 3, 4)
    if form == "zip":
        program = made.mapping(a=made.tensor())
        path = made.zipped(tmp_path / "x.pth", program, order=b"big", _0=big)
    else:
        program = made.mapping(a=made.tensor(lies_in=made.storage(legacy=True)))
        body = struct.pack(">q", 4) + big
        path = made.legacy(tmp_path / "x.pth", program, body=body, little=False)
    np.testing.assert_array_equal(read_weights(path).tensors["a"], np.float32([1, 2, 3, 4]))


def test_packed_archives_views_of_storages_and_odd_offsets_are_read(tmp_path: Path) -> None:
    path = made.zipped(tmp_path / "x.pth", made.mapping(a=made.tensor()), packed=True)
    np.testing.assert_array_equal(read_weights(path).tensors["a"], np.float32([1, 2, 3, 4]))
    # torch 0.1 wrote views of storages, (key, first number, count), into its files.
    seen = made.storage(legacy=True, view=("9", 1, 3))
    whole = made.tensor(lies_in=made.storage(legacy=True))
    program = made.mapping(a=made.tensor((2,), (1,), 1, seen), b=whole)
    for odd in range(4):  # before the numbers
        before = made.mapping(n=made.plain("x" * odd)) + b"0"
        found = read_weights(made.legacy(tmp_path / "x.pth", before + program)).tensors
        np.testing.assert_array_equal(found["a"], np.float32([3, 4]))
        np.testing.assert_array_equal(found["b"], np.float32([1, 2, 3, 4]))
        assert found["b"].flags.aligned


# What could run code. Each program names os.system, which is on no list, by another operation.
NAME, TEXT = made.named("os.system"), made.plain("touch sprung")
OTHER = "collections.OrderedDict"
CALLING = {
    "GLOBAL": NAME + TEXT + pickle.TUPLE1 + pickle.REDUCE,
    "STACK_GLOBAL": made.plain("os") + made.plain("system") + pickle.STACK_GLOBAL,
    "INST": pickle.MARK + TEXT + pickle.INST + b"os\nsystem\n",
    "OBJ": pickle.MARK + NAME + TEXT + pickle.OBJ,
    "NEWOBJ": NAME + TEXT + pickle.TUPLE1 + pickle.NEWOBJ,
    "NEWOBJ_EX": NAME + TEXT + pickle.TUPLE1 + pickle.EMPTY_DICT + pickle.NEWOBJ_EX,
    "_rebuild_from_type_v2": made.called(
        "torch._tensor._rebuild_from_type_v2", NAME, made.named("torch.Tensor"),
        TEXT + pickle.TUPLE1, pickle.NONE,
    ),
}  # fmt: skip
# Without a name that is off the list the operation itself is refused.
BARE = {
    "INST": pickle.MARK + pickle.INST + b"collections\nOrderedDict\n",
    "OBJ": pickle.MARK + made.named(OTHER) + pickle.OBJ,
    "NEWOBJ": made.named(OTHER) + pickle.EMPTY_TUPLE + pickle.NEWOBJ,
    "NEWOBJ_EX": made.named(OTHER) + pickle.EMPTY_TUPLE + pickle.EMPTY_DICT + pickle.NEWOBJ_EX,
    "EXT1": pickle.EXT1 + b"\xf0",
    "EXT2": pickle.EXT2 + b"\xf0\0",
    "EXT4": pickle.EXT4 + b"\xf0\0\0\0",
    "PERSID": pickle.PERSID + b"os.system\n",
    "NEXT_BUFFER": pickle.NEXT_BUFFER,
    "READONLY_BUFFER": TEXT + pickle.READONLY_BUFFER,
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("operation", CALLING)
def test_a_pickle_that_calls_is_refused_by_the_name_and_not_run(
    tmp_path, monkeypatch, operation, form
) -> None:
    monkeypatch.chdir(tmp_path)
    path = FORMATS[form](tmp_path / "x.pth", made.mapping(a=CALLING[operation]))
    with pytest.raises(UsageError, match=r"code would have to run \(os\.system\)"):
        read_weights(path)
    path.write_bytes(made.ended(CALLING[operation]))  # as the whole file
    with pytest.raises(UsageError, match=r"code would have to run \(os\.system\)"):
        read_weights(path)
    assert not (tmp_path / "sprung").exists()


def test_the_traps_of_this_file_work_where_pickles_are_believed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for operation in ("GLOBAL", "INST", "OBJ"):
        pickle.loads(made.ended(CALLING[operation]))
        (tmp_path / "sprung").unlink()


@pytest.mark.parametrize("operation", BARE)
def test_an_operation_that_could_call_is_refused_even_with_an_allowed_name(
    tmp_path, monkeypatch, operation
) -> None:
    monkeypatch.setitem(copyreg._inverted_registry, 0xF0, ("os", "system"))  # type: ignore[attr-defined]
    path = made.zipped(tmp_path / "x.pth", made.mapping(a=BARE[operation]))
    with pytest.raises(UsageError, match=f"to run \\({operation}|to run \\({OTHER}"):
        read_weights(path)


def test_every_operation_of_pickles_is_known_or_refused() -> None:
    names = {code.name for code in pickletools.opcodes}
    assert names - pickles._STEPS.keys() - {"STOP"} == BARE.keys()


def test_every_name_that_is_on_no_list_is_refused_and_nothing_is_imported(tmp_path) -> None:
    (tmp_path / "sprung_module.py").write_text("raise SystemExit")
    names = [f"builtins.{name}" for name in dir(builtins)]
    names += [f"__builtin__.{name}" for name in ("eval", "exec", "getattr", "apply", "open")]
    names += [
        *("os.system", "posix.system", "nt.system", "subprocess.Popen", "sys.modules"),
        *("functools.partial", "operator.attrgetter", "copyreg._reconstructor", "numpy.load"),
        *("numpy.core.multiarray._reconstruct", "numpy.ndarray", "operator.methodcaller"),
        *("torch.load", "torch.hub.load", "torch._utils._rebuild_qtensor", "torch.jit.load"),
        *("torch.storage._load_from_bytes", "torch.nn.modules.linear.Linear", "torch.QInt8Storage"),
        *("torch._utils", "torch.FloatStorage.__class__", "sprung_module.x", "argparse.Namespace"),
        *("collections.defaultdict", "pickle.loads", "_codecs.decode", "é.x"),
    ]  # fmt: skip
    allowed = set(names) & CALLS.keys()
    assert allowed == {"builtins.set"}
    sys.path.insert(0, str(tmp_path))
    try:
        for name in sorted(set(names) - allowed):
            module, _, attribute = name.rpartition(".")
            program = made.plain(module) + made.plain(attribute) + pickle.STACK_GLOBAL
            with pytest.raises(UsageError, match="code would have to run") as caught:
                read_weights(made.zipped(tmp_path / "x.pth", made.mapping(a=program)))
            assert f"({name})" in str(caught.value)
    finally:
        sys.path.remove(str(tmp_path))
    assert "sprung_module" not in sys.modules


def test_what_is_on_the_list_and_stands_for_no_function_is_not_called(tmp_path) -> None:
    for name in (name for name, function in CALLS.items() if function is None):
        program = made.mapping(a=made.called(name, made.plain(4)))
        with pytest.raises(UsageError) as caught:
            read_weights(made.zipped(tmp_path / "x.pth", program))
        assert f"code would have to run ({name})" in str(caught.value)


DEEP = pickle.EMPTY_TUPLE + pickle.TUPLE1 * 150_000
WIDE = made.plain([1]) + b"".join(
    pickle.BINPUT + b"\x63" + pickle.POP + pickle.EMPTY_LIST + pickle.MARK
    + 9 * (pickle.BINGET + b"\x63") + pickle.APPENDS
    for _ in range(200)
)  # fmt: skip
"""A list of 9**200 entries, if it were written out."""


def _at(legacy: bool, **wrong: Any) -> dict[str, bytes]:
    """Programs whose one tensor lies where it cannot."""
    lies_in = made.storage(legacy=legacy)
    return {
        "behind the end": made.tensor((5,), (1,), 0, lies_in),
        "behind the end by an offset": made.tensor((4,), (1,), 1, lies_in),
        "behind the end by a stride": made.tensor((2, 2), (3, 1), 0, lies_in),
        "before the start": made.tensor((4,), (1,), -1, lies_in),
        "backwards": made.tensor((4,), (-1,), 3, lies_in),
        "a negative side": made.tensor((-4,), (1,), 0, lies_in),
        "huge": made.tensor((2**62, 2**62), (2**62, 1), 0, lies_in),
        "no stride": made.tensor((4,), (), 0, lies_in),
        "a text as side": made.tensor(("4",), (1,), 0, lies_in),
        "true as side": made.tensor((True,), (1,), 0, lies_in),
        "a nest as shape": made.tensor(0, (1,), 0, lies_in).replace(made.plain(0), WIDE, 1),
        "in no storage": made.tensor(lies_in=made.plain(3)),
        "repeated": made.tensor((2**40,), (0,), 0, lies_in),
        "a promise": made.tensor(lies_in=made.storage(2**40, legacy=legacy)),
        "a negative size": made.tensor(lies_in=made.storage(-4, legacy=legacy)),
        "of 8 bytes": made.tensor(lies_in=made.storage(kind="torch.LongStorage", legacy=legacy)),
        "no type": made.tensor(lies_in=made.storage(kind="torch.float32", legacy=legacy)),
        "no storage": made.tensor(lies_in=made.storage(what="module", legacy=legacy)),
        "an unknown key": made.tensor(lies_in=made.storage(key="7", legacy=legacy)),
        "a path as key": made.tensor(lies_in=made.storage(key="../data.pkl", legacy=legacy)),
        "a nest as key": made.tensor(lies_in=made.storage(key=[], legacy=legacy)).replace(
            pickle.EMPTY_LIST, WIDE, 1
        ),
        "two types": made.tensor(lies_in=lies_in) + b"0"
        + made.tensor(lies_in=made.storage(kind="torch.IntStorage", legacy=legacy)),
    }  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("fault", _at(False))
def test_a_tensor_that_is_not_where_it_says_is_refused_in_one_line(tmp_path, fault, form) -> None:
    program = _at(form == "legacy")[fault]
    path = FORMATS[form](tmp_path / "x.pth", made.mapping(a=program))
    _refused(path)


@pytest.mark.parametrize(
    "program",
    [
        DEEP + b"0" + pickle.EMPTY_DICT + DEEP + made.plain(1) + pickle.SETITEM,
        pickle.MARK + DEEP + pickle.FROZENSET,
        pickle.EMPTY_SET + pickle.MARK + DEEP + pickle.ADDITEMS,
        made.called("builtins.set", pickle.EMPTY_LIST + DEEP + pickle.APPEND),
        made.called(OTHER, pickle.EMPTY_LIST + DEEP + DEEP + pickle.TUPLE2 + pickle.APPEND),
        made.called("torch.device", DEEP),
        made.mapping(a=DEEP),
        made.mapping(a=WIDE),
        made.called("torch.device", WIDE),
        made.called("numpy.dtype", WIDE),
        made.called("numpy.dtype", made.plain("O8")),
        made.called("_codecs.encode", made.plain("x"), made.plain("rot13")),
        made.called("_codecs.encode", made.plain("x"), WIDE),
        made.named(OTHER) + made.plain({"x": 1}) + pickle.BUILD,
        made.plain(1) + made.plain({"x": 1}) + pickle.BUILD,
        made.plain(1) + pickle.EMPTY_TUPLE + pickle.REDUCE,
        made.plain("ab") + made.plain(1) + pickle.APPEND,
        made.mapping(a=made.tensor()) + made.plain("a") + made.plain(1) + pickle.SETITEM,
        pickle.LONG4 + struct.pack("<i", 2**31 - 1),
        pickle.BINBYTES8 + struct.pack("<Q", 2**62),
        pickle.FRAME + struct.pack("<Q", 2**62),
        made.plain(1) + pickle.LONG_BINPUT + struct.pack("<I", 2**32 - 1),
        pickle.BINGET + b"\7",
        pickle.TUPLE,
        pickle.TUPLE3,
        pickle.POP,
        pickle.BINPERSID,
        b"",
        b"\xff",
    ],
    ids=[
        "deep key", "deep in a frozen set", "deep in a set", "deep in a called set",
        "deep in pairs", "deep device", "deep", "wide", "wide device", "wide dtype",
        "objects", "encoding", "wide encoding", "state of a name", "state of a number",
        "call of a number", "text filled", "twice", "long number", "long bytes", "long frame",
        "far place", "empty place", "no mark", "short stack", "empty stack", "no reference",
        "nothing", "no operation",
    ],
)  # fmt: skip
def test_a_pickle_that_no_network_is_saved_as_is_refused_in_one_line(tmp_path, program) -> None:
    _refused(made.zipped(tmp_path / "x.pth", program))
    if len(program) < len(DEEP):  # a second for each
        _refused(made.legacy(tmp_path / "x.pth", program))


def _refused(path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_weights(path)
    line = str(caught.value)
    assert str(path) in line
    assert line.isprintable()
    assert len(line) < len(str(path)) + 500


def test_a_pickle_of_more_operations_than_a_checkpoint_has_is_given_up(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(pickles, "OPERATIONS", 50)
    program = made.mapping(a=made.tensor(), n=made.plain(list(range(50))))
    with pytest.raises(UsageError, match="more than 50 operations"):
        read_weights(made.zipped(tmp_path / "x.pth", program))


def test_a_bare_pickle_is_told_from_a_file_of_weights(tmp_path) -> None:
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": 1}, 2))
    with pytest.raises(UsageError, match=r"is not what torch\.save writes"):
        read_weights(tmp_path / "x.pth")


def test_a_file_of_weights_needs_no_torch(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    shutil.copy(FILES / "legacy.pth", tmp_path / "x.bin")
    assert "plain" in read_weights(tmp_path / "x.bin").tensors
    write_weights(tmp_path / "y.pth", states.mit(), {})
    assert read_weights(tmp_path / "y.pth").tensors.keys() == states.mit().keys()
