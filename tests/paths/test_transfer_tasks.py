"""Every task from its official files to a result, and a custom folder."""

import csv
import json

import pytest

from classification.datasets.specs import DATASETS
from classification.report import page_runs, records
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


def class_folders(folder):
    return folder


def table(folder):
    with open(folder / "labels.csv", "w", newline="") as file:
        rows = [(path.stem, path.parent.name) for path in sorted(folder.rglob("*.jpg"))]
        csv.writer(file).writerows([("image_id", "species"), *rows])
    return folder / "labels.csv"


@pytest.mark.parametrize("data", [class_folders, table])
def test_images_without_splits(network, tmp_path, data):
    miniature_tasks.write("folder", tmp_path, per_class={"train": 10}, classes=3)
    folder = (tmp_path / "folder" / "train").rename(tmp_path / "images")
    for path in sorted(folder.rglob("*.jpg")):
        path.rename(path.with_name(f"{path.parent.name}{path.name}"))
    options = f"--weights {network} --dataset folder --data {data(folder)} --image-size 32"
    out = tmp_path / "run"
    transfer.main(f"{options} --device cpu --trials 1 --output {out}".split())
    parts = json.loads((out / "result.json").read_text())["data"]
    assert {name: (part["images"], part["split"]) for name, part in parts.items()} == {
        "train": (24, "80 % of each class, seed 0"),
        "test": (6, "20 % of each class, seed 0"),
    }
    (row,) = page_runs.collect_runs(records.read([out])[0]).rows
    assert row["facts"]["test images"] == "20 % of each class, seed 0"
