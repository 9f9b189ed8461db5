"""Read COCO annotation files, including invalid annotations.

The check, training and evaluation all use this reader. It checks the raw values of every row once.
"""

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from robust_backbones.core.errors import UserError, counted
from robust_backbones.core.files import byte_order_mark, read_json
from robust_backbones.detection.data.annotations import (
    HUGE,
    Annotations,
    Image,
    Object,
    Problem,
    id_fault,
    inside,
    unique,
)
from robust_backbones.detection.data.segmentations import polygons, segmentation_fault

_PARTS = ("images", "categories", "annotations")
_CROWDS = {"0": False, "1": True}  # `iscrowd` as text, which some tools write


def read_coco(images: Path | None, file: Path) -> Annotations:
    """Read a COCO annotation file. The classes are sorted by id.

    Args:
        images: folder of the images; None to evaluate the annotations without the image files.
        file: annotation file, JSON.

    Raises:
        UserError: the file does not exist, or is not in COCO's format.
    """
    with no_garbage():
        found = parse_coco(_contents(file), str(file), images)
    if code := byte_order_mark(file):
        found.problems.append(Problem("byte order mark", "", f"the file is read as {code}"))
    return found


def _contents(file: Path) -> Any:
    if Path(file).is_dir():
        raise UserError(
            f"{file} is a folder. Give the folder of the images first, then the annotation file."
        )
    return read_json(file)


def read_coco_classes(file: Path) -> Annotations:
    """Read the classes of a COCO annotation file, but no images and objects.

    `read_coco` takes ten times longer for large files, because it checks and converts each object.

    Raises:
        UserError: as for `read_coco`.
    """
    found = Annotations(str(file))
    with no_garbage(), _format_errors(str(file)):
        _read_classes(_objects(_mapping(_contents(file)), "categories"), found)
    return found


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """Disable the garbage collector during the block.

    The collector would scan the many small objects of an annotation file repeatedly.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def parse_coco(contents: Any, source: str, images: Path | None = None) -> Annotations:
    """Check the contents of a COCO annotation file and convert them to `Annotations`.

    Args:
        contents: contents of the file.
        source: name of the file in error messages.
        images: folder of the images; None to evaluate the annotations without the image files.

    Raises:
        UserError: the contents are not in COCO's format. Faults of single annotations become
            `Annotations.problems`.
    """
    found = Annotations(source)
    with _format_errors(source):
        contents = _mapping(contents)
        if "annotations" not in contents:
            found.problems.append(Problem("no annotations", "", "'annotations' is missing"))
            contents = contents | {"annotations": []}
        rows = {part: _objects(contents, part) for part in _PARTS}
        _read_classes(rows["categories"], found)
        by_id = _read_images(rows["images"], images, found)
        _read_objects(rows["annotations"], by_id, found)
    return found


@contextlib.contextmanager
def _format_errors(source: str) -> Iterator[None]:
    """Convert a ValueError about the contents of a file to a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{source} is not a COCO annotation file ({error}).") from None


def _mapping(contents: Any) -> dict:
    if not isinstance(contents, dict):
        raise ValueError("it is not an object with 'images', 'annotations', 'categories'")
    return contents


def _objects(contents: dict, part: str) -> list[dict]:
    if part not in contents:
        raise ValueError(f"'{part}' is missing")
    rows = contents[part]
    if not isinstance(rows, list):
        raise ValueError(f"'{part}' is not a list")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} of '{part}' is {_shown(row)}, not an object")
    return rows


def _by_id(rows: list[dict], part: str, found: Annotations) -> dict:
    """Return `{id: row}` in the order of the ids. Rows that repeat an id are excluded."""
    by_id: dict = {}
    for row in rows:
        key = row.get("id")
        if type(key) not in (int, float, str):
            raise ValueError(f"every row of '{part}' needs an id, a number or text, not {key!r}")
        if key in by_id:
            found.problems.append(
                Problem("duplicate id", "", f"id {key!r} occurs twice in '{part}'")
            )
        by_id.setdefault(key, row)
    if len({type(key) is str for key in by_id}) > 1:
        raise ValueError(f"the ids in '{part}' are a mixture of numbers and text")
    # pycocotools breaks ties in the order of the ids.
    return dict(sorted(by_id.items()))


def _read_classes(rows: list[dict], found: Annotations) -> None:
    names = {}
    for key, row in _by_id(rows, "categories", found).items():
        name = row.get("name", key)
        if type(name) not in (int, float, str):
            raise ValueError(f"name is {_shown(name)}, not a string")
        names[key] = str(name)
    if not names:
        raise ValueError("the list of categories is empty")
    for name, count in Counter(names.values()).items():
        if count > 1:
            ids = ", ".join(str(key) for key, other in names.items() if other == name)
            text = f"the categories {ids} are all named '{name}'; each is a class of its own"
            found.problems.append(Problem("same name", "", text))
    found.ids, found.classes = list(names), list(unique(names).values())


