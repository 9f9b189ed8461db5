"""The notebooks run at demo size, and show what they promise."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.documents import ROOT

FOLDER = ROOT / "docs/tutorials"
# What a run must print: its last words that depend on everything before them.
PROMISED = {
    "does_it_transfer": (
        "training images, 6 classes",
        "resnet18 eps 0 ",
        "resnet18 eps 0.5",
        "resnet18 eps 1 ",
        "2 robust resnet18 networks",
    ),
    "detector_on_your_data": (
        "1200 images, 2914 objects, 10 classes",
        "no errors",
        "verified, largest relative difference",
        "standard  |robust  ",
    ),
}
# Text of the cells -> text with which they take less time.
SMALLER = {
    "--epochs 3": "--epochs 1 --limit 200 --test-limit 20",
    "--limit 150": "--limit 60 --test-limit 60",
    "= 300, (225,)": "= 4, (3,)",
}


def texts(notebook) -> str:
    """All that its cells print."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.get("text", "") for output in outputs)


def pictures(notebook) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return sum(
        bool({"image/jpeg", "image/svg+xml"} & {*output.get("data", {})}) for output in outputs
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMISED)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    """It runs in an empty folder, where the package is installed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    before = pictures(notebook)
    for cell in notebook.cells:
        for text, smaller in SMALLER.items():
            cell.source = cell.source.replace(text, smaller)
    assert SMALLER["--epochs 3"] in str(notebook)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = texts(notebook)
    for words in PROMISED[name]:
        assert any(choice in said for choice in words.split("|")), f"{words} in:\n{said}"
    assert pictures(notebook) == before > 0


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_saved_outputs_are_complete_small_and_free_of_local_paths(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert path.stem in PROMISED
    assert path.stat().st_size < 400_000
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {output.output_type for cell in notebook.cells for output in cell.get("outputs", ())}
    assert kinds <= {"stream", "display_data", "execute_result"}  # no errors
    assert not [word for word in texts(notebook).split() if Path(word).is_absolute()]
