"""The notebooks run from their first cell to their last, install what is missing and nothing else,
and are kept without outputs."""

import json
import re
import subprocess
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import nbclient
import nbformat
import pytest
from compiler import in_a_child

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TINY = str(ROOT / "configs" / "tiny.py")

TINY_FOLDER = """
from mrm_jax.configs import folder, tiny
from mrm_jax.data.labels import CITYSCAPES, DRAWN


def get_config(text=None):
    config, of_folder = tiny.get_config(text), folder.get_config().data
    for part in ("source", "target", "evaluation"):
        domain = of_folder[part]
        domain.raw_ids = tuple((CITYSCAPES.names.index(name),) for name in DRAWN.names)
        config.data[part] = domain
    return config
"""
"""The notebook's folders for the network of configs/tiny.py."""


def run(name: str, folder: Path, **variables: str) -> nbformat.NotebookNode:
    """The notebook after a run in `folder`, with `variables` that shorten it."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in ({"STEPS": "2", "OUT": str(folder)} | variables).items():
            patch.setenv(f"MRM_NOTEBOOK_{variable}", value)
        for variable, value in in_a_child().items():
            patch.setenv(variable, value)
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        patch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        resources = {"metadata": {"path": str(folder)}}
        nbclient.NotebookClient(notebook, timeout=900, resources=resources).execute()
    return notebook


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def text(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for output in outputs(notebook))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The notebook that trains and evaluates, after a run, and the folder that it wrote."""
    folder = tmp_path_factory.mktemp("evaluated")
    return run("evaluate_checkpoint", folder, CONFIG=TINY), folder


@pytest.mark.e2e
def test_one_notebook_trains_evaluates_and_shows_two_pictures(evaluated):
    notebook, folder = evaluated
    scores = json.loads((folder / "evaluation.json").read_text())
    assert scores["step"] == 2
    assert pictures(notebook) == 2
    assert scores["protocol"]["sentence"] in text(notebook)
    assert len(list((folder / "predictions").glob("*.png"))) == scores["protocol"]["pictures"]
    command = json.loads((folder / "run" / "environment.json").read_text())["command"]
    assert command.startswith("mrm-jax train --config ")


@pytest.mark.e2e
def test_one_shows_a_step_from_the_teacher_to_the_losses(evaluated, tmp_path):
    notebook = run("how_mrm_works", tmp_path, RUN=str(evaluated[1] / "run"))
    assert pictures(notebook) == 8
    rows = re.findall(r"^(\w+) .* (\d+\.\d{4})$", text(notebook), re.M)
    *passes, (last, total) = rows
    assert [name for name, _ in passes] == ["source", "mixed", "reconstructed"]
    assert last == "sum"
    assert sum(float(loss) for _, loss in passes) == pytest.approx(float(total), abs=2e-4)


@pytest.mark.e2e
def test_one_adapts_to_a_folder_and_takes_the_network_along(tmp_path):
    (tmp_path / "config.py").write_text(TINY_FOLDER)
    notebook = run("your_pictures", tmp_path, CONFIG=str(tmp_path / "config.py"), BOX="64,32")
    assert pictures(notebook) == 2
    assert "in another process and compared on 2 drawn pictures" in text(notebook)
    with zipfile.ZipFile(tmp_path / "exported.zip") as packed:
        assert {"network.stablehlo", "run.py", "README.md"} <= set(packed.namelist())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def first_cell(path: Path) -> str:
    notebook = nbformat.read(path, as_version=4)
    return next(cell.source for cell in notebook.cells if cell.cell_type == "code")


def test_all_begin_with_the_same_cell_and_one_variable():
    (cell,) = {first_cell(path) for path in NOTEBOOKS}
    assert re.findall(r"^(\w+) = (.*)$", cell, re.M) == [("MRM_JAX", '""')]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that runs the first cell, with `MRM_JAX` given, where nothing is installed, and
    returns what it gave to pip."""
    asked: list[list[str]] = []

    def pip(words):
        asked.append(words)
        return SimpleNamespace(returncode=0)

    def begin(given: str) -> list[list[str]]:
        cell = first_cell(NOTEBOOKS[0]).replace('MRM_JAX = ""', f"MRM_JAX = {given!r}")
        exec(compile(cell, "first cell", "exec"), {})
        return asked

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLAB_JUPYTER_IP", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", pip)
    return begin


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("https://github.com/a/b", "git+https://github.com/a/b"),
        ("git+ssh://git@host/a/b@branch", "git+ssh://git@host/a/b@branch"),
        ("https://host/mrm_jax-0.1.0-py3-none-any.whl",) * 2,
        ("my wheels/x.whl", "file://{here}/my%20wheels/x.whl"),
    ],
)
def test_the_first_cell_installs_from_what_the_variable_says(installed, tmp_path, given, address):
    (words,) = installed(given)
    assert re.match(r"mrm-jax\[notebooks(,\w+)?\] @ ", words[-1])
    assert words[-1].partition(" @ ")[2] == address.format(here=tmp_path)


def test_it_takes_the_checkout_around_it(installed, monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    assert installed("")[0][-1].endswith(f" @ {ROOT.as_uri()}")


def test_in_colab_it_takes_the_repository_that_the_notebook_was_opened_from(installed, monkeypatch):
    path = "fileId=https%3A//github.com/a/b/blob/my/branch/notebooks/how_mrm_works.ipynb"

    class Sessions(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps([{"path": path}]).encode())

        def log_message(self, format, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Sessions) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("COLAB_JUPYTER_IP", "127.0.0.1")
        monkeypatch.setenv("KMP_TARGET_PORT", str(server.server_port))
        (words,) = installed("")
        server.shutdown()
    assert words[-1].endswith(" @ git+https://github.com/a/b@my/branch")


def test_where_it_finds_nothing_it_says_in_a_line_what_to_do(installed):
    with pytest.raises(SystemExit, match=r"^Set MRM_JAX, .* a checkout, a wheel or an address\.$"):
        installed("")


def test_it_installs_nothing_where_the_package_is(installed, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert installed("https://github.com/a/b") == []
