"""Our COCO metrics are pycocotools' on hard cases and real data; what it refuses, so do we."""

import json
import math
import re

import numpy as np
import pytest

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data.coco_annotations import parse_coco
from robust_backbones.detection.evaluation import coco_scores
from robust_backbones.detection.evaluation.coco import score_tasks
from tests.support import SHARED, coco_cases
from tests.support.official_coco import EXACT, NUMBERS, official, percent

REAL = SHARED / "data" / "coco"
KEYPOINT_NUMBERS = "AP AP50 AP75 APm APl AR20 - - ARm ARl".split()


def mean(values):
    values = values[values > -1]
    return 100 * np.mean(values) if values.size else np.nan


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("name", coco_cases.CASES)
def test_hard_cases_are_scored_as_pycocotools_scores_them(name, task):
    contents, rows = coco_cases.CASES[name]()
    expected = official(contents, rows, task)
    truth = parse_coco(contents, name)
    metrics = coco_scores.score(truth, rows, task)
    np.testing.assert_allclose([metrics[n] for n in NUMBERS], percent(expected.stats), **EXACT)
    per_class = [
        mean(expected.eval["precision"][:, :, k, 0, -1]) for k in range(len(truth.classes))
    ]
    found = [metrics[f"AP-{name}"] for name in truth.classes]
    np.testing.assert_allclose(found, per_class, **EXACT)

    engine = coco_scores._engine(truth, rows, task, coco_scores.AREAS.values(), None, ())
    engine.evaluate()
    engine.accumulate()
    for array in ("precision", "recall", "scores"):
        np.testing.assert_allclose(engine.eval[array], expected.eval[array], rtol=0, atol=1e-12)


def test_the_cases_are_hard():
    """They hold what their names say, and detections that are right and wrong."""
    cases = {name: make() for name, make in coco_cases.CASES.items()}
    aps = [
        coco_scores.score(parse_coco(c, name), rows, "bbox")["AP"]
        for name, (c, rows) in cases.items()
        if name not in ("only crowds", "no object at all")
    ]
    assert min(aps) > 0 and sum(1 < ap < 99 for ap in aps) >= len(aps) - 3
    per_image = np.unique([r["image_id"] for r in cases["over 100 detections"][1]], return_counts=1)
    assert max(per_image[1]) > 200
    assert {a["area"] for a in cases["areas at the edges"][0]["annotations"]} >= {32**2, 96**2}
    scores = [r["score"] for r in cases["ties"][1]]
    assert len(set(scores)) == 11 < len(scores)
    assert all(a["ignore"] for a in cases["ignore flags"][0]["annotations"])


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_real_data_are_scored_as_pycocotools_scores_them(task):
    file = REAL / "annotations" / "instances_val2017.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    contents = json.loads(file.read_text())
    assert sum(row["iscrowd"] for row in contents["annotations"]) > 10
    rows = coco_cases.noisy(contents)
    expected = official(contents, rows, task)
    metrics = coco_scores.score(parse_coco(contents, "val"), rows, task)
    np.testing.assert_allclose([metrics[n] for n in NUMBERS], percent(expected.stats), **EXACT)
    assert 5 < metrics["AP"] < 60


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_size_buckets_and_a_part_of_the_images(task):
    contents, rows = coco_cases.scene(31, crowd=0.2)
    edges, ids = [0, 16, 32, 96, math.inf], [2, 3, 5, 8, 13]
    ranges = [[0, 1e10], [0, 256], [256, 1024], [1024, 9216], [9216, 1e10]]
    labels = [str(i) for i in range(5)]
    for images in (None, ids):
        expected = official(contents, rows, task, images, areaRng=ranges, areaRngLbl=labels)
        truth = parse_coco(contents, "x")
        metrics = coco_scores.score(truth, rows, task, edges, images)
        names = ["AP", "AP 0..16", "AP 16..32", "AP 32..96", "AP 96..inf"]
        wanted = [mean(expected.eval["precision"][..., a, -1]) for a in range(5)]
        np.testing.assert_allclose([metrics[n] for n in names], wanted, **EXACT)
        assert len(set(wanted)) == 5
    whole = coco_scores.score(truth, rows, task)
    assert set(metrics) - set(whole) == set(names[1:])


