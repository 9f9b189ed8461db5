"""Annotations and predictions that cannot be scored are refused, with the first fault named."""

import json

import pytest

from robust_backbones.core.errors import UserError
from robust_backbones.core.files import read_json
from robust_backbones.detection.data import coco_predictions
from robust_backbones.detection.data.coco_annotations import parse_coco
from robust_backbones.detection.evaluation import coco_scores
from tests.support import coco_cases


def scene():
    contents, rows = coco_cases.scene(40, images=4)
    return contents, rows


def edited(part, index, **changes):
    """The scene's contents with one row changed; None deletes."""
    contents, _ = scene()
    row = contents[part][index]
    for key, value in changes.items():
        row[key] = value
        if value is None:
            del row[key]
    return contents


TRUTHS = [
    ([], "FILE is not a COCO annotation file .it is not an object with 'images', 'annotations'"),
    ({"images": [], "annotations": []}, "FILE is not a COCO .* .'categories' is missing"),
    (scene()[0] | {"annotations": [3]}, "row 0 of 'annotations' is 3, not an object"),
    (edited("images", 0, id="a"), "the ids in 'images' are a mixture of numbers and text"),
    (edited("categories", 1, id=None), "every row of 'categories' needs an id, a number or text"),
    (edited("images", 0, id=2), "FILE: id 2 occurs twice in 'images'"),
    (edited("categories", 0, id=5), "FILE: id 5 occurs twice in 'categories'"),
    (edited("annotations", 3, bbox=None), "object 4 .*: bbox is None, not .x, y, width, height"),
    (edited("annotations", 3, bbox=[1, 2, 3]), r"object 4 .*: bbox is \[1, 2, 3\], not"),
    (edited("annotations", 1, bbox=[1, 2, float("nan"), 4]), "object 2 .* finite numbers"),
    (edited("annotations", 1, iscrowd="yes"), "object 2 .*: iscrowd is 'yes', not 0 or 1"),
]


@pytest.mark.parametrize(("contents", "message"), TRUTHS, ids=[m[:40] for _, m in TRUTHS])
def test_wrong_annotations(contents, message):
    with pytest.raises(UserError, match=message):
        coco_scores.score(parse_coco(contents, "FILE"), [], "bbox")


def test_annotations_without_masks_are_told_of_when_masks_are_scored():
    """hotcoco would take the box for the mask."""
    _, rows = scene()
    for value in (None, [], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]]):
        truth = parse_coco(edited("annotations", 0, segmentation=value), "FILE")
        with pytest.raises(UserError, match="FILE: 1 of [0-9]+ annotations have no valid segm"):
            coco_scores.score(truth, rows, "segm")
        assert coco_scores.score(truth, rows, "bbox")["AP"] > 0
    truth = parse_coco(edited("images", 0, width=None), "FILE")
    with pytest.raises(UserError, match="FILE: an image has no height and width"):
        coco_scores.score(truth, [], "segm")


GOOD = {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}
MASK = coco_cases.encoded([1, 2, 30, 40])
PREDICTIONS = [
    ("bbox", {"image_id": 1}, "must be a list of predictions, not a dict"),
    ("bbox", [GOOD, 3], r"predictions\[1\] is '3'. It must be an object"),
    (
        "bbox",
        [GOOD, {"image_id": 1}],
        r"predictions\[1\] has no category_id. It must have image_id",
    ),
    ("bbox", [{k: v for k, v in GOOD.items() if k != "score"}], r"predictions\[0\] has no score"),
    ("segm", [GOOD], r"predictions\[0\] has no segmentation"),
    ("bbox", [GOOD | {"image_id": 99}], r"image_id is 99. The ids in FILE are 1, 2, 3, ..., 4\."),
    (
        "bbox",
        [GOOD | {"image_id": "1"}],
        'image_id is the text "1", but the ids in FILE are numbers',
    ),
    (
        "bbox",
        [GOOD | {"image_id": [1]}],
        r"image_id is \[1\]. The ids in FILE are 1, 2, 3, ..., 4\.",
    ),
    (
        "bbox",
        [GOOD, GOOD | {"category_id": 1}],
        r"predictions\[1\]: category_id is 1. The ids in FILE are 2, 5, 8",
    ),
    ("bbox", [GOOD | {"score": float("nan")}], "has score nan. It must be a finite number"),
    ("bbox", [GOOD | {"score": "0.5"}], "has score '0.5'. It must be a finite number"),
    ("bbox", [GOOD | {"score": None}], "has score None. It must be a finite number"),
    ("bbox", [GOOD | {"score": [0.5, 0.5]}], r"has score \[0.5, 0.5\]. It must be a finite number"),
    (
        "bbox",
        [GOOD | {"bbox": ["1", "2", "3", "4"]}],
        r"predictions\[0\] has bbox .*, four finite numbers",
    ),
    (
        "bbox",
        [GOOD | {"bbox": [[1, 2], [3, 4]]}],
        r"predictions\[0\] has bbox .*, four finite numbers",
    ),
    ("bbox", [GOOD | {"bbox": [1, 2, 3]}], r"predictions\[0\] has bbox \[1, 2, 3\]"),
    ("bbox", [GOOD, GOOD | {"bbox": [1, 2, 3, float("inf")]}], r"predictions\[1\] has bbox"),
    ("segm", [GOOD | {"segmentation": "abc"}], r"predictions\[0\] has an invalid segmentation"),
    ("segm", [GOOD | {"segmentation": {"counts": 3}}], "has an invalid segmentation"),
    (
        "segm",
        [GOOD | {"segmentation": MASK | {"size": [9, 9]}}],
        r"has a mask of size \[9, 9\], but image 1 has \[160, 160\]",
    ),
]


@pytest.mark.parametrize(
    ("task", "rows", "message"), PREDICTIONS, ids=[m[:40] for *_, m in PREDICTIONS]
)
def test_wrong_predictions(task, rows, message):
    truth = parse_coco(scene()[0], "FILE")
    with pytest.raises(UserError, match=message):
        coco_scores.score(truth, rows, task)
    assert coco_scores.score(truth, [GOOD | {"segmentation": MASK}], task)["AP"] >= 0


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="absent.json: the file cannot be read .No such file"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "half.json").write_text('[{"image_id": 1')
    with pytest.raises(UserError, match="half.json is not JSON"):
        read_json(tmp_path / "half.json")
    (tmp_path / "whole.json").write_text(json.dumps([GOOD]))
    assert read_json(tmp_path / "whole.json") == [GOOD]


def test_which_tasks_predictions_are_of():
    contents, rows = scene()
    truth = parse_coco(contents, "FILE")
    plain = parse_coco(contents | {"annotations": []}, "FILE")
    assert coco_predictions.tasks_of(rows, truth) == ["bbox", "segm"]
    assert coco_predictions.tasks_of([GOOD], truth) == ["bbox"]
    assert coco_predictions.tasks_of([{"segmentation": MASK}], truth) == [
        "segm"
    ]  # COCO's form of masks
    assert coco_predictions.tasks_of([], truth) == ["bbox", "segm"]
    assert coco_predictions.tasks_of([], plain) == ["bbox"]
    assert coco_predictions.tasks_of(3, truth) == ["bbox", "segm"]
