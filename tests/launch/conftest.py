"""A small checkout with the scripts, and stand-ins for the programs that they call."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAND_INS = Path(__file__).parent / "stand_ins"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The scripts, and empty in place of all else that they copy."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "launch", folder / "launch")
    for name in ("mrm_jax", "configs"):
        (folder / name).mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (folder / name).touch()
    return folder


def program(path: Path, text: str) -> None:
    """Writes something to run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Cloud:
    """The stand-in for Google's cloud, and the script under test."""

    def __init__(self, folder: Path, checkout: Path):
        self.folder, self.checkout = folder, checkout
        self.home = folder / "home"
        self.home.mkdir()
        stand_in = f"{sys.executable} -IS {STAND_INS / 'gcloud.py'}"
        program(folder / "bin" / "gcloud", f'#!/bin/sh\nexec {stand_in} "$@"\n')
        program(folder / "on_worker" / "python3", (STAND_INS / "worker_python3").read_text())
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "STAND_IN_CLOUD": str(folder),
            "STAND_IN_WORKER": str(folder / "on_worker"),
        }

    def will(self, **script) -> None:
        """What happens from now on; see stand_ins/gcloud.py."""
        for position in self.folder.glob("*.position"):
            position.unlink()
        (self.folder / "script").write_text(repr(script))

    def start(self, *options: str, words=("--config", "c.py", "--workdir", "gs://b/r")):
        """The script, running; `words` are what it trains with."""
        fixed = ("--name=mrm", "--zone=z", "--accelerator=v5litepod-8", "--poll=0")
        return subprocess.Popen(
            ["bash", self.checkout / "launch/tpu_vm.sh", *fixed, *options, "--", *words],
            cwd=self.home,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *options: str, **kwargs) -> subprocess.CompletedProcess:
        """The script, to its end."""
        process = self.start(*options, **kwargs)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def calls(self) -> list[list[str]]:
        """Words after `gcloud --quiet compute tpus` of every call."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.split("\t")[3:] for line in lines]

    def verbs(self) -> list[str]:
        """The verbs of all calls but describe, and of ssh what was to be done."""
        found = []
        for _, verb, *rest in self.calls():
            command = next((w for w in rest if w.startswith("--command=")), "")
            part = command.partition("worker.sh ")[2].split(" ")[0]
            if verb != "describe":
                found.append(part or verb)
        return found

    def exists(self) -> bool:
        """Whether there is a VM."""
        return (self.folder / "vm").exists()

    def trained(self) -> list[str]:
        """Of every worker of the VM that is there, the words of each start, one a line."""
        return [path.read_text() for path in sorted(self.folder.glob("w-*/trained"))]

    def clean(self) -> None:
        """Ends what still runs."""
        for group in self.folder.glob("w-*/mrm_jax_run/group"):
            with suppress(ProcessLookupError, ValueError):
                os.killpg(int(group.read_text()), signal.SIGKILL)


@pytest.fixture
def cloud(tmp_path, checkout):
    """A cloud with nothing in it."""
    made = Cloud(tmp_path, checkout)
    made.will()
    yield made
    made.clean()
