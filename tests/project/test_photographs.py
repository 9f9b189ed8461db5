"""Test the study on photographs in benchmarks/photographs."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.support import documents
from tests.support.voc_data import voc

PREPARE = "benchmarks/photographs/prepare.py"


@pytest.fixture(scope="module")
def prepare():
    return documents.functions(PREPARE)


def files(folder):
    """Files of an output folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("box", "margin", "square"),
    [
        ((10, 10, 20, 20), 0.0, (10, 10, 20, 20)),
        ((10, 10, 20, 20), 0.1, (9, 9, 21, 21)),
        ((10, 14, 20, 16), 0.0, (10, 10, 20, 20)),
        ((0, 0, 10, 2), 0.0, (0, 0, 10, 10)),  # moved into the photograph
        ((30, 5, 40, 25), 0.0, (20, 5, 40, 25)),
        ((0, 10, 40, 20), 0.0, (0, 0, 40, 30)),  # larger than the photograph is high
    ],
)
def test_an_object_is_cut_out_as_a_square(prepare, box, margin, square):
    assert prepare["around"](box, margin, 40, 30) == square


def test_cut_out_objects(prepare, tmp_path, capsys):
    """Both parts have all classes, and no photograph is in both."""
    two = [("cow", (1, 1, 12, 12)), ("sofa", (20, 1, 38, 18)), ("cow", (15, 15, 25, 29))]
    images = {f"p{k}": two for k in range(4)} | {
        "car": [("car", (1, 1, 30, 30)), ("rare", (1, 1, 12, 12))],
        "small": [("cow", (1, 1, 9, 30))],
        "same": [("cow", (1, 1, 20, 20)), ("sofa", (1, 1, 20, 20))],
    }
    root = voc(tmp_path / "voc", images)
    for output in ("one", "two"):
        limits = ["--side", "10", "--least", "2", "--each", "1"]
        prepare["main"](["objects", f"voc:{root}:all", str(tmp_path / output), *limits])
    assert "| cow | 2 | 2 |\n| sofa | 2 | 2 |\n| all | 4 | 4 |" in capsys.readouterr().out
    found = files(tmp_path / "one")
    assert found == files(tmp_path / "two")
    assert {name.split("/")[1] for name in found} == {"cow", "sofa"}
    photographs = [
        {name.split("/")[2].split("_")[0] for name in found if name.startswith(part)}
        for part in ("train", "test")
    ]
    assert not photographs[0] & photographs[1]
    with Image.open(tmp_path / "one" / found[0]) as image:
        assert image.size[0] == image.size[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objects", "voc:{root}:all", "{root}"], "already exists"),
        (["objects", "voc:{root}:all", "new"], "--least 12: fewer than two classes"),
        (
            ["classes", "{folder}", "new", "--classes", "b", "--train", "3", "--test", "1"],
            "train/b",
        ),
        (
            ["classes", "{folder}", "new", "--classes", "a", "--train", "3", "--test", "1"],
            "--train 2",
        ),
    ],
)
def test_errors(prepare, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    root = voc(tmp_path / "voc", {"one": [("cow", (1, 1, 30, 30))]})
    image_folder(tmp_path / "folder", 2)
    words = [word.format(root=root, folder=tmp_path / "folder") for word in words]
    with pytest.raises(SystemExit) as end:
        prepare["main"](words)
    assert end.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def image_folder(root, count):
    """Write `count` images of a class in each part."""
    for part in ("train", "test"):
        (root / part / "a").mkdir(parents=True)
        for k in range(count):
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / part / "a" / f"{k}.png")


def test_classes_of_an_image_folder(prepare, tmp_path):
    image_folder(tmp_path / "all", 3)
    given = [str(tmp_path / "all"), str(tmp_path / "some")]
    prepare["main"](["classes", *given, "--classes", "a", "--train", "2", "--test", "1"])
    assert files(tmp_path / "some") == ["test/a/0.png", "train/a/0.png", "train/a/1.png"]


@pytest.fixture(scope="module")
def page():
    return documents.functions("benchmarks/photographs/page.py")


def test_the_page_is_made_from_the_saved_results(page):
    assert page["page"](page["RESULTS"], page["FIGURES"]) == page["PAGE"].read_text("utf-8")


def test_saved_results_are_small(page):
    assert sum(path.stat().st_size for path in page["RESULTS"].rglob("*.*")) < 3e6


def test_results_are_copied_and_shown(page, tmp_path):
    """A missing run is marked, and a finished comparison has its sentence and its figure."""
    common = {"settings": {"dataset": "folder"}, "weights_sha256": "0" * 64}
    run = tmp_path / "output/compare/fixed-feature/runs/transfer/one"
    write_result(run, labels={"task": "coco", "weights": "eps 1"}, **common)
    (run / "classifier.pt").write_text("large")
    answer = {"text": "robust features gain 5 points"}
    report = tmp_path / "output/compare/fixed-feature/report/report.json"
    plot = report.parent / page["FOREST"]
    plot.parent.mkdir(parents=True)
    plot.write_text("<svg/>")
    report.write_text(json.dumps({"answers": [answer]}))
    results, figures = tmp_path / "results", tmp_path / "figures"
    page["collect"](tmp_path / "output", results, figures)
    text = page["page"](results, figures)
    assert "**Classification, fixed features.** robust features gain 5 points" in text
    assert "| fixed-feature | coco | not run | not run | 31.0 ± 1.4 (2) |" in text
    assert "| fixed-feature | voc | not run | not run | not run |" in text
    assert (figures / "fixed-feature.svg").exists() and "(photographs/fixed-feature.svg)" in text
    assert not list(results.rglob("*.pt"))


def write_result(folder, labels, **contents):
    """Write the result of a transfer run with two trials."""
    folder.mkdir(parents=True)
    trials = [{"seed": 0, "accuracy": 30.0}, {"seed": 1, "accuracy": 32.0}]
    result = {
        "schema": 1,
        "kind": "transfer",
        "metrics": {"metric": "top1", "trials": trials},
        "data": {},
        "seed": 0,
        "seconds": 3600.0,
        "code_version": "0",
        "finished": "",
        "hardware": {"gpus": [], "cpu": "x86_64", "threads": 1, "torch": "2"},
    } | contents
    result["settings"] |= {"mode": "fixed-feature", "protocol": "clean"}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "run.json").write_text(json.dumps({"labels": labels}))