EDGES = [([5], "at least two"), ([0, 8, 8], "increasing"), ([-1, 8], "of at least 0")]


@pytest.mark.parametrize(("edges", "message"), EDGES)
def test_wrong_edges(edges, message):
    with pytest.raises(UserError, match=message):
        coco_scores.bucket_ranges(edges)


def keypoint_scene(points):
    rng = np.random.default_rng(3)
    rows, found = [], []
    for image in range(1, 21):
        for _ in range(rng.integers(1, 4)):
            box = coco_cases.random_box(rng, 40)
            places = np.array(box[:2]) + rng.random((points, 2)) * box[2:]
            seen = rng.integers(0, 3, (points, 1)) * (rng.random() < 0.9)
            marks = np.concatenate([places * (seen > 0), seen], axis=1)
            more = {"keypoints": marks.flatten().tolist(), "num_keypoints": int((seen > 0).sum())}
            rows.append(coco_cases.annotation(len(rows) + 1, image, 2, box, **more))
            for scale in (1, 3, 12):
                moved = places + rng.normal(0, scale, places.shape)
                marks = np.concatenate([moved, np.ones((points, 1))], axis=1).flatten().tolist()
                row = coco_cases.prediction(image, 2, box, rng.random(), masks=False)
                found.append(row | {"keypoints": marks})
    return coco_cases.truth(rows, 20, coco_cases.categories(1)), found


@pytest.mark.parametrize("sigmas", [(), (0.02, 0.1, 0.05, 0.08, 0.03)])
def test_keypoints(sigmas):
    contents, rows = keypoint_scene(len(sigmas) or 17)
    params = {"kpt_oks_sigmas": np.array(sigmas)} if sigmas else {}
    expected = percent(official(contents, rows, "keypoints", **params).stats)
    metrics = coco_scores.score(parse_coco(contents, "x"), rows, "keypoints", sigmas=sigmas)
    for name, value in zip(KEYPOINT_NUMBERS, expected, strict=True):
        if name != "-":
            np.testing.assert_allclose(metrics[name], value, **EXACT)
    assert 5 < metrics["AP"] < 95


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_no_prediction_is_zero_and_no_object_nan(task):
    contents, _ = coco_cases.CASES["no object of a class"]()
    metrics = coco_scores.score(parse_coco(contents, "x"), [], task)
    lonely = metrics.pop("AP-class 2")
    assert math.isnan(lonely)
    absent = {"APl", "ARl"} & {k for k, v in metrics.items() if math.isnan(v)}
    assert {v for k, v in metrics.items() if k not in absent} == {0.0}


