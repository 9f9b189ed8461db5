"""Your own data by path: read as Detectron2 reads it, faults told of, refused or repaired."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robust_backbones.commands import check_data
from robust_backbones.core.errors import UserError
from robust_backbones.detection import config, run_checks
from robust_backbones.detection.data import (
    coco_annotations,
    custom,
    digit_scenes,
    validate,
    voc_annotations,
)
from tests.support import ROOT
from tests.support.custom_data import coco

SHARED = ROOT.parent / "shared" / "data"
COCO, BCCD = SHARED / "coco", SHARED / "BCCD"
VOC = ROOT / "configs/voc_faster_rcnn_robust_eps3.yaml"


def voc(folder, boxes, suffix=".jpg", split="train") -> Path:
    """An image of 40 x 30 with `(name, corners)` objects, in VOC's layout."""
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>"
        for name, (x0, y0, x1, y1) in boxes
    )
    size = "<size><width>40</width><height>30</height></size>"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "Annotations" / f"{split}1.xml").write_text(
        f"<annotation>{size}{objects}</annotation>"
    )
    (folder / "ImageSets/Main" / f"{split}.txt").write_text(f"{split}1\n")
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(
        folder / "JPEGImages" / f"{split}1{suffix}"
    )
    return folder


def same(ours: list[dict], theirs: list[dict]) -> None:
    from detectron2.structures import BoxMode

    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert all(mine[key] == other[key] for key in ("file_name", "image_id", "width", "height"))
        assert len(mine["annotations"]) == len(other["annotations"])
        for a, b in zip(mine["annotations"], other["annotations"], strict=True):
            assert (a["category_id"], a["iscrowd"]) == (b["category_id"], b.get("iscrowd", 0))
            box = BoxMode.convert(b["bbox"], b["bbox_mode"], BoxMode.XYXY_ABS)
            np.testing.assert_allclose(a["bbox"], box, rtol=1e-6)  # Detectron2: float32
            assert a.get("segmentation") == b.get("segmentation")


@pytest.mark.parametrize("real", [False, True])
def test_coco_is_read_as_detectron2_reads_it(tmp_path, real):
    from detectron2.data.datasets import load_coco_json

    if real and not COCO.is_dir():
        pytest.skip(f"{COCO} is not there")
    images = COCO / "val2017" if real else tmp_path
    marks = COCO / "annotations/instances_val2017.json" if real else coco(tmp_path)
    source = custom.parse_dataset(f"mine=coco:{images}:{marks}")
    theirs = load_coco_json(str(marks), str(images), f"a_name_of_a_test_{real}")
    found, listed = source.read(), source.read_classes()
    assert (listed.classes, listed.ids, listed.images) == (found.classes, found.ids, [])
    same(custom.load_dicts(source, found.classes, repair=False), theirs)
    if not real:
        assert source.read().classes == ["cat", "dog"]  # by id


def test_voc_is_read_as_detectron2_reads_it():
    from detectron2.data.datasets.pascal_voc import load_voc_instances

    root = digit_scenes.ensure()
    source = custom.parse_dataset(f"mine=voc:{root}:val")
    names = sorted(digit_scenes.CLASSES)
    assert source.read().classes == names
    same(custom.load_dicts(source, names, False), load_voc_instances(str(root), "val", names))


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".webp", ".tif"])
def test_voc_images_may_be_of_any_format(tmp_path, suffix):
    found = voc_annotations.read_voc(voc(tmp_path, [("cat", (1, 1, 40, 30))], suffix), "train")
    assert found.images[0].file.name == f"train1{suffix}"
    assert found.images[0].objects[0].box == (0, 0, 40, 30)  # the whole image


BAD_TEXTS = ["cells", "=voc:a:b", "cells=voc:a", "cells=other:a:b", "cells=coco::b", "cells=voc:a:"]


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_what_is_not_understood_is_refused(text):
    with pytest.raises(UserError, match=f"'{text}' is not a name and path. Give NAME=coco:IMAGES"):
        custom.parse_dataset(text)


def test_a_name_is_no_path(tmp_path):
    """Such a name would be read as a dataset by path when the saved config is loaded again."""
    with pytest.raises(UserError, match="NAME must not contain ':' or '/'. Give NAME=coco"):
        custom.parse_dataset(f"a/b=coco:{tmp_path}:{tmp_path}/marks.json")


