"""Read COCO annotation files, including invalid annotations."""

import json
from pathlib import Path
from typing import Any

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data.annotations import Annotations, Image, Object, Problem, inside
from robust_backbones.detection.data.coco_files import HUGE, segmentation_fault


def read_coco(images: Path, file: Path) -> Annotations:
    """Read a COCO annotation file. The classes are sorted by id.

    Args:
        images: folder of the images.
        file: annotation file, JSON.

    Raises:
        UserError: the file does not exist, or is not in COCO's format.
    """
    try:
        contents = json.loads(Path(file).read_text(encoding="utf-8"))
        if not isinstance(contents, dict):
            raise ValueError("it is not an object with 'images', 'annotations', 'categories'")
        categories = sorted(contents["categories"], key=lambda row: row["id"])
        rows, marks = contents["images"], contents["annotations"]
        names = {row["id"]: _name(row["name"], "name") for row in categories}
        indices = {key: index for index, key in enumerate(names)}
        found = Annotations(list(names.values()), list(names), [])
        by_id = {}
        for row in rows:
            if row["id"] in by_id:
                found.problems.append(
                    Problem("duplicate id", "", f"image id {row['id']} occurs twice")
                )
                continue
            size = [_numbers([row.get(side) or 0], 1)[0] for side in ("width", "height")]
            by_id[row["id"]] = Image(
                row["id"], inside(images, _name(row["file_name"], "file_name")), *size
            )
        seen = set()
        for mark in marks:
            number = mark.get("id")
            if number is None or number in seen:
                what = "has no id" if number is None else f"id {number} occurs twice"
                found.problems.append(Problem("duplicate id", "", f"annotation {what}"))
            seen.add(number)
            if mark["image_id"] not in by_id:
                text = (
                    f"annotation {number} belongs to image {mark['image_id']}, which is not listed"
                )
                found.problems.append(Problem("unknown image", "", text))
                continue
            image = by_id[mark["image_id"]]
            if mark["category_id"] not in indices:
                text = (
                    f"annotation {number} has category {mark['category_id']!r}, which is not listed"
                )
                found.problems.append(Problem("unknown class", image.file.name, text))
            image.objects.append(_coco_object(mark, indices))
        found.images = [by_id[key] for key in sorted(by_id)]
    except IsADirectoryError:
        raise UserError(
            f"{file} is a folder. Give the folder of the images first, then the annotation file."
        ) from None
    except OSError as error:
        raise UserError(f"{file}: the file cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{file} is not a COCO annotation file ({reason}).") from None
    if not names:
        raise UserError(f"{file}: the list of categories is empty.")
    return found


def _name(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r}, not a string")
    return value


def _numbers(values: Any, count: int) -> list:
    """Return the values if they are `count` numbers, and raise a ValueError otherwise.

    NaN is accepted, because `validate` reports it later as "no area".
    """
    plain = isinstance(values, list) and all(type(v) in (int, float) for v in values)
    if not plain or len(values) != count or any(abs(v) > HUGE for v in values):
        raise ValueError(f"{values!r} are not {count} numbers")
    return values


def _coco_object(mark: dict, indices: dict) -> Object:
    box = _numbers(mark["bbox"], 4) if mark.get("bbox") else None
    if mark.get("segmentation") and (wrong := segmentation_fault(mark["segmentation"])):
        raise ValueError(f"annotation {mark.get('id')}: {wrong}")
    x, y, width, height = box if box else (0.0, 0.0, 0.0, 0.0)
    return Object(
        indices.get(mark["category_id"]),
        (x, y, x + width, y + height) if box else None,
        box or [],
        empty=bool(box) and not (width > 0 and height > 0),  # also true for NaN
        area=mark.get("area"),
        crowd=bool(mark.get("iscrowd", 0)),
        segmentation=mark.get("segmentation") or None,
        number=mark.get("id"),
    )
