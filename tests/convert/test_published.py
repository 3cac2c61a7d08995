"""Files of the published size and layout, with random numbers: what an import of one costs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from golden import shape_lists

torch: Any = pytest.importorskip("torch", reason="compares with torch")

LISTS = shape_lists("uda_")
SECONDS, GIBIBYTES = 60, 4

CONVERT = """
import resource, sys
from mrm_jax.main import run
code = run(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


@pytest.mark.skipif(
    not LISTS, reason="lists of whole checkpoints are not committed: MRM_GOLDEN_DIR"
)
@pytest.mark.parametrize("name", LISTS or [None])
def test_a_published_checkpoint_converts_within_its_time_and_memory(
    tmp_path: Path, name: str
) -> None:
    counters = {key for key in LISTS[name] if key.endswith("num_batches_tracked")}
    generator = torch.Generator().manual_seed(0)
    state = {
        key: torch.zeros((), dtype=torch.int64)
        if key in counters
        else torch.rand(shape, generator=generator) / 10 + key.endswith("running_var")
        for key, shape in LISTS[name].items()
    }
    file = tmp_path / "latest.pth"
    torch.save({"meta": {"iter": 40_000}, "state_dict": state}, file)
    del state
    words = ["convert", "--from", str(file), "--to", str(tmp_path / "network")]
    began = time.perf_counter()
    # Without the cache of compiled programs, as on a machine that has never converted anything.
    plain = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
    found = subprocess.run(
        [sys.executable, "-c", CONVERT, *words], capture_output=True, text=True, env=plain
    )
    seconds = time.perf_counter() - began
    assert found.returncode == 0, found.stderr
    gibibytes = int(found.stdout.rpartition("peak ")[2]) / 2**20  # kibibytes on Linux
    print(f"{name}: {file.stat().st_size / 2**20:.0f} MiB, {seconds:.1f} s, {gibibytes:.2f} GiB")
    assert seconds < SECONDS
    assert gibibytes < GIBIBYTES
    assert "kind: segmentor\ncopy: model" in found.stdout