def _read_images(rows: list[dict], folder: Path | None, found: Annotations) -> dict:
    """Add the images to `found`, sorted by id, and return `{id: image}`."""
    by_id = {}
    for key, row in _by_id(rows, "images", found).items():
        width, height = row.get("width") or 0, row.get("height") or 0
        if not (_is_number(width) and _is_number(height)):
            shown = _shown([width, height])
            raise ValueError(f"image {key} has width and height {shown}, not numbers")
        by_id[key] = Image(key, Path(), width, height)
        if folder is not None:
            by_id[key].file = _image_file(folder, row.get("file_name"), found)
    found.images = list(by_id.values())
    return by_id


def _image_file(folder: Path, name: Any, found: Annotations) -> Path:
    if not isinstance(name, str):
        raise ValueError(f"file_name is {_shown(name)}, not a string")
    try:
        path = inside(folder, name)
    except ValueError as error:
        found.problems.append(Problem("outside folder", name, str(error)))
        return Path(folder, name)
    if "\\" in name and "\\" not in str(path):
        found.problems.append(Problem("backslash", name, f"read as {path}"))
    return path


def _read_objects(rows: list[dict], images: dict, found: Annotations) -> None:
    """Add the annotated objects to their images, and the faults of their values to `found`."""
    indices = {key: index for index, key in enumerate(found.ids)}
    for position, row in enumerate(rows):
        try:
            image = images[row["image_id"]]
        except (KeyError, TypeError):
            wrong = id_fault("image_id", row.get("image_id"), images, "'images'")
            text = f"annotation {row.get('id', position)}: {wrong}"
            found.problems.append(Problem("unknown image", "", text))
            continue
        thing, faults = _read_object(row, indices)
        image.objects.append(thing)
        for kind, text in faults:
            label = thing.label(position, found.classes)
            found.problems.append(Problem(kind, image.name, f"{label}: {text}"))
    _note_ids(rows, found)


def _note_ids(rows: list[dict], found: Annotations) -> None:
    ids = [row.get("id") for row in rows]
    counts: Counter[Any]
    try:
        counts = Counter(ids)
    except TypeError:  # an id is not hashable
        counts = Counter(map(str, ids))
    if without := counts.pop(None, 0):
        text = f"{counted(without, 'annotation has', 'annotations have')} no id"
        found.problems.append(Problem("no id", "", text))
    found.problems += [
        Problem("repeated id", "", f"{count} annotations have id {number}")
        for number, count in counts.items()
        if count > 1
    ]


def _read_object(row: dict, indices: dict) -> tuple[Object, list[tuple[str, str]]]:
    """Convert an annotation, and return the faults of its values as `(kind, text)`."""
    faults: list[tuple[str, str]] = []
    try:
        index = indices[row["category_id"]]
    except (KeyError, TypeError):
        index = None
        wrong = id_fault("category_id", row.get("category_id"), indices, "'categories'")
        faults.append(("unknown class", str(wrong)))
    given, box, empty = row.get("bbox"), None, False
    if _is_box(given):
        x, y, width, height = given
        box, empty = (x, y, x + width, y + height), width <= 0 or height <= 0
    else:
        text = f"bbox is {_shown(given)}, not [x, y, width, height] in finite numbers"
        faults.append(("no box", text))
    part, mask_fault = row.get("segmentation") or None, None
    if part:
        part, mask_fault, note = _check_mask(part)
        faults += [("broken polygon", note)] if note else []
    area = row.get("area")
    if not _is_number(area):
        text = "missing" if area is None else f"area is {_shown(area)}, not a number"
        faults.append(("no area field", text))
        area = None
    crowd = row.get("iscrowd")
    if crowd not in (0, 1, None):
        crowd, fault = _convert_crowd(crowd)
        faults.append(fault)
    thing = Object(
        index,
        box,
        given if box and given else [],
        empty,
        area=area,
        crowd=bool(crowd),
        segmentation=part,
        mask_fault=mask_fault,
        number=row.get("id"),
        keypoints=row.get("keypoints") or None,
        num_keypoints=row.get("num_keypoints"),
    )
    return thing, faults


def _check_mask(part: Any) -> tuple[list | dict | None, str | None, str | None]:
    """Return the valid part of a segmentation, its fault if no part is valid, and a note."""
    if wrong := segmentation_fault(part):
        return None, wrong, None
    valid = polygons(part) if isinstance(part, list) else part
    if len(valid) == len(part):
        return part, None, None
    bad = next(points for points in part if len(points) < 6 or len(points) % 2)
    text = f"a polygon has {len(bad)} numbers, not x and y of at least three points"
    return (valid, None, text) if valid else (None, text, None)


def _convert_crowd(value: Any) -> tuple[bool, tuple[str, str]]:
    """Convert an `iscrowd` that is not 0 or 1, and return the fault `(kind, text)`."""
    if isinstance(value, str) and value in _CROWDS:
        return _CROWDS[value], ("iscrowd as text", f'iscrowd is the text "{value}"')
    return False, ("invalid iscrowd", f"iscrowd is {_shown(value)}, not 0 or 1")


def _is_box(box: Any) -> TypeGuard[list[float]]:
    if type(box) is not list or len(box) != 4:
        return False
    x, y, width, height = box
    if not {type(x), type(y), type(width), type(height)} <= {int, float}:
        return False
    return abs(x) + abs(y) + abs(width) + abs(height) < HUGE  # also false for NaN


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < HUGE  # also false for NaN


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
