"""Every command that takes a dataset accepts the same names and paths, with the same errors."""

import json

import pytest

from robust_backbones.commands import attack, check_data, corrupt, evaluate, train, visualize
from robust_backbones.core.dataset_forms import SYNTAX
from tests.support import ROOT
from tests.support.custom_data import coco
from tests.support.mask_data import mask_folders
from tests.support.voc_data import voc
from tests.support.yolo_data import BOX as LINE
from tests.support.yolo_data import yolo

CONFIG = str(ROOT / "configs/digits_mask_rcnn_robust.yaml")
KEYS = ["MODEL.WEIGHTS", CONFIG, "MODEL.ROBUST.ARCH", "resnet18", "OUTPUT_DIR", "{folder}/run"]
COMMANDS = {
    "attack": (attack, ["--config", CONFIG, "--dataset", "{data}", *KEYS]),
    "attack by key": (attack, ["--config", CONFIG, "DATASETS.TEST", "['{data}']", *KEYS]),
    "corrupt": (corrupt, ["--config", CONFIG, "--dataset", "{data}", *KEYS]),
    "check-data": (check_data, ["{data}"]),
    "evaluate": (evaluate, ["{folder}/found.json", "--dataset", "{data}"]),
    "train": (train, ["--config", CONFIG, "--dataset-train", "{data}", *KEYS]),
    "train, test": (train, ["--config", CONFIG, "--dataset-test", "{data}", *KEYS]),
    "visualize": (visualize, ["--output", "{folder}", "--truth-only", "--dataset", "{data}"]),
}
BOX = ("cat", (2, 2, 9, 9))
NAMES = [
    ("coco_2017_vall", "dataset 'coco_2017_vall' is not registered. Did you mean coco_2017_val, "),
    ("coco_2017_vall", f"For your own data, give {SYNTAX}."),
    ("cells=voc:x", f"dataset 'cells=voc:x' is not a name and path. Give {SYNTAX}."),
    ("cells=voc:/none:train", "/none is not a folder."),
]


@pytest.mark.parametrize(("data", "message"), NAMES)
@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_data_have_one_error(tmp_path, capsys, command, data, message):
    program, options = COMMANDS[command]
    (tmp_path / "found.json").write_text("[]")
    with pytest.raises(SystemExit) as stop:
        program.main([word.format(data=data, folder=tmp_path) for word in options])
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert stop.value.code == 2 and message in line


def test_saved_detections_are_scored_by_the_rules_of_each_kind(tmp_path, capsys):
    """Perfect detections of custom data score 100, with VOC's metrics for VOC data only."""
    cat, dog = ("cat", (6, 6, 15, 15)), ("dog", (6, 6, 15, 15))
    voc(tmp_path, {"a": [cat, dog], "b": [cat]}, {"val": "a\nb\n"})
    found = tmp_path / "found.json"
    box = {"bbox": [5, 5, 10, 10], "score": 0.9}
    rows = [("a", 0), ("a", 1), ("b", 0)]
    found.write_text(json.dumps([box | dict(image_id=i, category_id=c) for i, c in rows]))
    evaluate.main([str(found), "--dataset", f"mine=voc:{tmp_path}:val"])
    printed = capsys.readouterr().out
    assert printed.count("100.00") >= 9 and "AP50_07" in printed

    swapped = ["DATASETS.CLASSES", "['dog', 'cat']", "--output", str(tmp_path / "result.json")]
    evaluate.main([str(found), "--dataset", f"mine=voc:{tmp_path}:val", *swapped])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"]["mine"]["bbox"]["AP50-cat"] == 50.0
    assert result["settings"]["dataset"] == f"mine=voc:{tmp_path}:val"
    assert result["settings"]["overrides"] == swapped[:2]

    marks = coco(tmp_path)
    rows = [(7, 20), (7, 10), (3, 10)]
    found.write_text(json.dumps([box | dict(image_id=i, category_id=c) for i, c in rows]))
    capsys.readouterr()
    evaluate.main([str(found), "--dataset", f"mine=coco:{tmp_path}:{marks}"])
    printed = capsys.readouterr().out
    assert printed.count("100.00") >= 5 and "AP50_07" not in printed

    file = yolo(tmp_path / "yolo")
    polygon = [[0, 0, 40, 0, 40, 15]]
    rows = [
        {"category_id": 0, "bbox": [0, 0, 20, 30], "segmentation": [[0, 0, 20, 0, 20, 30, 0, 30]]},
        {"category_id": 1, "bbox": [0, 0, 40, 15], "segmentation": polygon},
    ]
    found.write_text(json.dumps([row | {"image_id": "a", "score": 0.9} for row in rows]))
    evaluate.main([str(found), "--dataset", f"mine=yolo:{file}:train", "--tasks", "bbox"])
    printed = capsys.readouterr().out
    assert printed.count("100.00") >= 5 and "AP50_07" not in printed


KINDS = {
    "voc": lambda folder: f"voc:{voc(folder, {'a': [BOX], 'b': [BOX]}, None)}:all",
    "coco": lambda folder: f"coco:{folder}:{coco(folder)}",
    "yolo": lambda folder: f"yolo:{yolo(folder, {'train/a': LINE, 'val/b': LINE})}:train",
    "mask": lambda folder: "mask:" + ":".join(map(str, mask_folders(folder))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_custom_data_are_checked_and_drawn(tmp_path, capsys, kind):
    data = f"mine={KINDS[kind](tmp_path)}"
    assert check_data.main([data]) == 0
    out = tmp_path / "out"
    visualize.main(["--output", str(out), "--truth-only", "--dataset", data])
    assert "mine" in (out / "index.html").read_text()


def test_pairs_without_a_dataset_are_refused(tmp_path, capsys):
    (tmp_path / "found.json").write_text("[]")
    with pytest.raises(SystemExit):
        evaluate.main(
            [str(tmp_path / "found.json"), "--annotations", "x", "DATASETS.REPAIR", "True"]
        )
    assert "KEY VALUE pairs need --dataset" in capsys.readouterr().err
