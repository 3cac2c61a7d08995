import subprocess
import sys

import pytest

from mrm_jax.allocator import keep_memory

_FAULTS = """
import resource, sys
from mrm_jax.allocator import keep_memory
assert keep_memory(sys.argv[1]) == (sys.argv[1] == "cpu")
def work():
    for _ in range(10):
        bytearray(48 * 2**20)  # zeroed, so that every page is touched
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(device):
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, device], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are glibc's")
def test_memory_freed_by_a_step_is_there_for_the_next_without_page_faults(monkeypatch):
    for name in ("MRM_JAX_NO_MALLOC", "MALLOC_ARENA_MAX"):
        monkeypatch.delenv(name, raising=False)
    # 10 blocks above the 32 MiB that glibc may keep by itself: each page faults again, a page being
    # 2 MiB where the kernel hands out huge ones.
    assert _faults("gpu") >= 10 * 24
    assert _faults("cpu") < 24


_LARGE = """
import ctypes, resource
from mrm_jax.allocator import keep_memory
assert keep_memory("cpu")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)
def work():
    block = libc.malloc(3 * 2**30)
    ctypes.memset(block + 2**30, 1, 2**26)
    libc.free(block)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are glibc's")
def test_so_is_memory_above_two_gib(monkeypatch):
    for name in ("MRM_JAX_NO_MALLOC", "MALLOC_ARENA_MAX"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run(
        [sys.executable, "-c", _LARGE], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 32  # 64 MiB are 32 huge pages or 16384 small ones


@pytest.mark.parametrize("name", ["MRM_JAX_NO_MALLOC", "MALLOC_ARENA_MAX"])
def test_a_user_who_set_something_is_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not keep_memory("cpu")


_HELD = """
from mrm_jax.allocator import keep_memory, release
assert keep_memory("cpu")
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
blocks = [bytearray(50_000) for _ in range(4000)]
last = bytearray(50_000)  # above all of them: nothing is free at the top
del blocks
before = resident()
release()
print(before, resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are glibc's")
def test_what_is_free_is_handed_back_when_asked_for(monkeypatch):
    for name in ("MRM_JAX_NO_MALLOC", "MALLOC_ARENA_MAX"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", _HELD], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert before > 190 > 60 > after  # 200 MB in blocks, MiB
