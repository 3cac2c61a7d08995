"""What every test runs under: two fake CPU devices, one compilation cache, no silent promotion."""

import gc
import os
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `refusals`

# Before jax starts. Two devices, so that sharding is exercised by default; the cache lives as long
# as the machine's temporary folder and is shared with the processes that e2e tests start.
CACHE = Path(tempfile.gettempdir()) / f"mrm_jax_test_cache_{os.getuid()}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("MPLBACKEND", "agg")

# What takes longest begins first: --dist loadfile gives a file to one core, and one that begins
# last leaves the others idle.
LONG = (
    "test_readme.py",
    "train/test_many_devices.py",
    "contracts/test_numerics.py",
    "train/test_alternatives.py",
    "train/test_step.py",
    "train/test_ablate.py",
    "contracts/test_runs.py",
    "train/test_methods.py",
    "e2e/test_data_sets.py",
    "e2e/test_tour.py",
    "train/test_several.py",
    "test_notebook.py",
    "cli/test_convert.py",
    "runs/test_checkpoint.py",
)


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist's own order is by numbers of tests


def pytest_collection_modifyitems(items):
    root = Path(__file__).parent
    rank = {root / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path, len(LONG)))


@pytest.fixture(autouse=True)
def no_kept_steps(monkeypatch):
    """Tests change the code that a step is made of, which the name of its file cannot know."""
    monkeypatch.setattr("mrm_jax.train.kept.folder", lambda: None)


@pytest.fixture(scope="module", autouse=True)
def short_collections():
    """What the files before have left is looked at once more and never again: a process that has
    run thousands of tests took a second and more for each collection of cycles."""
    gc.collect()
    gc.freeze()
