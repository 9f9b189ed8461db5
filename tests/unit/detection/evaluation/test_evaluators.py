"""The COCO evaluator gives what Detectron2's gives, and numbers where that gives none."""

from tests.support import ROOT, SHARED

from tests.support.small_detections import evaluate, nothing, outputs  # isort: skip  (before Detectron2)

import copy
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from robust_backbones.core.errors import UserError
from robust_backbones.detection import evaluation
from robust_backbones.detection.data import catalog, digit_scenes
from robust_backbones.detection.evaluation import voc
from robust_backbones.detection.evaluation.coco import CocoEvaluator

DIGITS = "digit_scenes_val"
REAL = SHARED / "data"


@pytest.fixture
def register():
    """Register data sets until the test ends."""
    names = []

    def register(name, dicts, **meta):
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(**{"evaluator_type": "coco"} | meta)
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def assert_same(ours, theirs, but=()):
    """All of Detectron2's metrics, to 1e-6; ours may have more."""
    assert ours.keys() == theirs.keys()
    for task, metrics in theirs.items():
        assert metrics.keys() <= ours[task].keys()
        for name, value in metrics.items():
            assert ours[task][name] == pytest.approx(value, abs=1e-6, nan_ok=True), (task, name)


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "boxes and masks"])
def test_detectron2s_numbers_and_file(tmp_path, masks):
    dicts = DatasetCatalog.get(DIGITS)
    inputs, found = outputs(dicts, 10, masks)
    ours = evaluate(CocoEvaluator(DIGITS, tmp_path / "ours"), inputs, found)
    theirs = evaluate(COCOEvaluator(DIGITS, output_dir=str(tmp_path / "theirs")), inputs, found)
    assert_same(ours, theirs)
    assert set(ours) == ({"bbox", "segm"} if masks else {"bbox"})
    assert all(5 < metrics["AP"] < 95 for metrics in ours.values())
    assert {f"AP-{name}" for name in digit_scenes.CLASSES} < set(ours["bbox"])
    files = [tmp_path / side / "coco_instances_results.json" for side in ("ours", "theirs")]
    assert files[0].read_text() == files[1].read_text()


def test_a_part_of_the_images():
    inputs, found = outputs(DatasetCatalog.get(DIGITS), 10)
    ids = [3, 5, 8, 100, 120]
    ours = evaluate(CocoEvaluator(DIGITS), inputs, found, img_ids=ids)
    theirs = evaluate(COCOEvaluator(DIGITS), inputs, found, img_ids=ids)
    assert_same(ours, theirs)


@pytest.mark.parametrize("expected", [("bbox",), ("bbox", "segm")])
@pytest.mark.parametrize("seen", [True, False], ids=["empty outputs", "no outputs"])
def test_no_prediction_at_all_is_zero(tmp_path, expected, seen):
    dicts = DatasetCatalog.get(DIGITS) if seen else []
    evaluator = CocoEvaluator(DIGITS, tmp_path, expected)
    results = evaluate(evaluator, *nothing(dicts, masks="segm" in expected))
    assert set(results) == set(expected)
    for metrics in results.values():
        assert {"AP", "AP50", "APs", "AR100", "AP-seven"} <= set(metrics)
        assert {value for value in metrics.values() if not math.isnan(value)} == {0.0}
        assert [k for k, v in metrics.items() if math.isnan(v)] == ["APm", "APl", "ARm", "ARl"]
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == []


def own_dicts(keep=40):
    """Digit scenes with other ids, text for images and XYXY boxes, and crowds."""
    dicts = copy.deepcopy(DatasetCatalog.get(DIGITS)[:keep])
    for number, item in enumerate(dicts):
        item["image_id"] = f"scene {number:03}"
        for row in item["annotations"]:
            row["bbox"] = BoxMode.convert(row["bbox"], row["bbox_mode"], BoxMode.XYXY_ABS)
            row["bbox_mode"] = BoxMode.XYXY_ABS
            row["iscrowd"] = int(number % 5 == 0)
    return dicts


