"""VOC's average precision is that of Detectron2's `voc_eval`; and what that cannot do works."""

from tests.support import SHARED

from tests.support.small_detections import evaluate, outputs  # isort: skip  (before Detectron2)

import json
import math
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import parse_rec, voc_eval

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data.catalog import scored_annotations
from robust_backbones.detection.data.custom import CustomDataset, load_dicts
from robust_backbones.detection.evaluation import voc
from tests.support.official_coco import EXACT, NUMBERS, official, percent

DIGITS = "digit_scenes_voc_val"
REAL = SHARED / "data" / "VOC2012"
CLASSES = ["ant", "bee", "cow", "dog", "elk"]  # no dog is there, elks are difficult, cows unseen


def write_voc(root, seed=0, images=40):
    """A folder in VOC's layout: objects upon one another, difficult ones, a foreign class."""
    rng = np.random.default_rng(seed)
    for part in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / part).mkdir(parents=True)
    names = [f"{i:06}" for i in range(images)]
    (root / "ImageSets/Main/test.txt").write_text("\n".join(names) + "\n")
    for name in names:
        objects = ""
        for _ in range(rng.integers(0, 7)):
            label = ["ant", "ant", "bee", "cow", "elk", "fox"][rng.integers(6)]
            left, top = rng.integers(1, 60, 2)
            width, height = rng.integers(4, 40, 2)
            difficult = int(label == "elk" or rng.random() < 0.2)
            box = f"<xmin>{left}</xmin><ymin>{top}</ymin>"
            box += f"<xmax>{left + width}</xmax><ymax>{top + height}</ymax>"
            objects += f"<object><name>{label}</name><pose>Left</pose><truncated>0</truncated>"
            objects += f"<difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"
        size = "<size><width>100</width><height>100</height></size>"
        xml = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
        (root / f"Annotations/{name}.xml").write_text(xml)
    return root


def score(name, rows):
    return voc.score(scored_annotations(name), rows, voc.year_of(name))


def coco_of(name):
    """A registered data set as pycocotools reads it, with difficult objects as crowds."""
    found = scored_annotations(name)
    rows = [
        {
            "image_id": image.id,
            "category_id": thing.class_index,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "iscrowd": int(thing.difficult),
        }
        for image in found.images
        for thing in image.objects
        for x0, y0, x1, y1 in [thing.box]
        if thing.class_index is not None
    ]
    return {
        "images": [{"id": image.id} for image in found.images],
        "categories": [{"id": index, "name": n} for index, n in enumerate(found.classes)],
        "annotations": [row | {"id": number} for number, row in enumerate(rows, 1)],
    }


def rows_of(name, seed=0, unseen=()):
    """Predictions from the objects of a registered data set: moved boxes, most classes right."""
    rng = np.random.default_rng(seed)
    contents = coco_of(name)
    places = [row["id"] for row in contents["categories"]]
    rows = []
    for row in 3 * contents["annotations"]:
        x, y, w, h = row["bbox"]
        dx, dy, dw, dh = rng.normal(0, 0.08, 4)
        category = row["category_id"] if rng.random() < 0.85 else int(rng.choice(places))
        box = [x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)]
        rows.append({"image_id": row["image_id"], "category_id": category, "bbox": box})
    scores = rng.permutation(len(rows)) / len(rows)  # all differ: voc_eval breaks ties at random
    rows = [row | {"score": float(s)} for row, s in zip(rows, scores, strict=True)]
    return [row for row in rows if row["category_id"] not in unseen]


def devkit(folder, meta, rows, iou, points):
    """Detectron2's `voc_eval` of each class, percent, from files without rounding."""
    found = []
    parse_rec.cache_clear()
    for place, name in enumerate(meta.thing_classes):
        lines = []
        for row in rows:
            if row["category_id"] == place:
                x, y, w, h = row["bbox"]
                numbers = (row["score"], x + 1, y + 1, x + w, y + h)
                lines.append(" ".join([row["image_id"], *(repr(float(n)) for n in numbers)]))
        (folder / f"{name}.txt").write_text("\n".join(lines))
        root = Path(meta.dirname)
        with np.errstate(invalid="ignore"):
            *_, ap = voc_eval(
                str(folder / "{}.txt"),
                str(root / "Annotations/{}.xml"),
                str(root / f"ImageSets/Main/{meta.split}.txt"),
                name,
                iou,
                points,
            )
        found.append(100 * ap)
    return np.array(found)


