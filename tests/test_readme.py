"""The README's commands work: each fenced console line runs, in order, in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from compiler import in_a_child

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

# How a long command is shortened, by documented options alone. pip only resolves (the copy must not
# replace the installation under test), pytest only collects a file (it is running already).
SHORTER = {
    "pip install": "--dry-run --no-deps --quiet",
    "--config configs/quickstart.py": "--config.train.steps=1 --config.train.log_every=1 "
    "--config.evaluation.limit=2",
    "pytest": "--collect-only -q tests/test_rngs.py",
}


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", README.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def shortened(command: str) -> str:
    parts = []
    for part in command.split(" && "):
        extra = [more for start, more in SHORTER.items() if start in part]
        parts.append(" ".join([part, *extra]))
    text = " && ".join(parts)
    text = re.sub(r"(^|&& )python ", rf"\1{sys.executable} ", text)
    text = re.sub(r"(^|&& )pip ", rf"\1{sys.executable} -m pip ", text)
    return re.sub(r"(^|&& )pytest", rf"\1{sys.executable} -m pytest", text)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name in ("mrm_jax", "configs", "docs", "launch", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.e2e
def test_every_console_command_of_the_readme_works(project):
    assert len(commands()) >= 4
    environment = os.environ | in_a_child()
    for command in commands():
        done = subprocess.run(
            shortened(command),
            shell=True,
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert (project / "runs" / "quickstart" / "report.html").stat().st_size > 1000


def test_the_readme_sets_up_with_two_commands():
    first = "pip install -e . && python -m mrm_jax.main --config configs/quickstart.py"
    assert commands()[0].startswith(first)
    assert any(line.startswith("pip install -e '.[test]' && pytest") for line in commands())
