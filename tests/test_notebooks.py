"""Every notebook runs from top to bottom and holds the outputs of its last run."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_there_and_free_of_errors(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].cell_type == "markdown"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert "error" not in kinds
    assert "display_data" in kinds


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the kernel's own machinery warns
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path, monkeypatch):
    # The first cell would install a package that the kernel does not find.
    found = (str(FOLDER.parent), os.environ.get("PYTHONPATH"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, found)))
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(FOLDER)}}
    stored = printed(notebook)
    # Seconds for one cell: a busy machine takes 100 to compile a whole program.
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    assert printed(notebook) == stored


def printed(notebook):
    """What each cell printed, without the digits and spaces, in which versions differ.

    A kernel may send it in one piece or in several.
    """
    texts = [
        "".join(o.text for o in cell.get("outputs", []) if o.output_type == "stream")
        for cell in notebook.cells
    ]
    return [re.sub(r"-?[\d.]+(e-?\d+)?%?|\s", "", text) for text in texts]