@pytest.fixture
def register(tmp_path):
    names = []

    def register(root, classes=CLASSES, split="test", year=2012):
        name = f"voc_for_tests_{len(names)}"
        DatasetCatalog.register(name, lambda: [])
        MetadataCatalog.get(name).set(
            dirname=str(root),
            split=split,
            evaluator_type="pascal_voc",
            thing_classes=list(classes),
            **({"year": year} if year else {}),
        )
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


VOC_CLASSES = MetadataCatalog.get("voc_2007_test").thing_classes


@pytest.mark.parametrize("data", ["generated", "digits", "VOC2012"])
def test_every_class_and_overlap_as_voc_eval(tmp_path, register, data):
    if data == "generated":
        name = register(write_voc(tmp_path / "voc"))
    elif data == "digits":
        DatasetCatalog.get(name := DIGITS)
    elif REAL.is_dir():
        name = register(REAL, VOC_CLASSES, split="trainval")
    else:
        pytest.skip(f"{REAL} is not there")
    meta, rows = MetadataCatalog.get(name), rows_of(name)
    metrics = score(name, rows)
    ious = range(50, 100, 5)
    for suffix, points in (("07", True), ("area", False)):
        table = np.array([devkit(tmp_path, meta, rows, i / 100, points) for i in ious])
        if data == "generated":  # no dog, and elks are all difficult: voc_eval divides by zero
            table[:, [3, 4]] = np.nan
        assert metrics[f"AP50_{suffix}"] == pytest.approx(np.nanmean(table[0]), abs=1e-6)
        assert metrics[f"AP75_{suffix}"] == pytest.approx(np.nanmean(table[5]), abs=1e-6)
        assert metrics[f"AP_{suffix}"] == pytest.approx(np.nanmean(table), abs=1e-6)
    for place, text in enumerate(meta.thing_classes):  # the year's rule: area
        expected = [table[:, place].mean(), table[0, place]]
        found = [metrics[f"AP-{text}"], metrics[f"AP50-{text}"]]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert 5 < metrics["AP"] < 95 and metrics["AP_07"] != metrics["AP_area"]


@pytest.mark.parametrize(
    ("year", "rule"), [(2007, "07"), (2012, "area"), (2031, "area"), (0, "area")]
)
def test_the_year_chooses_the_rule(tmp_path, register, year, rule):
    name = register(write_voc(tmp_path / "voc"), year=year)
    metrics = score(name, rows_of(name))
    for key in ("AP", "AP50", "AP75"):
        assert metrics[key] == metrics[f"{key}_{rule}"]


def test_detectron2s_evaluator(tmp_path, register):
    """Equal where its rounding (3 decimals of scores, 1 of boxes) changes nothing."""
    dicts = DatasetCatalog.get(DIGITS)[:100]  # so few that all scores differ after rounding, too
    inputs, found = outputs(dicts, 10, decimals=(3, 1))
    theirs = evaluate(PascalVOCDetectionEvaluator(DIGITS), inputs, found)["bbox"]
    ours = evaluate(voc.VocEvaluator(DIGITS, tmp_path), inputs, found)["bbox"]
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=1e-4), key  # float32 boxes are rounded twice
    assert ours["AP50"] > 20
    rows = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert len(rows) == sum(len(output["instances"]) for output in found)
    assert len({row["score"] for row in rows}) == len(rows)
    np.testing.assert_equal(score(DIGITS, rows), ours)


def test_classes_without_objects_or_detections(tmp_path, register):
    name = register(write_voc(tmp_path / "voc"))
    metrics = score(name, rows_of(name, unseen=[2]))
    per_class = {text: metrics[f"AP-{text}"] for text in CLASSES}
    assert [text for text, ap in per_class.items() if math.isnan(ap)] == ["dog", "elk"]
    assert per_class["cow"] == 0 < per_class["bee"]
    assert metrics["AP"] == pytest.approx(np.nanmean(list(per_class.values())))
    assert metrics["AP_coco"] == pytest.approx(_coco_ap(name, rows_of(name, unseen=[2])))


def _coco_ap(name, rows):
    return percent(official(coco_of(name), rows, "bbox").stats)[0]


def test_no_detection_at_all_is_zero(tmp_path, register):
    name = register(write_voc(tmp_path / "voc"))
    results = evaluate(voc.VocEvaluator(name), [], [])
    numbers = [v for k, v in results["bbox"].items() if "-" not in k and not math.isnan(v)]
    assert set(numbers) == {0.0} and len(numbers) >= 15


