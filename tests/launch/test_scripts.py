"""What holds for all of launch/, and for the container recipe."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .conftest import ROOT

SCRIPTS = sorted(path for path in (ROOT / "launch").iterdir() if path.suffix in (".sh", ".sbatch"))


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [shellcheck, "--external-sources", *SCRIPTS, ROOT / ".ci/run", ROOT / ".ci/ends"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_strict_and_short(script):
    text = script.read_text()
    if text.startswith("#!"):  # the others are sourced
        assert "\nset -euo pipefail\n" in text
    assert len(text.splitlines()) < 350
    assert max(map(len, text.splitlines())) <= 100


def test_the_container_recipe_copies_what_is_there_and_installs_extras_that_exist():
    recipe = (ROOT / "launch/Dockerfile").read_text()
    copied = [
        name for line in re.findall(r"^COPY (.+) \S+$", recipe, re.M) for name in line.split()
    ]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / "launch/Dockerfile.dockerignore").read_text()
    assert set(copied) == set(re.findall(r"^!(.+)$", ignored, re.M))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert {"gcs", "tpu", "cuda"} <= set(extras)
