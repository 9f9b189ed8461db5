"""Annotations and predictions that cannot be scored are refused, with the first fault named."""

import json

import pytest

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data import coco_files
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
    ([], "FILE: the file must be an object with the lists images, categories, annotations"),
    ({"images": [], "categories": []}, "must be an object with the lists"),
    (edited("images", 0, id=2), "id 2 occurs in more than one image of FILE"),
    (edited("categories", 0, id=5), "id 5 occurs in more than one category of FILE"),
    (edited("images", 0, id="a"), "every image of FILE needs an id. Ids must be all numbers"),
    (edited("categories", 1, id=None), "every category of FILE needs an id"),
    (edited("annotations", 3, bbox=None), "annotation of FILE, number 3, has bbox None"),
    (edited("annotations", 3, bbox=[1, 2, 3]), r"number 3, has bbox \[1, 2, 3\]. It must be"),
    (edited("annotations", 1, bbox=[1, 2, float("nan"), 4]), "number 1, has bbox .*finite"),
    (edited("annotations", 2, segmentation=[[1, 2, 3, 4]]), "annotation 3 has an invalid polygon"),
    (
        edited("annotations", 2, segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        "invalid polygon. It must have x",
    ),
]


@pytest.mark.parametrize(("contents", "message"), TRUTHS, ids=[m[:40] for _, m in TRUTHS])
def test_wrong_annotations(contents, message):
    with pytest.raises(UserError, match=message):
        coco_files.truth(contents, "FILE")


def test_annotations_without_masks_are_told_of_when_masks_are_scored():
    """hotcoco would take the box for the mask."""
    _, rows = scene()
    for value in (None, []):
        truth = coco_files.truth(edited("annotations", 0, segmentation=value), "FILE")
        with pytest.raises(UserError, match="FILE: 1 of [0-9]+ annotations have no segmentation"):
            coco_scores.score(truth, rows, "segm")
        assert coco_scores.score(truth, rows, "bbox")["AP"] > 0
    truth = coco_files.truth(edited("images", 0, width=None), "FILE")
    with pytest.raises(UserError, match="FILE: an image has no height and width"):
        coco_scores.score(truth, [], "segm")


GOOD = {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}
MASK = coco_cases.encoded([1, 2, 30, 40])
PREDICTIONS = [
    ("bbox", {"image_id": 1}, "must be a list of predictions, not a dict"),
    ("bbox", [GOOD, 3], r"prediction 1 \(from 0\) is a int. It must be an object"),
    ("bbox", [GOOD, {"image_id": 1}], "prediction 1 .* has no category_id. It must have image_id"),
    ("bbox", [{k: v for k, v in GOOD.items() if k != "score"}], "prediction 0 .* has no score"),
    ("segm", [GOOD], "prediction 0 .* has no segmentation"),
    ("bbox", [GOOD | {"image_id": 99}], r"image_id 99, which is not in FILE \(1, 2, 3 ... 4\)"),
    ("bbox", [GOOD | {"image_id": "1"}], "image_id '1', which is not in FILE"),
    ("bbox", [GOOD | {"image_id": [1]}], r"image_id \[1\], which is not in FILE"),
    ("bbox", [GOOD, GOOD | {"category_id": 1}], "prediction 1 .* has category_id 1, which is not"),
    ("bbox", [GOOD | {"score": float("nan")}], "has score nan. It must be a finite number"),
    ("bbox", [GOOD | {"score": "0.5"}], "has score '0.5'. It must be a finite number"),
    ("bbox", [GOOD | {"score": None}], "has score None. It must be a finite number"),
    ("bbox", [GOOD | {"score": [0.5, 0.5]}], r"has score \[0.5, 0.5\]. It must be a finite number"),
    ("bbox", [GOOD | {"bbox": ["1", "2", "3", "4"]}], "number 0, has bbox .*, four finite numbers"),
    ("bbox", [GOOD | {"bbox": [[1, 2], [3, 4]]}], "number 0, has bbox .*, four finite numbers"),
    ("bbox", [GOOD | {"bbox": [1, 2, 3]}], r"number 0, has bbox \[1, 2, 3\]"),
    ("bbox", [GOOD, GOOD | {"bbox": [1, 2, 3, float("inf")]}], "number 1, has bbox"),
    ("segm", [GOOD | {"segmentation": "abc"}], "prediction 0 .* an invalid segmentation"),
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
    truth = coco_files.truth(scene()[0], "FILE")
    with pytest.raises(UserError, match=message):
        coco_scores.score(truth, rows, task)
    assert coco_scores.score(truth, [GOOD | {"segmentation": MASK}], task)["AP"] >= 0


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="absent.json: the file cannot be read .No such file"):
        coco_files.load_json(tmp_path / "absent.json")
    (tmp_path / "half.json").write_text('[{"image_id": 1')
    with pytest.raises(UserError, match="half.json is not JSON"):
        coco_files.load_json(tmp_path / "half.json")
    (tmp_path / "whole.json").write_text(json.dumps([GOOD]))
    assert coco_files.load_json(tmp_path / "whole.json") == [GOOD]


def test_which_tasks_predictions_are_of():
    contents, rows = scene()
    truth = coco_files.truth(contents, "FILE")
    plain = coco_files.truth(contents | {"annotations": []}, "FILE")
    assert coco_files.tasks_of(rows, truth) == ["bbox", "segm"]
    assert coco_files.tasks_of([GOOD], truth) == ["bbox"]
    assert coco_files.tasks_of([{"segmentation": MASK}], truth) == ["segm"]  # COCO's form of masks
    assert coco_files.tasks_of([], truth) == ["bbox", "segm"]
    assert coco_files.tasks_of([], plain) == ["bbox"]
    assert coco_files.tasks_of(3, truth) == ["bbox", "segm"]