def test_two_datasets_have_two_names(tmp_path):
    """Otherwise, the test data would replace the training data."""
    text = f"a=coco:{tmp_path}:{coco(tmp_path)}"
    load(tmp_path, train=[text], test=[text])
    with pytest.raises(UserError, match="two datasets are named 'a': .*json and a=voc:.*own name"):
        load(tmp_path, train=[text], test=[f"a=voc:{tmp_path}:val"])


def test_a_dataset_needs_images(tmp_path):
    marks = coco(tmp_path)
    marks.write_text(json.dumps(json.loads(marks.read_text()) | {"images": [], "annotations": []}))
    with pytest.raises(UserError, match="no images .1.. First: a has no images"):
        load(tmp_path, test=[f"a=coco:{tmp_path}:{marks}"])


def test_a_missing_folder_of_own_data_is_not_sought_elsewhere(tmp_path):
    marks = coco(tmp_path)
    with pytest.raises(UserError, match="a=coco:.*/none does not exist. Correct the path"):
        load(tmp_path, test=[f"a=coco:{tmp_path}/none:{marks}"])


def test_registered_data_have_the_classes_of_the_others(tmp_path):
    text = f"a=coco:{tmp_path}:{coco(tmp_path)}"
    with pytest.raises(UserError, match="'digit_scenes_val' has different classes .10: zero.*'a'"):
        load(tmp_path, train=[text], test=["digit_scenes_val"])


FAULTS = [
    ({}, None),
    ({"annotations__0__bbox": [5, 5, 0, 10]}, "no area"),
    ({"annotations__0__bbox": [5, 5, float("nan"), 10]}, "no box"),
    ({"annotations__0__bbox": [35, 5, 10, 10]}, "outside"),
    ({"annotations__0__bbox": [31, 5, 10, 10]}, None),  # by a pixel: rounding
    ({"annotations__0__bbox": []}, "no box"),
    ({"annotations__0__area": None}, "no area field"),
    ({"annotations__0__segmentation": [[1, 2, 3, 4]]}, "broken mask"),
    ({"annotations__0__segmentation": []}, "no masks"),
    ({"annotations__0__category_id": 99}, "unknown class"),
    ({"annotations__0__image_id": 99}, "unknown image"),
    ({"annotations__0__id": 2}, "repeated id"),
    ({"annotations__0__id": None}, "no id"),
    ({"images__0__id": 3}, "duplicate id"),
    ({"images__0__file_name": "none.png"}, "missing file"),
    ({"images__0__file_name": "marks.json"}, "unreadable"),
    ({"images__0__width": 41}, "wrong size"),
    ({"annotations__1__category_id": 20, "annotations__2__category_id": 20}, "empty class"),
    ({"annotations__2__image_id": 7}, "no objects"),
    ({"annotations__0__iscrowd": 1}, "crowd"),
]


@pytest.mark.parametrize(("changes", "kind"), FAULTS, ids=lambda value: str(value)[:40])
def test_each_fault_is_found(tmp_path, changes, kind):
    found = coco_annotations.read_coco(tmp_path, coco(tmp_path, **changes))
    kinds = {problem.kind for problem in validate.check(found)}
    assert kind in kinds if kind else not kinds


