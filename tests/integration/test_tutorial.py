"""The notebook of the documentation: it runs, and what it is stored with came from a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = [
    pytest.mark.slow,
    # The kernel's sockets and event loop end after the test.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def _printed(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def test_the_tutorial_runs_and_its_masks_beat_the_boxes(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = nbformat.read(repository / "docs" / "tutorial.ipynb", as_version=4)
    monkeypatch.setenv("PYTHONPATH", str(repository))
    fresh = nbformat.from_dict(stored)
    client = NotebookClient(
        fresh, timeout=250, coalesce_streams=True, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    printed = _printed(fresh)
    iou = {
        name.strip(): float(value)
        for name, value in re.findall(r"^([a-z ]+?) +(0\.\d\d)$", printed, re.MULTILINE)
    }
    assert iou["labeller"] > iou["filled boxes"]
    assert iou["own network"] > iou["filled boxes"]
    assert (tmp_path / "review.html").is_file()


def test_the_stored_outputs_are_those_of_the_stored_code(repository: Path) -> None:
    notebook = nbformat.read(repository / "docs" / "tutorial.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert "labeller with depth" in _printed(notebook)