def test_cocos_metrics_of_the_same_data(tmp_path, register):
    """Those of pycocotools with difficult objects as crowds."""
    name = register(write_voc(tmp_path / "voc"))
    rows, contents = rows_of(name), coco_of(name)
    assert 10 < sum(row["iscrowd"] for row in contents["annotations"])
    metrics = score(name, rows)
    expected = percent(official(contents, rows, "bbox").stats)
    np.testing.assert_allclose([metrics[f"{n}_coco"] for n in NUMBERS], expected, **EXACT)


def test_a_difficult_object_counts_neither_way():
    """Closed form: two objects, one difficult; detections of both, twice, and one of nothing."""

    def boxes(*rows):
        table = np.array(rows, float)
        places, labels = table[:, 0].astype(int), np.zeros(len(table), int)
        return voc.Boxes(places, labels, table[:, 1:5], table[:, 5])

    objects = boxes([1, 1, 1, 10, 10, 1], [1, 31, 1, 40, 10, 0])
    detections = [
        [1, 31, 1, 40, 10, 0.9],
        [1, 31, 1, 40, 10, 0.8],  # difficult, twice: nothing
        [1, 61, 1, 70, 10, 0.7],  # wrong
        [1, 1, 1, 10, 10, 0.6],  # right: precision 1/2 at recall 1
        [1, 1, 1, 10, 10, 0.5],  # again: wrong
    ]
    metrics = voc.voc_metrics(objects, boxes(*detections), ["thing"], 2012)
    assert metrics["AP"] == metrics["AP_area"] == metrics["AP_07"] == pytest.approx(50)
    # Overlap of exactly one half is not enough.
    half = boxes([1, 1, 1, 10, 5, 1])
    assert voc.voc_metrics(objects, half, ["thing"], 2012)["AP50"] == 0
    more = boxes([1, 1, 1, 10, 5.01, 1])
    assert voc.voc_metrics(objects, more, ["thing"], 2012)["AP50"] == pytest.approx(100)


def test_own_voc_data_are_scored_as_they_are_repaired(tmp_path):
    """What training leaves out is not to be found, either; what is difficult stays so."""
    root = write_voc(tmp_path / "voc")
    file = root / "Annotations/000000.xml"
    flat = "<object><name>ant</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>5</xmax>"
    flat += "<ymax>9</ymax></bndbox></object></annotation>"
    file.write_text(file.read_text().replace("</annotation>", flat))
    classes = [*CLASSES, "fox"]
    meta = dict(thing_classes=classes, dirname=str(root), split="test", year=2012)
    counts, difficult = {}, {}
    for repair in (False, True):
        name = f"own_voc_{repair}"
        source = CustomDataset(name, "voc", str(root), "test")
        DatasetCatalog.register(name, lambda r=repair, s=source: load_dicts(s, classes, r))
        MetadataCatalog.get(name).set(
            source=source, repaired=repair, evaluator_type="pascal_voc", **meta
        )
        rows = coco_of(name)["annotations"]
        counts[repair], difficult[repair] = len(rows), sum(row["iscrowd"] for row in rows)
        assert score(name, rows_of(name))["AP50"] > 20
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert counts[False] - counts[True] == 1
    assert difficult[False] == difficult[True] > 10


MISTAKES = [
    ("Annotations/000003.xml", None, "lists '000003', but .* does not exist"),
    ("Annotations/000003.xml", "<annotation>", "000003.xml is not a VOC annotation"),
    ("ImageSets/Main/test.txt", None, "split 'test' does not exist"),
]


@pytest.mark.parametrize(("file", "text", "message"), MISTAKES)
def test_folders_that_cannot_be_read(tmp_path, register, file, text, message):
    root = write_voc(tmp_path / "voc", images=5)
    (root / file).unlink() if text is None else (root / file).write_text(text)
    with pytest.raises(UserError, match=message):
        score(register(root), [])


def test_predictions_that_do_not_fit(tmp_path, register):
    name = register(write_voc(tmp_path / "voc", images=5))
    good = {"image_id": "000001", "category_id": 4, "bbox": [1, 2, 3, 4], "score": 0.5}
    score(name, [good])
    for change in ({"category_id": 5}, {"image_id": 1}):
        with pytest.raises(UserError, match=f"{next(iter(change))} is .* {name}"):
            score(name, [good | change])
