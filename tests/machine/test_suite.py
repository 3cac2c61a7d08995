"""The prepared check of an accelerator, in part on this CPU, and how it treats pieces that fail,
hang or crash."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from refusals import refused

from mrm_jax.machine import chips, parity, suite, suite_pieces
from mrm_jax.main import run

ROOT = Path(__file__).parents[2]

# Stands for a piece: says what its name asks for.
STAND_IN = """
import json, os, signal, sys, time
def tell(**parts): print(json.dumps(parts), flush=True)
name = sys.argv[1]
tell(doing="starting")
if name == "device": tell(found={"kind": "toy"})
if name == "parity": tell(found={"a": 1}); tell(error="ValueError: x"); sys.exit(1)
if name == "daformer":
    tell(found={"trace": 1}, doing="compiling")
    if not os.fork(): print(os.getpid(), file=open(os.environ["PID"], "w", 1)); time.sleep(600)
    time.sleep(600)
if name == "dinov2": print("a line of another's", flush=True); os.kill(os.getpid(), signal.SIGSEGV)
if name == "mic": tell(found={"small": sys.argv[2:]})
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "piece.py").write_text(STAND_IN)
    monkeypatch.setenv("PID", str(tmp_path / "pid"))
    monkeypatch.setattr(suite, "COMMAND", (sys.executable, "-S", str(tmp_path / "piece.py")))
    monkeypatch.setattr(suite, "_LEAST", 0.0)


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_piece_that_fails_hangs_or_crashes_is_told_and_the_others_run(
    tmp_path, stand_in, monkeypatch
):
    pieces = suite.chosen("mic,device,parity,daformer,dinov2")
    assert [p.name for p in pieces] == ["device", "parity", "daformer", "dinov2", "mic"]
    pieces = tuple(p._replace(limit=3.0) if p.name == "daformer" else p for p in pieces)
    written = []
    write = suite.write_text
    monkeypatch.setattr(
        suite, "write_text", lambda to, text: (written.append(json.loads(text)), write(to, text))
    )
    report = suite.run_suite(tmp_path / "to/out.json", pieces, small=True, say=lambda line: None)
    rows = report["pieces"]
    assert {name: row["status"] for name, row in rows.items()} == {
        **{"device": "done", "parity": "failed", "daformer": "stopped"},
        **{"dinov2": "failed", "mic": "done"},
    }
    assert (rows["parity"]["error"], rows["parity"]["found"]) == ("ValueError: x", {"a": 1})
    assert (rows["daformer"]["doing"], rows["daformer"]["found"]) == ("compiling", {"trace": 1})
    assert rows["dinov2"]["error"] == "exit code -11"
    assert rows["mic"]["found"] == {"small": ["--small"]}
    assert not alive((tmp_path / "pid").read_text().strip())  # what a piece started ends with it
    # After every piece the file holds all that was found.
    counts = [sum("found" in row for row in each["pieces"].values()) for each in written]
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3, 4, 5}
    assert json.loads((tmp_path / "to/out.json").read_text()) == report
    assert "while compiling" in suite.suite_text(report)


def test_all_pieces_together_keep_the_limit(tmp_path, stand_in, monkeypatch):
    monkeypatch.setattr(suite, "_LEAST", 1.0)
    began = time.monotonic()
    report = suite.run_suite(
        tmp_path / "out.json", suite.chosen("daformer,mic"), limit=2.0, say=lambda line: None
    )
    assert time.monotonic() - began < 60  # and not the 600 s that the piece would take
    assert [row["status"] for row in report["pieces"].values()] == ["stopped", "left out"]
    assert sum(piece.limit for piece in suite.PIECES[:3]) < suite.SECONDS


BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ImportError(f"{{name}} is not to be imported")
sys.meta_path.insert(0, Blocked())
"""
OTHERS = {
    *("grain", "orbax", "tensorflow", "PIL", "cv2", "tensorboardX", "array_record", "scipy"),
    *("torch", "transformers", "matplotlib", "safetensors", "pandas"),
}


def test_the_check_needs_jax_flax_optax_numpy_and_ml_collections_alone(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCK.format(names=OTHERS))
    words = [sys.executable, "-m", "mrm_jax.main", "bench", "--suite", "accelerator", "--small"]
    words += ["--pieces", "device,inference_torch,dinov2_fused", "--json", str(tmp_path / "o.json")]
    more = {"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | more, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "o.json").read_text())["pieces"]
    device = rows["device"]["found"]
    assert (device["platform"], device["chip"]) == ("cpu", None)
    assert {"jax", "jaxlib", "flax", "optax", "numpy"} <= set(device["versions"])
    assert device["product_bfloat16"]["flops_per_second"] > 0
    assert "torch is not to be imported" in rows["inference_torch"]["found"]["torch"]
    assert "cpu has no cuDNN" in rows["dinov2_fused"]["found"]["attention"]


def told(capfd):
    found, lines = {}, [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    for line in lines:
        found |= line.get("found", {})
    return found, [line["error"] for line in lines if "error" in line]


def test_a_step_is_timed_and_its_cost_counted(capfd, monkeypatch):
    monkeypatch.setattr(suite_pieces, "_TIMED_SECONDS", 0.0)
    monkeypatch.setattr(chips, "of_device", lambda kind: "h200")
    assert suite_pieces.main(["dinov2", "--small"]) == 0
    found, errors = told(capfd)
    assert not errors
    assert found["finite"]
    assert found["seconds"]["count"] == 3
    assert found["images_per_second"] == pytest.approx(2 / found["seconds"]["median"])
    rate = found["flops"] / found["seconds"]["median"]
    assert found["share_of_peak"] == pytest.approx(rate / chips.CHIPS["h200"].bfloat16)
    assert found["planned_bytes"] > 0


def test_narrow_networks_compute_what_is_stored_and_what_differs_is_named(capfd, monkeypatch):
    wanted = parity.stored()
    assert set(wanted) == set(parity.NETWORKS)
    found = parity.numbers("mit", "float32")
    row = parity.compared(found, wanted["mit"]["float32"], "float32")
    assert row["equal"], row
    # Rounding of another machine's products moves them by 3e-7; TF32 by more, a fault by far more.
    other = found | {"source/ce": 1.01 * found["source/ce"]}
    monkeypatch.setattr(parity, "numbers", lambda name, dtype: other)
    assert suite_pieces.main(["parity", "--small"]) == 0
    rows, errors = told(capfd)
    assert rows["mit/float32"]["name"] == "source/ce"
    assert errors == ["differs from the CPU: mit in float32 (source/ce)"]
    assert not parity.compared(
        found | {"total/loss": float("nan")}, wanted["mit"]["float32"], "float32"
    )["equal"]


def test_devices_are_known_by_what_jax_calls_them():
    names = {
        **{"NVIDIA H100 80GB HBM3": "h100", "NVIDIA A100-SXM4-40GB": "a100-40", "cpu": None},
        **{"TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v4": "v4", "TPU v6 lite": "v6e"},
        **{"Tesla T4": "t4", "Tesla V100-SXM2-16GB": "v100-16", "NVIDIA A10G": "a10g"},
        **{"NVIDIA GeForce RTX 4090": "rtx4090", "NVIDIA L4": "l4", "NVIDIA L40": None},
    }
    assert {kind: chips.of_device(kind) for kind in names} == names
    assert list(suite_pieces.PIECES) == [piece.name for piece in suite.PIECES]


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ((), "--json"),
        (("--json", "x", "--pieces", "devices"), "--pieces"),
        (("--json", "x", "--limit", "0"), "--limit"),
        (("--json", "/proc/none/x"), "--json"),
    ],
)
def test_mistakes_are_one_line(words, field):
    with refused(field):
        run(["bench", "--suite", "accelerator", *words])