def crowded(objects=300):
    """One image with many objects of a class, each of which is detected."""
    boxes = [[x * 7 % 640, x * 7 // 640 * 8, 6, 6] for x in range(objects)]
    rows = [
        {"id": i, "image_id": 1, "category_id": 2, "bbox": box, "area": 36, "iscrowd": 0}
        for i, box in enumerate(boxes, 1)
    ]
    contents = coco_cases.truth(rows, 1, coco_cases.categories(1))
    found = [
        {"image_id": 1, "category_id": 2, "bbox": box, "score": 1 - i / 1000}
        for i, box in enumerate(boxes)
    ]
    return contents, found


@pytest.mark.parametrize(
    ("limit", "ap", "last"), [(None, 33.66, 100), (300, 100, 300), (5, 1.98, 5), (150, 50.5, 150)]
)
def test_the_limit_of_detections_is_that_of_pycocotools_and_cuts_are_told(caplog, limit, ap, last):
    contents, rows = crowded()
    metrics = coco_scores.score(parse_coco(contents, "FILE"), rows, "bbox", limit=limit)
    limits = [1, 2, last]
    expected = official(contents, rows, "bbox", maxDets=limits)
    precision = expected.eval["precision"]
    assert (
        metrics["AP"] == pytest.approx(mean(precision[:, :, :, 0, -1])) == pytest.approx(ap, 0.01)
    )
    recall = mean(expected.eval["recall"][:, :, 0, -1])
    assert metrics[f"AR{last}"] == pytest.approx(recall)
    texts = [
        f"1 image has more than {last} {what} of a class" for what in ("detections", "objects")
    ]
    assert [text in caplog.text for text in texts] == [last < 300, last < 300]


REASONS = [
    ({"annotations": []}, "no object is annotated in 8 images"),
    ({"iscrowd": 1}, r"all \d+ objects are crowds .iscrowd 1."),
    ({"num_keypoints": 0, "keypoints": [0, 0, 0]}, "no object has labeled keypoints"),
]


@pytest.mark.parametrize(("change", "reason"), REASONS)
def test_the_reason_of_nan_is_told(caplog, change, reason):
    contents, _ = coco_cases.scene(36, images=8, crowd=0)
    contents["annotations"] = [
        row | change for row in contents["annotations"] if "annotations" not in change
    ]
    task = "keypoints" if "keypoints" in change else "bbox"
    assert math.isnan(coco_scores.score(parse_coco(contents, "FILE"), [], task)["AP"])
    (text,) = [record.getMessage() for record in caplog.records]
    assert re.search(f"FILE, task '{task}': AP is NaN, because {reason}", text)


def test_classes_without_objects_are_named(caplog):
    contents, rows = coco_cases.CASES["no object of a class"]()
    coco_scores.score(parse_coco(contents, "FILE"), rows, "bbox")
    assert "AP is NaN for classes without objects to detect: class 2" in caplog.text


def renumbered(ids):
    contents, rows = coco_cases.scene(32, images=8)
    for row, number in zip(contents["annotations"], ids, strict=False):
        row["id"] = number
    return contents, rows


@pytest.mark.parametrize("ids", [range(1000), [7] * 1000], ids=["from 0", "all the same"])
def test_ids_of_annotations_do_not_matter(ids):
    """pycocotools takes an object of id 0 for not found, and confuses objects of one id."""
    right = official(*renumbered(range(1, 1000)), "bbox").stats[0]
    contents, rows = renumbered(ids)
    assert official(contents, rows, "bbox").stats[0] != right
    metrics = coco_scores.score(parse_coco(contents, "x"), rows, "bbox")
    assert metrics["AP"] == pytest.approx(100 * right, abs=1e-10)


def test_ids_may_be_text_and_order_is_that_of_the_ids():
    """Ties go to the image that is first in the order of the ids, whatever the file's order."""
    contents, rows = coco_cases.CASES["ties"]()
    expected = percent(official(contents, rows, "bbox").stats)
    contents["images"].reverse()
    contents["categories"].reverse()
    for row in contents["images"]:
        row["id"] = f"{row['id']:03}"
    for row in (*contents["annotations"], *rows):
        row["image_id"] = f"{row['image_id']:03}"
    metrics = coco_scores.score(parse_coco(contents, "x"), rows, "bbox")
    np.testing.assert_allclose([metrics[n] for n in NUMBERS], expected, **EXACT)


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_areas_and_crowds_that_are_missing(task):
    """The areas that these files had are the pixels of the masks, so nothing changes."""
    contents, rows = coco_cases.scene(33, crowd=0)
    expected = percent(official(contents, rows, task).stats)
    for row in contents["annotations"]:
        del row["area"], row["iscrowd"]
    metrics = coco_scores.score(parse_coco(contents, "x"), rows, task)
    np.testing.assert_allclose([metrics[n] for n in NUMBERS], expected, **EXACT)


def test_what_is_not_listed_is_left_out_and_told(caplog):
    contents, rows = coco_cases.scene(34, images=8)
    contents["images"] = contents["images"][:5]
    rows = [row for row in rows if row["image_id"] <= 5]
    count = sum(row["image_id"] > 5 for row in contents["annotations"])
    expected = percent(official(contents, rows, "bbox").stats)
    metrics = score_tasks(parse_coco(contents, "file.json"), rows, ["bbox"])["bbox"]
    np.testing.assert_allclose([metrics[n] for n in NUMBERS], expected, **EXACT)
    assert f"file.json: {count} annotations of unlisted images" in caplog.text


def test_names_that_are_there_twice():
    contents, rows = coco_cases.scene(35, classes=3)
    contents["categories"][1]["name"] = contents["categories"][0]["name"]
    metrics = coco_scores.score(parse_coco(contents, "x"), rows, "bbox")
    assert [k for k in metrics if k.startswith("AP-")] == [
        "AP-class 0 (id 2)",
        "AP-class 0 (id 5)",
        "AP-class 2",
    ]