def test_a_data_set_without_a_file(tmp_path, register):
    """As Detectron2 converts it; but metadata stay, and a changed data set is seen at once."""
    dicts = own_dicts()
    ids = {7 * i + 3: i for i in range(10)}  # not contiguous
    meta = dict(thing_classes=list(digit_scenes.CLASSES), thing_dataset_id_to_contiguous_id=ids)
    name, twin = register("own", dicts, **meta), register("own_twin", dicts, **meta)
    inputs, found = outputs(dicts, 10, masks=True)
    ours = evaluate(CocoEvaluator(name, tmp_path), inputs, found)
    theirs = evaluate(COCOEvaluator(twin, output_dir=str(tmp_path / "twin")), inputs, found)
    assert_same(ours, theirs)
    rows = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {row["category_id"] for row in rows} == set(ids)
    assert "json_file" not in MetadataCatalog.get(name).as_dict()
    assert [path.name for path in tmp_path.glob("*.json")] == ["coco_instances_results.json"]

    for item in dicts:
        item["annotations"] = [row | {"iscrowd": 0} for row in item["annotations"][:1]]
    again = evaluate(CocoEvaluator(name, tmp_path), inputs, found)
    assert again["bbox"]["AR100"] != ours["bbox"]["AR100"]


def test_keypoints_do_not_wander(register):
    """Detectron2's conversion moves them by half a pixel at every call."""
    points = [[5.5, 6.5, 2], [7.5, 9.5, 1], [0.5, 0.5, 0]]
    row = {"bbox": [1, 2, 20, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    row["keypoints"] = np.array(points, float).flatten().tolist()
    item = {"file_name": "a.jpg", "image_id": 1, "height": 50, "width": 50, "annotations": [row]}
    name = register("keypoints", [item], thing_classes=["person"])
    for _ in range(2):
        (found,) = catalog.scored_annotations(name).images[0].objects
        assert found.keypoints == [5, 6, 2, 7, 9, 1, 0, 0, 0]
        assert found.num_keypoints == 2


def test_masks_are_left_out_where_the_truth_has_none(register, caplog):
    dicts = own_dicts(8)
    inputs, found = outputs(dicts, 10, masks=True)
    for item in dicts:
        for row in item["annotations"]:
            del row["segmentation"]
    name = register("boxes_only", dicts, thing_classes=list(digit_scenes.CLASSES))
    results = evaluate(CocoEvaluator(name), inputs, found)
    assert set(results) == {"bbox"} and results["bbox"]["AP"] > 0
    assert "boxes_only has no segmentation: task 'segm' was not scored" in caplog.text


def test_a_test_set_without_annotations_gets_its_file(tmp_path, register):
    contents = {"images": [{"id": 1}], "categories": [{"id": 9, "name": "a"}]}
    (tmp_path / "test.json").write_text(json.dumps(contents))
    ids = {"thing_dataset_id_to_contiguous_id": {9: 0}, "thing_classes": ["a"]}
    name = register("without_truth", [], json_file=str(tmp_path / "test.json"), **ids)
    box = Instances((9, 9), pred_boxes=Boxes([[1, 2, 4, 6]]), scores=torch.tensor([0.5]))
    box.pred_classes = torch.tensor([0])
    assert evaluate(CocoEvaluator(name, tmp_path), [{"image_id": 1}], [{"instances": box}]) == {}
    (row,) = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert row == {"image_id": 1, "category_id": 9, "bbox": [1, 2, 3, 4], "score": 0.5}


MISTAKES = [
    (dict(bbox_mode=BoxMode.XYWHA_ABS, bbox=[1, 2, 3, 4, 5]), "must be XYXY_ABS or XYWH_ABS"),
    (dict(bbox=[1, 2, float("nan"), 4]), "wrong: .*object 0 .*: bbox is .1, 2, nan, 4"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_data_sets_that_cannot_be_scored(register, changes, message):
    dicts = own_dicts(3)
    dicts[0]["annotations"][0].update(changes)
    name = register("wrong", dicts, thing_classes=list(digit_scenes.CLASSES))
    with pytest.raises(UserError, match=message):
        evaluate(CocoEvaluator(name), [], [])


def test_images_without_an_id_and_classes_that_do_not_exist(register):
    dicts = own_dicts(3)
    ids = {i: i for i in range(3)}
    meta = dict(thing_classes=list(digit_scenes.CLASSES), thing_dataset_id_to_contiguous_id=ids)
    name = register("three_classes", dicts, **meta)
    with pytest.raises(UserError, match="a prediction has class [3-9], but there are 3 classes"):
        evaluate(CocoEvaluator(name), *outputs(dicts, 10))
    del dicts[1]["image_id"]
    with pytest.raises(UserError, match="'three_classes': an image has no image_id"):
        evaluate(CocoEvaluator(name), [], [])


@pytest.mark.parametrize(("most", "name"), [(5, "AR100"), (300, "AR300")])
def test_the_limit_of_the_detector_is_the_limit_of_the_evaluation(register, most, name):
    """As Detectron2's evaluator with max_dets_per_image."""
    cfg = get_cfg()
    cfg.TEST.DETECTIONS_PER_IMAGE = most
    inputs, found = outputs(DatasetCatalog.get(DIGITS), 10)
    ours = evaluate(evaluation.build_evaluator(cfg, DIGITS), inputs, found)["bbox"]
    evaluator = COCOEvaluator(DIGITS, max_dets_per_image=max(most, 100))
    assert_same({"bbox": ours}, evaluate(evaluator, inputs, found))
    assert name in ours


def test_proposals():
    """A proposal network is scored by recall, as Detectron2 scores it."""
    inputs, found = outputs(DatasetCatalog.get(DIGITS), 10)
    proposals = []
    for output in found:
        boxes = output["instances"]
        logits = dict(proposal_boxes=boxes.pred_boxes, objectness_logits=boxes.scores)
        proposals.append({"proposals": Instances(boxes.image_size, **logits)})
    ours = evaluate(CocoEvaluator(DIGITS), inputs, proposals)
    theirs = evaluate(COCOEvaluator(DIGITS), inputs, proposals)
    assert_same(ours, theirs)
    assert ours["box_proposals"]["AR@100"] > 20


def test_real_coco_through_the_registered_data_set(tmp_path, register):
    file = REAL / "coco/annotations/instances_val2017.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    from detectron2.data.datasets import load_coco_json

    dicts = load_coco_json(str(file), str(REAL / "coco/val2017"), "real_coco")
    MetadataCatalog.get("real_coco").json_file = str(file)
    name = register("real_coco", dicts)
    inputs, found = outputs(dicts, 80)
    ours = evaluate(CocoEvaluator(name), inputs, found)
    assert_same(ours, evaluate(COCOEvaluator(name), inputs, found))
    assert ours["bbox"]["AP"] > 5


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [(DIGITS, CocoEvaluator, ("bbox", "segm")), ("digit_scenes_voc_val", voc.VocEvaluator, None)],
)
def test_the_trainer_gets_these_evaluators(tmp_path, name, kind, expected):
    cfg = get_cfg()
    cfg.MODEL.MASK_ON, cfg.OUTPUT_DIR = True, str(tmp_path)
    built = evaluation.build_evaluator(cfg, name)
    assert type(built) is kind
    results = evaluate(built, *nothing(DatasetCatalog.get(name)[:0]))
    assert set(results) == set(expected or ("bbox",))
    assert (tmp_path / "inference" / name / "coco_instances_results.json").is_file()


def test_other_evaluator_types_are_refused(register):
    name = register("strange", [], evaluator_type="lvis")
    with pytest.raises(UserError, match="'strange': evaluator_type is 'lvis'.* one of coco, pasc"):
        evaluation.build_evaluator(get_cfg(), name)


@pytest.mark.slow
def test_processes_share_the_images(tmp_path):
    """Two processes, uneven shares: the first has the results of one process, the other none."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    call = [sys.executable, str(ROOT / "tests/support/distributed_scores.py")]
    processes = [
        subprocess.Popen(
            [*call, str(rank), "2", str(tmp_path / "meet")],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    answers = []
    for process in processes:
        output, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        answers.append(json.loads(output.splitlines()[-1]))
    names = (DIGITS, "digit_scenes_voc_val")
    assert answers[1] == {name: {} for name in names}
    for name in names:
        inputs, found = outputs(DatasetCatalog.get(name), 10)
        alone = evaluate(evaluation.build_evaluator(get_cfg(), name, str(tmp_path)), inputs, found)
        np.testing.assert_equal(answers[0][name], alone)
        assert (tmp_path / f"meet_{name}" / "coco_instances_results.json").is_file()
