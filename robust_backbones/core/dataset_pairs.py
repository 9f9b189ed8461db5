"""Find the training and the test set in the description of a detection dataset."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from robust_backbones.core.dataset_forms import FORMS
from robust_backbones.core.errors import UserError
from robust_backbones.core.paths import expand

KIND = re.compile(rf"(?:(?P<name>[\w.-]+)=)?(?P<kind>{'|'.join(FORMS)}):(?P<paths>.+)")
ROBOFLOW = "_annotations.coco.json"  # annotation file in each folder of a COCO export from Roboflow
# Forms with both sets. Other forms have one set, and need a second one to test on.
PAIRS = """coco:FOLDER (train2017/, val2017/ and annotations/, or a Roboflow export),
voc:ROOT (with ImageSets, or split at random), yolo:data.yaml,
mask:FOLDER (images/train, images/val, masks/train, masks/val)"""
# Folders in `mask:FOLDER`, including MMSegmentation's and ADE20K's.
_IMAGES, _MASKS = ("images", "img_dir"), ("masks", "ann_dir", "annotations")
_TRAIN, _TEST = ("train", "training"), ("test", "val", "validation", "valid")


def find_pair(data: str, test: str, name: str) -> tuple[str, str]:
    """Return the training and the test set of data, in a form that every command accepts.

    Args:
        data: `[NAME=]kind:paths` with both sets (see `PAIRS`) or with the training set only, or the
            name of a registered dataset.
        test: test set in the same form; empty to take the one in `data`.
        name: name of the data. The datasets are named `<name>_train` and `<name>_test`.

    Raises:
        UserError: a folder or a split does not exist, or there is no test set.
    """
    if test:
        return _single(data, f"{name}_train"), _single(test, f"{name}_test")
    if not (found := KIND.fullmatch(data)):
        raise UserError(f"DATA {data}: it has no test images. Give them with --test.")
    kind, paths = found["kind"], expand(found["paths"])
    parts = _PAIRS[kind](Path(paths)) if _is_pair(kind, paths) else None
    if parts is None:
        raise UserError(f"DATA {data}: it has no test images. Give them with --test {kind}:...")
    train, held = parts
    return f"{name}_train={kind}:{train}", f"{name}_test={kind}:{held}"


def _single(text: str, name: str) -> str:
    found = KIND.fullmatch(text)
    return f"{name}={found['kind']}:{expand(found['paths'])}" if found else text


def _is_pair(kind: str, paths: str) -> bool:
    """Return whether paths have no split or annotation file. A path may contain a colon."""
    folder, _, _ = paths.rpartition(":")
    return Path(paths).exists() or not folder or not Path(folder).exists()


def _coco(folder: Path) -> tuple[str, str] | None:
    """Find the two sets in the official folders, or in a Roboflow export."""
    _require(folder)
    files = {path.parent.name: path for path in sorted(folder.glob(f"*/{ROBOFLOW}"))}
    official = sorted((folder / "annotations").glob("instances_*.json"))
    files = files or {path.stem.removeprefix("instances_"): path for path in official}
    train = next((split for split in files if split.startswith("train")), None)
    test = next((s for p in ("test", "val") for s in files if s.startswith(p)), None)
    if not train or not test:
        raise UserError(
            f"DATA coco:{folder}: no training and test set found. Give {_official(folder)}, "
            f"{folder}/train/{ROBOFLOW} and {folder}/valid/{ROBOFLOW}, or "
            "coco:IMAGES:ANNOTATIONS.json with --test."
        )
    return f"{folder / train}:{files[train]}", f"{folder / test}:{files[test]}"


def _official(folder: Path) -> str:
    return f"{folder}/annotations/instances_train2017.json and instances_val2017.json"


def _voc(root: Path) -> tuple[str, str] | None:
    """Choose two splits of `ImageSets`, or the random splits of a folder without them."""
    _require(root)
    sets = next((p for p in sorted(root.iterdir()) if p.name.lower() == "imagesets"), root)
    main = next((p for p in sorted(sets.iterdir()) if p.name.lower() == "main"), sets)
    splits = {path.stem for path in main.glob("*.txt")} if sets != root else set()
    if not splits:
        return f"{root}:train", f"{root}:val"
    for train, test in (("trainval", "test"), ("train", "test"), ("train", "val")):
        if {train, test} <= splits:
            return f"{root}:{train}", f"{root}:{test}"
    known = ", ".join(sorted(s for s in splits if "_" not in s)[:8])
    raise UserError(
        f"DATA voc:{root}: the splits ({known}) have no training and test set. Choose two: "
        "voc:ROOT:SPLIT --test voc:ROOT:SPLIT."
    )


def _yolo(file: Path) -> tuple[str, str] | None:
    if not file.is_file():
        raise UserError(f"DATA yolo:{file}: the file does not exist. Give a data.yaml.")
    try:
        contents = yaml.safe_load(file.read_text(encoding="utf-8"))
        splits = {key for key, value in contents.items() if value}
    except (OSError, ValueError, AttributeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"DATA yolo:{file}: not an Ultralytics data.yaml ({reason}).") from None
    test = next((split for split in ("test", "val") if split in splits), None)
    return (f"{file}:train", f"{file}:{test}") if test and "train" in splits else None


def _require(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"DATA {folder}: the folder does not exist. Choose from {_one_line()}.")


def _one_line() -> str:
    return " ".join(PAIRS.split())


def _mask(folder: Path) -> tuple[str, str] | None:
    """Find the folders of the images and the masks of two splits."""
    _require(folder)
    roots = [(folder / a, folder / b) for a in _IMAGES for b in _MASKS]
    for images, masks in roots:
        both = [s for s in (*_TRAIN, *_TEST) if (images / s).is_dir() and (masks / s).is_dir()]
        train, test = (next((s for s in both if s in names), None) for names in (_TRAIN, _TEST))
        if train and test:
            return f"{images / train}:{masks / train}", f"{images / test}:{masks / test}"
    raise UserError(
        f"DATA mask:{folder}: no training and test set found. Give {folder} with the folders "
        "images/train, images/val, masks/train and masks/val, or mask:IMAGES:MASKS with --test."
    )


_PAIRS = {"coco": _coco, "voc": _voc, "yolo": _yolo, "mask": _mask}
