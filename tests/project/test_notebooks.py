"""The notebooks run at demo size, and show what they promise."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.documents import ROOT

FOLDER = ROOT / "docs/tutorials"
# What a run must print: its last words that depend on everything before them.
PROMISED = {
    "does_it_transfer": (
        "300 images, 6 classes",
        "resnet18 eps 0 ",
        "resnet18 eps 0.25",
        "resnet18 eps 1 ",
        "cross-fitted",
        "% interval",
        "-> no difference|-> better|-> worse|-> cannot tell",
    ),
    "detector_on_your_data": (
        "1200 training images, 10 classes",
        "no errors",
        "verified, largest relative difference",
        "standard  |robust  ",
        "predictions; the surest:",
    ),
}
# Text of the cells -> text with which they take less time.
SMALLER = {
    "--epochs 1 --test-limit 100": "--epochs 1 --limit 200 --test-limit 20",
    "= 40, (30,)": "= 4, (3,)",
}


def texts(notebook) -> str:
    """All that its cells print."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.get("text", "") for output in outputs)


def pictures(notebook) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return sum("image/jpeg" in output.get("data", {}) for output in outputs)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that looks like the project's, for all that the notebooks write."""
    folder = tmp_path_factory.mktemp("notebooks")
    for name in ("configs", "tools"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMISED)
def test_a_notebook_runs(name, place, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    before = pictures(notebook)
    for cell in notebook.cells:
        for text, smaller in SMALLER.items():
            cell.source = cell.source.replace(text, smaller)
    assert SMALLER["--epochs 1 --test-limit 100"] in str(notebook)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(place)}}).execute()
    said = texts(notebook)
    for words in PROMISED[name]:
        assert any(choice in said for choice in words.split("|")), f"{words} in:\n{said}"
    assert pictures(notebook) == before == 2


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_what_is_kept_of_a_run_is_whole_small_and_of_nobodys_machine(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert path.stem in PROMISED
    assert path.stat().st_size < 300_000
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {output.output_type for cell in notebook.cells for output in cell.get("outputs", ())}
    assert kinds <= {"stream", "display_data"}  # no errors
    assert not [word for word in texts(notebook).split() if Path(word).is_absolute()]
    assert "QUICK = True" in notebook.cells[1].source
