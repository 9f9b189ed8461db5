"""Predictions that equal the ground truth of the digit scenes."""

import json

import pytest

from robust_backbones.commands import visualize
from robust_backbones.detection.data import digit_scenes

SCENES = "digit_scenes_val"


def command(*args) -> None:
    visualize.main([str(arg) for arg in args])


def exact_predictions() -> list[dict]:
    """What a perfect detector would write for the digit scenes."""
    file = digit_scenes.ensure() / digit_scenes.coco_file("val")
    keys = ("image_id", "category_id", "bbox", "segmentation")
    rows = json.loads(file.read_text())["annotations"]
    return [{key: row[key] for key in keys} | {"score": 0.9} for row in rows]


def write(path, rows):
    path.write_text(json.dumps(rows))
    return path


def refused(capsys, *args) -> str:
    """The one line that the command ends with, after what Detectron2 may have logged."""
    with pytest.raises(SystemExit) as stop:
        command(*args)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]
