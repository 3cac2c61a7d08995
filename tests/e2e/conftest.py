"""What the tests of whole commands share."""

import subprocess
import sys
from pathlib import Path

import pytest


def _refusal(words):
    done = subprocess.run(
        [sys.executable, "-m", "mrm_jax.main", *words],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.fixture
def refusal():
    """The one line that a command in a process of its own is refused with, by exit code 2."""
    return _refusal
