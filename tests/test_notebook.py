"""The notebook runs from its first cell to its last and is kept without outputs."""

import json
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "evaluate_checkpoint.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after a run on tiny drawn scenes, and the folder that it wrote."""
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MRM_NOTEBOOK_CONFIG", str(ROOT / "configs" / "tiny.py"))
        patch.setenv("MRM_NOTEBOOK_STEPS", "2")
        patch.setenv("MRM_NOTEBOOK_OUT", str(folder))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        patch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        client = nbclient.NotebookClient(
            notebook, timeout=900, resources={"metadata": {"path": str(folder)}}
        )
        client.execute()
    return notebook, folder


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def text(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.e2e
def test_the_notebook_trains_evaluates_and_shows_two_pictures(executed):
    notebook, folder = executed
    scores = json.loads((folder / "evaluation.json").read_text())
    assert scores["step"] == 2
    assert pictures(notebook) == 2
    assert scores["protocol"]["sentence"] in text(notebook)
    assert len(list((folder / "predictions").glob("*.png"))) == scores["protocol"]["pictures"]


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
