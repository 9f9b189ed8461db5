"""`robust-backbones evaluate`: tables, CSV and result files; mistakes end with code 2."""

import csv
import json

import pytest

from robust_backbones.commands import evaluate
from robust_backbones.core.files import sha256
from tests.support import coco_cases


@pytest.fixture
def files(tmp_path):
    """`(predictions, annotations)` on disk."""
    contents, rows = coco_cases.scene(50, images=10)
    contents["categories"][1]["name"] = "a-b"
    (tmp_path / "truth.json").write_text(json.dumps(contents))
    (tmp_path / "found.json").write_text(json.dumps(rows))
    return tmp_path / "found.json", tmp_path / "truth.json"


def expected(files, task="bbox"):
    from tests.support.official_coco import official, percent

    rows, contents = (json.loads(file.read_text()) for file in files)
    return percent(official(contents, rows, task).stats)


def run(*args):
    evaluate.main([str(arg) for arg in args])


def test_table_csv_and_result(tmp_path, files, capsys):
    found, truth = files
    output, table = tmp_path / "out/result.json", tmp_path / "scores.csv"
    run(found, "--annotations", truth, "--csv", table, "--output", output, "--areas", 0, 32, "inf")
    printed = capsys.readouterr().out
    ap = [expected(files, task)[0] for task in ("bbox", "segm")]
    rows = {
        tuple(cell.strip() for cell in line.split("|")[1:-1])
        for line in printed.splitlines()
        if line.startswith("|")
    }
    assert ("AP", *(f"{value:.2f}" for value in ap)) in rows
    assert ("metric", "bbox", "segm") in rows and ("class", "bbox AP", "segm AP") in rows
    assert {row[0] for row in rows} >= {"AP50", "APs", "AR100", "AP 0..32", "AP 32..inf", "a-b"}

    with open(table, newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["task", "metric", "class", "percent"]
    cells = {(line["task"], line["metric"], line["class"]): line["percent"] for line in lines}
    assert float(cells["segm", "AP", ""]) == pytest.approx(ap[1])
    assert float(cells["bbox", "AP", "a-b"]) >= 0

    result = json.loads(output.read_text())
    metrics = result["metrics"]["truth"]
    assert result["kind"] == "detection" and set(metrics) == {"bbox", "segm"}
    assert metrics["bbox"]["AP"] == pytest.approx(ap[0]) == float(cells["bbox", "AP", ""])
    assert result["data"] == {
        "truth": {"images": 10, "fingerprint": sha256(truth)},
        "predictions": {
            "detections": len(json.loads(found.read_text())),
            "fingerprint": sha256(found),
        },
    }
    assert result["settings"]["areas"] == ["0", "32", "inf"]
    assert result["weights_sha256"] is None


def test_tasks_can_be_chosen(files, capsys):
    run(files[0], "--annotations", files[1], "--tasks", "segm")
    printed = capsys.readouterr().out
    assert "|   segm |" in printed and "bbox" not in printed


@pytest.mark.parametrize("name", ["digit_scenes_val", "digit_scenes_voc_val"])
def test_registered_data_sets(tmp_path, capsys, name):
    """What an evaluator wrote scores as the evaluator scored it."""
    from robust_backbones.detection import evaluation
    from robust_backbones.detection.config import get_cfg
    from robust_backbones.detection.data.registry import DatasetCatalog
    from tests.support.small_detections import evaluate, outputs

    inputs, found = outputs(DatasetCatalog.get(name), 10)
    evaluator = evaluation.build_evaluator(get_cfg(), name, str(tmp_path))
    metrics = evaluate(evaluator, inputs, found)
    output = tmp_path / "result.json"
    run(tmp_path / "coco_instances_results.json", "--dataset", name, "--output", output)
    result = json.loads(output.read_text())
    assert result["metrics"][name]["bbox"]["AP"] == metrics["bbox"]["AP"] > 5
    assert result["data"][name]["images"] == 200
    assert ("AP50_07" in capsys.readouterr().out) == ("voc" in name)


def row(**changes):
    good = {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}
    return [{k: v for k, v in (good | changes).items() if v is not None}]


UNSCORABLE = [
    (
        ("annotations", dict(image_id="1")),
        "image_id is the text \"1\", but the ids in 'images' are",
    ),
    (("annotations", dict(category_id="2")), 'category_id is the text "2", but the ids in'),
    (("annotations", dict(iscrowd=1)), "objects are crowds (iscrowd 1). Give annotations with obj"),
    (("annotations", dict(iscrowd="1")), "objects are crowds (iscrowd 1)."),
    (("annotations", None), "AP is NaN, because no object is annotated in 10 images."),
    (("images", dict(id="a")), "id 'a' occurs twice in 'images'"),
]


@pytest.mark.parametrize(("change", "message"), UNSCORABLE, ids=[m for _, m in UNSCORABLE])
def test_annotations_that_leave_nothing_to_score(files, capsys, change, message):
    """A table of NaN with exit code 0 would hide the reason."""
    part, values = change
    contents = json.loads(files[1].read_text())
    contents[part] = [row | values for row in contents[part]] if values else []
    files[1].write_text(json.dumps(contents))
    files[0].write_text("[]")
    with pytest.raises(SystemExit) as stop:
        run(files[0], "--annotations", files[1], "--tasks", "bbox")
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_limit_of_detections_and_the_last_line(tmp_path, files, capsys):
    output = tmp_path / "result.json"
    run(*files[:1], "--annotations", files[1], "--max-detections", "2", "--output", output)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("AP: bbox ") and any("AR2 " in line for line in lines[-16:])
    result = json.loads(output.read_text())
    assert result["settings"]["max_detections"] == 2 and "AR2" in result["metrics"]["truth"]["bbox"]


MISTAKES = [
    (row(image_id="1"), (), 'predictions[0]: image_id is the text "1", but the ids in '),
    ({}, (), "found.json must be a list of predictions, not a dict"),
    (row(image_id=99), (), "found.json: predictions[0]: image_id is 99"),
    (row(category_id=1), (), "category_id is 1. The ids in "),
    (row(score=None), (), "predictions[0] has no score"),
    (row(), ("--tasks", "segm"), "predictions[0] has no segmentation"),
    (row(), ("--areas", "5"), "The area edges are [5.0]. They must be at least two"),
    (row(), ("--areas", "16", "0"), "must be at least two increasing numbers"),
    (row(), ("--annotations", "absent.json"), "cannot read absent.json: No such file"),
    (
        row(),
        ("--dataset", "nothing"),
        "dataset 'nothing' is not registered. For your own data, give NAME=",
    ),
    (row(), ("--dataset", "coco_2017_vall"), "Did you mean coco_2017_val, coco_2014_val or "),
    (row(), ("--dataset", "voc_2007_test"), "dataset 'voc_2007_test': "),
    ([], ("--dataset", "digit_scenes_voc_val", "--tasks", "segm"), "Only task 'bbox'"),
    (row(), ("--csv", "/dev/null/x"), "cannot write /dev/null/x"),
]


@pytest.mark.parametrize(
    ("rows", "options", "message"), MISTAKES, ids=[m[:30] for *_, m in MISTAKES]
)
def test_errors_are_one_line_and_exit_with_2(files, capsys, rows, options, message):
    files[0].write_text(json.dumps(rows))
    truth = () if {"--annotations", "--dataset"} & set(options) else ("--annotations", files[1])
    with pytest.raises(SystemExit) as stop:
        run(files[0], *truth, *options)
    assert stop.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert message in line


def test_a_file_that_is_not_json(files, capsys):
    files[0].write_text("{")
    with pytest.raises(SystemExit) as stop:
        run(files[0], "--annotations", files[1])
    assert stop.value.code == 2
    assert "found.json is not JSON" in capsys.readouterr().err


def test_a_truth_must_be_named(files, capsys):
    with pytest.raises(SystemExit) as stop:
        run(files[0])
    assert stop.value.code == 2
    assert "give --annotations or --dataset" in capsys.readouterr().err
