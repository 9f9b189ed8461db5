"""Training and test sets in descriptions of detection data."""

import re

import pytest

from robust_backbones.core.dataset_pairs import ROBOFLOW, find_pair
from robust_backbones.core.errors import UserError


def write(root, *files, text=""):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


OFFICIAL = [f"annotations/instances_{split}2017.json" for split in ("train", "val")]
EXPORT = [f"{split}/{ROBOFLOW}" for split in ("train", "valid", "test")]
SPLITS = "ImageSets/Main/{}.txt"
FOUND = {  # kind, files, training set and test set below the folder R
    "official": ("coco", OFFICIAL, f"R/train2017:R/{OFFICIAL[0]}", f"R/val2017:R/{OFFICIAL[1]}"),
    "export": ("coco", EXPORT, f"R/train:R/{EXPORT[0]}", f"R/test:R/{EXPORT[2]}"),
    "no test": ("coco", EXPORT[:2], f"R/train:R/{EXPORT[0]}", f"R/valid:R/{EXPORT[1]}"),
    "voc": ("voc", ["train", "val", "trainval", "test", "cat_train"], "R:trainval", "R:test"),
    "voc, no test": ("voc", ["train", "val", "trainval"], "R:train", "R:val"),
    "voc, random": ("voc", ["a.xml", "a.jpg"], "R:train", "R:val"),
    "yolo": ("yolo", ["data.yaml"], "R/data.yaml:train", "R/data.yaml:val"),
    "mask": (
        "mask",
        [f"{kind}/{split}/a.png" for kind in ("images", "masks") for split in ("train", "val")],
        "R/images/train:R/masks/train",
        "R/images/val:R/masks/val",
    ),
    "ade20k": (
        "mask",
        [
            *(f"images/{split}/a.png" for split in ("training", "validation", "test")),
            *(f"annotations/{split}/a.png" for split in ("training", "validation")),
        ],
        "R/images/training:R/annotations/training",
        "R/images/validation:R/annotations/validation",
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_both_sets_are_found(tmp_path, case):
    kind, files, *parts = FOUND[case]
    files = [name if "." in name else SPLITS.format(name) for name in files]
    write(tmp_path, *files, text="train: a\nval: b\ntest:\n")
    text = f"{kind}:{tmp_path}" + ("/data.yaml" if kind == "yolo" else "")
    train, test = (part.replace("R", str(tmp_path)) for part in parts)
    wanted = (f"cells_train={kind}:{train}", f"cells_test={kind}:{test}")
    assert find_pair(text, "", "cells") == wanted
    assert find_pair(f"mine={text}", "", "cells") == wanted


def test_two_sets_are_used_as_they_are():
    pair = find_pair("voc:/a:train", "mine=voc:/b:odd", "cells")
    assert pair == ("cells_train=voc:/a:train", "cells_test=voc:/b:odd")
    assert find_pair("voc_2012_train", "voc_2012_val", "x") == ("voc_2012_train", "voc_2012_val")


REFUSED = {
    "coco:{0}": "no training and test set found. Give .*annotations/instances_train2017.json",
    "coco:{0}/none": "{0}/none: the folder does not exist. Choose from coco:FOLDER",
    "coco:{0}:{0}/a.json": "has no test images. Give them with --test coco:",
    "voc:{0}:train": "has no test images. Give them with --test voc:",
    "voc:{0}": r"the splits \(left, right\) have no training and test set",
    "yolo:{0}/data.yaml": "has no test images. Give them with --test yolo:",
    "yolo:{0}/none.yaml": "the file does not exist. Give a data.yaml",
    "yolo:{0}/a.json": "not an Ultralytics data.yaml",
    "mask:{0}": "no training and test set found. Give .* with the folders images/train",
    "mask:{0}:{0}": "has no test images. Give them with --test mask:",
    "voc_2012_train": "has no test images. Give them with --test",
}


@pytest.mark.parametrize("text", REFUSED)
def test_data_without_test_images_are_refused(tmp_path, text):
    write(tmp_path, SPLITS.format("left"), SPLITS.format("right"))
    write(tmp_path, "data.yaml", text="train: a")
    write(tmp_path, "a.json", text="[1]")
    message = REFUSED[text].replace("{0}", re.escape(str(tmp_path)))
    with pytest.raises(UserError, match=message):
        find_pair(text.format(tmp_path), "", "cells")
