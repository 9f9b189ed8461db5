"""Every task from its official files to a result, and a custom folder."""

import json

import pytest

from classification.datasets.specs import DATASETS
from classification.transfer import __main__ as transfer
from tests.support import miniature_tasks
from tests.support.transfer_runs import write_network

OFFICIAL = [(name, "official") for name in miniature_tasks.TASKS]
FOLDERS = [(name, "folders") for name in ("aircraft", "birdsnap", "sun397")]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network") / "w.pt", "shufflenet_v2_x1_0")


@pytest.mark.parametrize("name, layout", [*OFFICIAL, *FOLDERS])
def test_from_the_files_to_a_result(network, tmp_path, monkeypatch, name, layout):
    row = miniature_tasks.use(monkeypatch, name, tmp_path / "data", layout=layout)
    assert DATASETS[name] is row
    out = tmp_path / "run"
    transfer.main(
        [
            "--weights",
            str(network),
            "--dataset",
            name,
            "--data",
            str(tmp_path / "data"),
            "--image-size",
            "32",
            "--device",
            "cpu",
            "--trials",
            "1",
            "--output",
            str(out),
        ]
    )
    found = json.loads((out / "result.json").read_text())
    numbers = found["metrics"]
    assert numbers["metric"] == row.metric
    trial = numbers["trials"][0]
    assert numbers["accuracy"] == trial[row.metric]
    assert numbers["images"] == found["data"]["test"]["images"] > 0
    assert len((out / "per_class.csv").read_text().splitlines()) == 1 + row.classes
    # The classes differ in color, so accuracy is well above chance.
    assert numbers["accuracy"] > 100 / row.classes
