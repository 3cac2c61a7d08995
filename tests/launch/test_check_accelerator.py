"""launch/check_accelerator.sh, up to the command that it runs."""

import os
import shlex
import subprocess

import pytest

from mrm_jax.machine import suite

from .conftest import ROOT


def check(*words, **more):
    return subprocess.run(
        ["bash", ROOT / "launch/check_accelerator.sh", *words],
        env=os.environ | more,
        capture_output=True,
        text=True,
    )


def test_the_command_reads_this_checkout_and_passes_on_what_was_asked_for():
    words = ["--dry_run", "--to", "a b", "--limit=60", "--pieces", "device", "--small"]
    done = check(*words, PYTHONPATH="mine", JAX_COMPILATION_CACHE_DIR="")
    assert done.returncode == 0, done.stderr
    command = shlex.split(done.stdout)
    assert command[:3] == [
        *("env", f"PYTHONPATH={ROOT}:mine", "JAX_COMPILATION_CACHE_DIR=a b/programs"),
    ]
    assert command[3:] == [
        *("python3", "-m", "mrm_jax.main", "bench", "--suite", "accelerator"),
        *("--json", "a b/accelerator.json", "--limit", "60", "--pieces", "device", "--small"),
    ]
    plain = shlex.split(check("--dry_run").stdout)
    assert plain[-2:] == ["--limit", f"{suite.SECONDS:.0f}"]


@pytest.mark.parametrize(
    "words", [("--limit", "x"), ("--to",), ("--to", "--small"), ("--nothing",), ("x",)]
)
def test_mistakes_are_one_line(words):
    done = check("--dry_run", *words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
