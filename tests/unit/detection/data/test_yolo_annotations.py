"""YOLO datasets by the rules of Ultralytics, and the errors about invalid ones."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from robust_backbones.core import images
from robust_backbones.core.errors import UserError
from robust_backbones.detection.data import custom, validate
from robust_backbones.detection.data.yolo_annotations import read_yolo
from tests.support.yolo_data import BOX, POLYGON, yolo


def test_boxes_and_polygons(tmp_path):
    found = read_yolo(yolo(tmp_path), "train")
    assert (found.classes, found.ids, found.problems) == (["cat", "dog"], [0, 1], [])
    (image,) = found.images
    assert (image.id, image.file, image.width, image.height) == (
        "a",
        tmp_path / "images/train/a.jpg",
        *(40, 30),
    )
    cat, dog = image.objects
    assert (cat.class_index, cat.box, cat.area, cat.segmentation) == (0, (0, 0, 20, 30), 600, None)
    assert (dog.class_index, dog.box, dog.area) == (1, (0, 0, 40, 15), 300)
    assert dog.segmentation == [[0, 0, 40, 0, 40, 15]]
    codes = coco_mask.frPyObjects(dog.segmentation, 30, 40)
    assert abs(coco_mask.area(codes)[0] - 300) < 20
    (item,) = custom.load_dicts(
        custom.parse_dataset(f"x=yolo:{tmp_path}/data.yaml:train"), [], True
    )
    assert [mark["bbox"] for mark in item["annotations"]] == [[0, 0, 20, 30], [0, 0, 40, 15]]


@pytest.mark.parametrize(
    ("orientation", "suffix"), [(6, ".jpg"), (3, ".jpg"), (8, ".png"), (6, ".tif")]
)
def test_sizes_are_of_the_image_as_it_is_decoded(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path, exif=exif)
    assert images.upright_size(path) == images.decode(path).size


SPLITS = {  # value of `train` -> ids of the images
    "images/train": ["a"],
    "./images/train/": ["a"],
    "images": ["a", "b", "c"],
    "[images/train, images/val]": ["a", "b", "c"],
    "../images/val": ["b", "c"],  # Roboflow's
    "list.txt": ["a", "c"],
    "{root}/images/train": ["a"],
}


@pytest.mark.parametrize("value", SPLITS)
def test_splits(tmp_path, value):
    labels = {"train/a": BOX, "val/b": BOX, "val/c": None}
    file = yolo(tmp_path, labels, train=value.format(root=tmp_path))
    (tmp_path / "list.txt").write_text(
        f"\ufeff./images/train/a.jpg\r\n{tmp_path}/images/val/c.jpg\n"
    )
    assert [image.id for image in read_yolo(file, "train").images] == SPLITS[value]


PATHS = ["{root}", ".", "", "./"]


@pytest.mark.parametrize("path", PATHS)
def test_path_of_the_dataset(tmp_path, path):
    file = yolo(tmp_path, path=path.format(root=tmp_path))
    assert len(read_yolo(file, "val").images) == 1
    moved = tmp_path / "configs" / "cells.yaml"
    moved.parent.mkdir()
    moved.write_text(file.read_text().replace(f"path: {path}", f"path: {path or '..'}"))
    if path == "{root}":
        assert len(read_yolo(moved, "val").images) == 1


def test_equal_names_in_several_folders_get_different_ids(tmp_path):
    file = yolo(tmp_path, {"train/a": BOX, "val/a": BOX}, train="images")
    found = read_yolo(file, "train")
    assert [image.id for image in found.images] == ["train/a.jpg", "val/a.jpg"]


NAMES = {  # value of `names` -> classes
    "[cat, dog]": ["cat", "dog"],
    "\n  1: dog\n  0: cat": ["cat", "dog"],
    "[no, 1]": ["no", "1"],  # not False
    "[cat, dog]\nnc: 2": ["cat", "dog"],
    "\nnc: 2": ["class_0", "class_1"],
    "[cat, cat]": ["cat (id 0)", "cat (id 1)"],
}


@pytest.mark.parametrize("value", NAMES)
def test_class_names(tmp_path, value):
    assert read_yolo(yolo(tmp_path, names=value), "val").classes == NAMES[value]


def test_images_without_labels(tmp_path):
    """A missing and an empty label file mean an image without objects."""
    found = read_yolo(yolo(tmp_path, {"train/a": BOX, "train/b": None, "train/c": "\n"}), "train")
    assert [len(image.objects) for image in found.images] == [1, 0, 0]
    assert {problem.kind for problem in validate.check(found)} == {"no objects", "empty class"}


PROBLEMS = [  # text of the label file -> kind, end of the message
    ("0 0.5 0.5 0.2\n", "bad label", "a.txt, line 1: 4 columns, but a box has 5 "),
    (BOX + "\n0 0.5 0.5 0.2 0.2 0.9\n", "bad label", "a.txt, line 3: 6 columns"),
    ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4\n", "bad label", "line 1: 8 columns"),
    ("0 0.5 0.5 x 0.2\n", "bad label", "line 1: 'x' is not a number"),
    ("0,0.5,0.5,0.2,0.2\n", "bad label", "line 1: '0,0.5,0.5,0.2,0.2' is not a number"),
    ("cat 0.5 0.5 0.2 0.2\n", "bad label", "line 1: 'cat' is not a number"),
    ("0.5 0.5 0.5 0.2 0.2\n", "bad label", "class 0.5 is not a whole number"),
    ("-1 0.5 0.5 0.2 0.2\n", "bad label", "class -1 is not a whole number"),
    ("nan 0.5 0.5 0.2 0.2\n", "bad label", "class nan is not a whole number"),
    ("0 120 80 40 40\n", "bad label", "120 is outside [0, 1]. Divide x by the width"),
    ("0 nan 0.5 0.2 0.2\n", "bad label", "nan is outside [0, 1]"),
    ("0 0.5 0.5 1.011 0.2\n", "bad label", "1.011 is outside [0, 1]"),
    ("2 0.5 0.5 0.2 0.2\n", "unknown class", "line 1: class 2, but the classes are 0 to 1"),
    (BOX + POLYGON + BOX, "repeated label", "a.txt, line 3 repeats line 1"),
    ("0 0.5 0.5 0 0.2\n", "no area", "box [20, 12, 0, 6]"),
    ("0 0.9 0.5 0.4 0.2\n", "outside", "in 40 x 30"),
    ("0.0 0.5 0.5 1.001 0.2\n", None, ""),  # by less than a pixel: rounding
]


@pytest.mark.parametrize(("text", "kind", "message"), PROBLEMS, ids=[p[0][:20] for p in PROBLEMS])
def test_problems_of_labels(tmp_path, text, kind, message):
    found = read_yolo(yolo(tmp_path, {"train/a": text, "train/b": BOX + POLYGON}), "train")
    problems = [p for p in validate.check(found) if p.kind not in ("no objects", "no masks")]
    assert [problem.kind for problem in problems] == ([kind] if kind else [])
    assert all(message in problem.text for problem in problems)


def test_problems_of_files(tmp_path):
    file = yolo(tmp_path, {"train/a": BOX, "train/b": BOX, "train/gone": BOX})
    (tmp_path / "images/train/gone.jpg").unlink()
    (tmp_path / "images/train/b.jpg").write_bytes(b"no image")
    (tmp_path / "images/train/c.dng").write_bytes(b"")
    (tmp_path / "labels/train/classes.txt").write_text("cat\n")
    found = read_yolo(file, "train")
    assert [(problem.kind, problem.image) for problem in found.problems] == [
        ("skipped", ""),
        ("unknown image", "gone.txt"),
        ("unreadable", "b.jpg"),
    ]
    assert "1 .dng" in found.problems[0].text
    (tmp_path / "list.txt").write_text("./images/train/a.jpg\n./images/train/a.jpg\nnone.jpg\n")
    found = read_yolo(yolo(tmp_path, {"train/a": BOX}, train="list.txt"), "train")
    assert [problem.kind for problem in found.problems] == ["duplicate id", "missing file"]


MISTAKES = [  # changes of data.yaml, split -> message
    (dict(path="/none/x"), "train", "data.yaml: path is '/none/x', but /none/x does not exist"),
    (dict(train="images/tr"), "train", "train is 'images/tr', but .*/images/tr does not exist"),
    (dict(train="{a: b}"), "train", "train is {'a': 'b'}. It must be a path"),
    ({}, "test", "data.yaml has no split 'test'. Choose from train, val."),
    (dict(test=""), "test", "has no split 'test'"),
    ({}, "names", "has no split 'names'"),
    (dict(nc="3"), "train", "nc is 3, but names has 2 classes"),
    (dict(nc="x"), "train", "nc is 'x'. It must be the number of classes"),
    (dict(names="cat"), "train", "names is 'cat'. It must be a list of class names"),
    (dict(names="{0: cat, 2: dog}"), "train", "keys of names must be 0 to 1, without gaps"),
    (dict(names="[[cat]]"), "train", "must be a list of class names"),
    (dict(kpt_shape="[17, 3]"), "train", "has keypoints .kpt_shape.. Only boxes and polygons"),
    (dict(train="labels/train"), "train", "split 'train' has no images in .*labels/train"),
    (dict(train="data.yaml"), "train", "split 'train' has no images"),
    (dict(text="a: [b"), "train", "data.yaml is not YAML"),
    (dict(text="cat"), "train", "data.yaml must have the keys names, train and val"),
    (dict(text="a: &a [*a]\nnames: [x]"), "train", "more than 100000 entries"),
]


@pytest.mark.parametrize(
    ("changes", "split", "message"), MISTAKES, ids=[str(m[0])[:30] for m in MISTAKES]
)
def test_mistakes_are_named(tmp_path, changes, split, message):
    with pytest.raises(UserError, match=message):
        read_yolo(yolo(tmp_path, **changes), split)


def test_labels_must_be_in_the_folder_of_labels(tmp_path):
    file = yolo(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "annotations")
    with pytest.raises(
        UserError, match="1 image, but no label files, such as .*/labels/train/a.txt"
    ):
        read_yolo(file, "train")
    with pytest.raises(UserError, match="the file cannot be read .Is a directory.. Give the data"):
        read_yolo(tmp_path, "train")
