"""Kinds of annotation files that people have, sound and unsound, in small folders."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.custom_data import coco


@dataclass(frozen=True)
class Case:
    """A kind of annotations.

    Attributes:
        format: format of the annotations.
        kind: what is unusual, for the document.
        build: writes the data into a folder, and returns the description of the dataset.
        found: perfect detections, as `evaluate` reads them.
        message: text that the check prints.
        ap: AP of the detections, percent.
    """

    format: str
    kind: str
    build: Callable[[Path], str]
    found: list[dict]
    message: str = "no errors"
    ap: float = 100


def detections(*ids: tuple) -> list[dict]:
    """Detections of the box of `custom_data.coco`, for each image id and category id."""
    box = {"bbox": [5, 5, 10, 10], "score": 0.9}
    return [box | {"image_id": image, "category_id": category} for image, category in ids]


PERFECT = detections((7, 20), (7, 10), (3, 10))


def _coco(
    message: str,
    kind: str,
    found: list[dict] = PERFECT,
    edit=None,
    encoding="utf-8",
    ap=100,
    **more,
):
    def build(folder: Path) -> str:
        file = coco(folder, **more)
        contents = json.loads(file.read_text())
        if edit:
            edit(contents, folder)
        file.write_text(json.dumps(contents), encoding=encoding)
        return f"mine=coco:{folder}:{file}"

    return Case("COCO", kind, build, found, message, ap)


def _every(part: str, **values):
    """Change every row of a part. None removes the key; a function gets the old value."""

    def edit(contents: dict, folder: Path) -> None:
        for row in contents[part]:
            for key, value in values.items():
                row[key] = value(row[key]) if callable(value) else value
                if row[key] is None:
                    del row[key]

    return edit


def _below(contents: dict, folder: Path) -> None:
    for row in contents["images"]:
        row["file_name"] = str(folder / row["file_name"])


def _in_folder(contents: dict, folder: Path) -> None:
    (folder / "sub").mkdir()
    for row in contents["images"]:
        (folder / row["file_name"]).rename(folder / "sub" / row["file_name"])
        row["file_name"] = f"sub\\{row['file_name']}"


def _without(contents: dict, folder: Path) -> None:
    del contents["annotations"]


def _empty(contents: dict, folder: Path) -> None:
    contents["annotations"] = []


HALF = [[5, 5, 15, 5, 15, 15, 5, 15], [1, 2, 3, 4]]

CASES = [
    _coco("no errors", "valid"),
    _coco("the categories 10, 20 are all named 'cat'", "categories with the same name",
          categories__0__name="cat"),
    _coco('iscrowd is the text "0"', "`iscrowd` is the text `\"0\"`",
          edit=_every("annotations", iscrowd="0")),
    _coco("iscrowd is 'no', not 0 or 1", "`iscrowd` is other text",
          annotations__0__iscrowd="no"),
    _coco("all 3 objects have iscrowd 1", "all objects are crowds",
          edit=_every("annotations", iscrowd=1)),
    _coco("none of 3 boxes exceeds 1", "boxes in [0, 1]",
          found=[row | {"bbox": [0.1, 0.1, 0.4, 0.3]} for row in PERFECT],
          edit=_every("annotations", bbox=[0.1, 0.1, 0.4, 0.3])),
    _coco("box [5, 5, 0.5, 10]", "a box thinner than a pixel",
          found=[PERFECT[0] | {"bbox": [5, 5, 0.5, 10]}, *PERFECT[1:]],
          annotations__0__bbox=[5, 5, 0.5, 10]),
    _coco("box [5, 5, 0, 10]", "a box with zero area", found=PERFECT[1:], ap=50,
          annotations__0__bbox=[5, 5, 0, 10]),
    _coco("box [35, 5, 10, 10] in 40 x 30", "a box outside the image",
          found=[PERFECT[0] | {"bbox": [35, 5, 10, 10]}, *PERFECT[1:]],
          annotations__0__bbox=[35, 5, 10, 10]),
    _coco("bbox is None, not [x, y, width, height]", "an object without a box",
          annotations__0__bbox=None),
    _coco("a polygon has 4 numbers", "a polygon of two points",
          annotations__0__segmentation=[[1, 2, 3, 4]]),
    _coco("the run lengths do not sum to height x width", "run lengths for a different image size",
          annotations__0__segmentation={"size": [30, 40], "counts": [3]}),
    _coco("a polygon has 4 numbers", "one of two polygons has two points",
          annotations__0__segmentation=HALF),
    _coco("object 1 (dog) has no mask", "one object without a mask",
          annotations__0__segmentation=[]),
    _coco("no errors", "no masks", edit=_every("annotations", segmentation=None)),
    _coco("3 annotations have no id", "annotations without ids",
          edit=_every("annotations", id=None)),
    _coco("3 annotations have id 1", "annotations with the same id",
          edit=_every("annotations", id=1)),
    _coco("id 3 occurs twice in 'images'", "two images with the same id", images__0__id=3),
    _coco('image_id is the text "7", but the ids in \'images\' are numbers',
          "`image_id` is text, ids of images are numbers",
          edit=_every("annotations", image_id=str)),
    _coco('category_id is the text "20", but the ids in \'categories\' are numbers',
          "`category_id` is text, ids of categories are numbers",
          edit=_every("annotations", category_id=str)),
    _coco("image_id is 99. The ids in 'images' are 3, 7", "an annotation for an unlisted image",
          found=PERFECT[1:], annotations__0__image_id=99),
    _coco("category_id is 99. The ids in 'categories' are 10, 20",
          "an annotation with an unlisted category",
          found=PERFECT[1:], annotations__0__category_id=99),
    _coco("area is 'large', not a number", "no valid `area`", annotations__0__area="large"),
    _coco("no object is annotated", "no annotations", edit=_empty),
    _coco("'annotations' is missing", "no `annotations` list", edit=_without),
    _coco("the file is read as utf-8-sig", "UTF-8 with a byte order mark", encoding="utf-8-sig"),
    _coco("the file is read as utf-16", "UTF-16 with a byte order mark", encoding="utf-16"),
    _coco("/sub/a.png", "backslashes in `file_name`", edit=_in_folder),
    _coco("no errors", "absolute `file_name` in the folder", edit=_below),
    _coco("'/etc/a.png' is outside the folder", "absolute `file_name` outside the folder",
          images__0__file_name="/etc/a.png"),
]  # fmt: skip
