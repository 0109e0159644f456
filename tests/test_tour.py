"""The notebook of docs/ from its first cell to its last."""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parents[1] / "docs"


def test_the_tour_runs_to_its_end(monkeypatch):
    # The pictures are drawn in the file's own process, without a window.
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    notebook = nbformat.read(DOCS / "tour.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # what they show changes with the summaries
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(DOCS)}})
    client.execute()
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 3
    said = "".join(o["data"]["text/plain"] for o in notebook.cells[4].outputs)
    assert "grokked" in said  # which is what the page says of it
    assert "memorised" not in said
    area = notebook.cells[-1].outputs[0].data["text/plain"]
    assert "array" in area