@pytest.mark.parametrize(("turn", "kind"), [(1, "wrong size"), (6, "turned")])
def test_a_turned_photo_is_told_of_and_its_size_is_right(tmp_path, turn, kind):
    """30 x 40 pixels that are to be turned are 40 x 30."""
    marks = coco(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(tmp_path / "a.png", exif=exif)
    found = validate.check(coco_annotations.read_coco(tmp_path, marks))
    assert {problem.kind for problem in found} == {kind}


BROKEN = [
    ("{", "marks.json is not JSON"),
    ("[]", "it is not an object with 'images'"),
    ('{"images": [], "annotations": []}', "'categories' is missing"),
    ('{"images": [], "annotations": [], "categories": []}', "list of categories is empty"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_a_file_that_is_no_annotation_file_is_refused(tmp_path, text, message):
    (tmp_path / "marks.json").write_text(text)
    with pytest.raises(UserError, match=message):
        coco_annotations.read_coco(tmp_path, tmp_path / "marks.json")


def test_parts_in_the_wrong_order_are_named(tmp_path):
    with pytest.raises(UserError, match="is a folder. Give the folder of the images first"):
        custom.parse_dataset(f"mine=coco:{tmp_path}/marks.json:{tmp_path}").read_classes()


def test_voc_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="none is not a folder. Give a folder with Annotations"):
        voc_annotations.read_voc(tmp_path / "none", "test")
    voc(tmp_path, [("cat", (1, 1, 9, 9))])
    with pytest.raises(UserError, match="split 'test' does not exist in .*. Choose from train"):
        voc_annotations.read_voc(tmp_path, "test")
    (tmp_path / "Annotations/train1.xml").write_text("<annotation>")
    with pytest.raises(UserError, match=r"train1.xml is not a VOC annotation"):
        voc_annotations.read_voc(tmp_path, "train")


def load(folder, *overrides, train=None, test=None):
    chosen = {"TRAIN": train or [], "TEST": test or []}
    random = ["MODEL.WEIGHTS", "", "MODEL.ROBUST.ARCH", "resnet50"]
    options = [*random, "OUTPUT_DIR", str(folder / "run"), *overrides]
    cfg = config.load_config(VOC, options, datasets=chosen)
    run_checks.check_inputs(cfg, train=train is not None)
    return cfg


def test_classes_are_found_and_the_heads_fit(tmp_path):
    """A class that only the test images have counts, too; the order is by name."""
    voc(tmp_path, [("dog", (1, 1, 9, 9)), ("cat", (2, 2, 9, 9))])
    voc(tmp_path, [("ape", (1, 1, 9, 9))], split="test")
    cfg = load(tmp_path, train=[f"a=voc:{tmp_path}:train"], test=[f"b=voc:{tmp_path}:test"])
    assert cfg.DATASETS.CLASSES == ["ape", "cat", "dog"]
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 3
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("a",), ("b",))


def test_faults_refuse_or_are_repaired(tmp_path):
    boxes = [("cat", (5, 5, 5, 9)), ("cat", (30, 5, 60, 9)), ("dog", (1, 1, 9, 9))]
    boxes += [("dog", (40.5, 1, 60, 9))]  # half a pixel is in the image
    voc(tmp_path, boxes)
    text = f"a=voc:{tmp_path}:train"
    with pytest.raises(UserError, match="no area .1., outside .2..*REPAIR True"):
        load(tmp_path, train=[text])
    load(tmp_path, "DATASETS.REPAIR", "True", train=[text])
    (image,) = custom.load_dicts(custom.parse_dataset(text), ["cat", "dog"], repair=True)
    assert [mark["bbox"] for mark in image["annotations"]] == [[29, 4, 40, 9], [0, 0, 9, 9]]


def test_classes_that_differ_only_in_case_are_reported(tmp_path, caplog):
    voc(tmp_path, [("cat", (1, 1, 9, 9)), ("Cat", (1, 1, 9, 9)), ("dog", (1, 1, 9, 9))])
    load(tmp_path, train=[f"a=voc:{tmp_path}:train"])
    assert "the classes Cat, cat differ only in case" in caplog.text


def test_other_classes_are_refused(tmp_path):
    text = f"a=coco:{tmp_path}:{coco(tmp_path)}"
    with pytest.raises(UserError, match="has different classes .2: cat, dog. than the run .1: cat"):
        load(tmp_path, "DATASETS.CLASSES", "['cat']", train=[text])


def test_masks_need_masks(tmp_path):
    load(tmp_path, "MODEL.MASK_ON", "True", train=[f"a=coco:{tmp_path}:{coco(tmp_path)}"])
    voc(tmp_path, [("dog", (1, 1, 9, 9))])
    with pytest.raises(UserError, match="MASK_ON is True, but .* 'a' has no masks"):
        load(tmp_path, "MODEL.MASK_ON", "True", train=[f"a=voc:{tmp_path}:train"])


REGISTERED = [  # what other code registers: change, split, MODEL.MASK_ON, error
    ({"annotations__0__segmentation": [[1, 2, 3, 4]]}, "TRAIN", False, None),
    ({"annotations__0__segmentation": [[1, 2, 3, 4]]}, "TRAIN", True, None),
    ({"annotations__0__segmentation": [[1, 2, 3, 4]]}, "TEST", False, None),
    ({"annotations__0__segmentation": [[1, 2, 3, 4]]}, "TEST", True, "broken mask .1."),
    ({"annotations__0__segmentation": []}, "TRAIN", True, "no masks .1..*MASK_ON False"),
    ({"annotations__0__iscrowd": "0"}, "TRAIN", False, "iscrowd as text .1."),
    ({"annotations__0__bbox": [5, 5, 0, 10]}, "TRAIN", False, None),
    ({"annotations__0__image_id": 99}, "TRAIN", False, None),
]


@pytest.mark.parametrize(("changes", "split", "masks", "error"), REGISTERED)
def test_data_of_other_code_are_checked_for_what_detectron2_cannot_read(
    tmp_path, changes, split, masks, error
):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances

    register_coco_instances("theirs", {}, str(coco(tmp_path, **changes)), str(tmp_path))
    options = ["MODEL.MASK_ON", str(masks), "MODEL.ROI_HEADS.NUM_CLASSES", "2"]
    stops = pytest.raises(UserError, match=error) if error else contextlib.nullcontext()
    try:
        with stops:
            load(tmp_path, *options, **{"train": None, split.lower(): ["theirs"]})
        assert error or DatasetCatalog.get("theirs")
    finally:
        DatasetCatalog.remove("theirs")
        MetadataCatalog.remove("theirs")


def test_other_formats_of_registered_data_are_not_read(tmp_path):
    """LVIS and panoptic data have a json_file as well, in another format."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    (tmp_path / "lvis.json").write_text("{}")
    DatasetCatalog.register("lvis_like", list)
    meta = MetadataCatalog.get("lvis_like")
    meta.set(json_file=str(tmp_path / "lvis.json"), image_root="", evaluator_type="lvis")
    load(tmp_path, train=["lvis_like"])


def test_training_needs_objects(tmp_path):
    marks = coco(tmp_path)
    marks.write_text(json.dumps(json.loads(marks.read_text()) | {"annotations": []}))
    load(tmp_path, test=[f"a=coco:{tmp_path}:{marks}"])
    with pytest.raises(UserError, match="dataset 'a': no objects in 2 images. Give annot"):
        load(tmp_path, train=[f"a=coco:{tmp_path}:{marks}"])


def test_a_known_name_is_not_taken_over(tmp_path):
    voc(tmp_path, [("dog", (1, 1, 9, 9))])
    with pytest.raises(UserError, match="'coco_2017_train' is registered already"):
        load(tmp_path, train=[f"coco_2017_train=voc:{tmp_path}:train"])


def test_the_command_reports_and_its_code_says_whether_there_are_faults(tmp_path, capsys):
    marks = coco(tmp_path, annotations__0__bbox=[5, 5, 0, 10])
    table = tmp_path / "all.csv"
    assert check_data.main([f"a=coco:{tmp_path}:{marks}", "--csv", str(table)]) == 1
    text = capsys.readouterr().out
    assert "a: 2 images, 3 objects, 2 classes\n  cat 2, dog 1\n  error: no area, 1: " in text
    assert "a.png: object 1 (dog): box [5, 5, 0, 10]" in text
    assert table.read_text().splitlines()[1].startswith("a,no area,a.png,")
    summary = tmp_path / "summary.json"
    words = [f"a=coco:{tmp_path}:{marks}", "--repair", "--json", str(summary)]
    assert check_data.main(words) == 0
    assert "note: no area, 1: " in capsys.readouterr().out
    (row,) = json.loads(summary.read_text())
    digest = row.pop("digest")
    assert row == {
        "name": "a",
        "images": 2,
        "classes": ["cat", "dog"],
        "objects": [2, 1],
        "errors": 0,
    }
    words[0] = f"a=coco:{tmp_path}:{coco(tmp_path)}"
    assert check_data.main(words) == 0
    assert json.loads(summary.read_text())[0]["digest"] != digest
    assert check_data.main(words[:1]) == 0
    assert check_data.main(["digit_scenes_val", "--no-pixels"]) == 0
    with pytest.raises(SystemExit) as stop:
        check_data.main(["nothing"])
    assert stop.value.code == 2


def test_the_two_boxes_without_area_of_the_blood_cells():
    if not BCCD.is_dir():
        pytest.skip(f"{BCCD} is not there")
    found = [
        problem
        for split in ("trainval", "test")
        for problem in validate.check(voc_annotations.read_voc(BCCD, split))
        if problem.kind in validate.REPAIRABLE | validate.FATAL
    ]
    assert {(p.kind, p.image) for p in found} == {
        ("no area", "BloodImage_00338.jpg"),
        ("no area", "BloodImage_00343.jpg"),
    }
