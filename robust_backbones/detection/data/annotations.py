"""Read COCO and VOC annotations, including invalid ones.

Detectron2's readers stop at an invalid annotation, or ignore the fault. The readers in this module
return invalid annotations as well. `validate` checks them. `custom` repairs them and converts them
to Detectron2's dictionaries.
"""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data.coco_files import HUGE, segmentation_fault


@dataclass
class Object:
    """An annotated object.

    Attributes:
        name: class name; None if the file does not list the category.
        box: box (x0, y0, x1, y1) in pixels; None if the file has no box. The point (0, 0) is the
            top left corner of the first pixel.
        given: numbers of the box in the file. COCO: x, y, width, height. VOC: xmin, ymin, xmax,
            ymax.
        empty: whether the numbers in `given` describe a box without area.
        area: area in the file, in pixels; None if the file has no area.
        crowd: whether COCO's `iscrowd` is set.
        difficult: whether VOC's `difficult` is set.
        segmentation: polygons or run lengths in COCO's format; None if there is no mask.
        number: id of the COCO annotation; None for VOC.
    """

    name: str | None
    box: tuple[float, float, float, float] | None
    given: list[float]
    empty: bool
    area: float | None = None
    crowd: bool = False
    difficult: bool = False
    segmentation: list | dict | None = None
    number: int | None = None


@dataclass
class Image:
    """An annotated image of a dataset.

    Attributes:
        id: id in a COCO file, or name of the image in a VOC split.
        file: path of the image file.
        width: width in the annotations, in pixels; 0 if absent.
        height: height in the annotations, in pixels; 0 if absent.
        objects: annotated objects of the image.
    """

    id: int | str
    file: Path
    width: int
    height: int
    objects: list[Object] = field(default_factory=list)


@dataclass
class Annotations:
    """The annotations of a split.

    Attributes:
        classes: class names, in order.
        ids: id of each class in the COCO file; 0, 1, … for VOC.
        images: images with their objects.
        faults: faults of the annotation file, such as duplicate ids, as `(kind, text)`.
    """

    classes: list[str]
    ids: list[int]
    images: list[Image]
    faults: list[tuple[str, str]] = field(default_factory=list)


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
        found = Annotations(list(names.values()), list(names), [])
        by_id = {}
        for row in rows:
            if row["id"] in by_id:
                found.faults.append(("duplicate id", f"image id {row['id']} occurs twice"))
                continue
            size = [_numbers([row.get(side) or 0], 1)[0] for side in ("width", "height")]
            by_id[row["id"]] = Image(
                row["id"], _inside(images, _name(row["file_name"], "file_name")), *size
            )
        seen = set()
        for mark in marks:
            number = mark.get("id")
            if number is None or number in seen:
                what = "has no id" if number is None else f"id {number} occurs twice"
                found.faults.append(("duplicate id", f"annotation {what}"))
            seen.add(number)
            if mark["image_id"] not in by_id:
                text = (
                    f"annotation {number} belongs to image {mark['image_id']}, which is not listed"
                )
                found.faults.append(("unknown image", text))
                continue
            by_id[mark["image_id"]].objects.append(_coco_object(mark, names))
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


def _inside(folder: Path, name: str) -> Path:
    """Return the path of the file `name` in `folder`, and reject names outside the folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"'{name}' is outside the folder of the images")
    return Path(folder, name)


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


def _coco_object(mark: dict, names: dict) -> Object:
    box = _numbers(mark["bbox"], 4) if mark.get("bbox") else None
    if mark.get("segmentation") and (wrong := segmentation_fault(mark["segmentation"])):
        raise ValueError(f"annotation {mark.get('id')}: {wrong}")
    x, y, width, height = box if box else (0.0, 0.0, 0.0, 0.0)
    return Object(
        names.get(mark["category_id"]),
        (x, y, x + width, y + height) if box else None,
        box or [],
        empty=bool(box) and not (width > 0 and height > 0),  # also true for NaN
        area=mark.get("area"),
        crowd=bool(mark.get("iscrowd", 0)),
        segmentation=mark.get("segmentation") or None,
        number=mark.get("id"),
    )


SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG", ".PNG")


def read_voc(root: Path, split: str, classes: list[str] | None = None) -> Annotations:
    """Read a split of a dataset in VOC's layout. Its class names may differ from VOC's.

    VOC counts pixels from 1, and a box includes its last pixel. A box from 1 to W covers an image
    of width W. As in Detectron2, it is converted to a box from 0 to W.

    Args:
        root: folder with `ImageSets/Main/<split>.txt`, `Annotations`, `JPEGImages`.
        split: name of the split.
        classes: class names, in order; None to use the names in the annotations, sorted.

    Raises:
        UserError: a file does not exist, or is not in VOC's format.
    """
    root, images = Path(root), []
    if not root.is_dir():
        raise UserError(
            f"{root} is not a folder. Give the folder of ImageSets/, Annotations/ and JPEGImages/."
        )
    listed = root / "ImageSets" / "Main" / f"{split}.txt"
    try:
        names = [line.split()[0] for line in listed.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        splits = ", ".join(sorted(p.stem for p in listed.parent.glob("*.txt")))
        fix = f"Choose from {splits}" if splits else "Give a folder in VOC's layout, with splits"
        raise UserError(f"split '{split}' does not exist in {listed.parent}. {fix}.") from None
    try:
        for name in names:
            _inside(root, name)
    except ValueError as error:
        raise UserError(f"{listed}: {error}.") from None
    faults = [
        ("duplicate id", f"{name} is listed twice in {listed}")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    for name in dict.fromkeys(names):
        path = root / "Annotations" / f"{name}.xml"
        try:
            images.append(_voc_image(root, name, _parse(path)))
        except FileNotFoundError:
            raise UserError(f"{listed} lists {name}, but {path} does not exist.") from None
        except OSError as error:
            raise UserError(f"{path}: the file cannot be read ({error.strerror}).") from None
        except _NOT_VOC as error:
            raise UserError(f"{path} is not a VOC annotation ({error}).") from None
    if classes is None:
        classes = sorted({thing.name for image in images for thing in image.objects if thing.name})
    return Annotations(list(classes), list(range(len(classes))), images, faults)


_NOT_VOC = (
    ElementTree.ParseError,
    AttributeError,
    TypeError,
    ValueError,
    OverflowError,
    LookupError,
)


class _NoDoctype(ElementTree.TreeBuilder):
    """A tree builder that rejects XML documents with a DOCTYPE.

    A DOCTYPE can declare entities, which can read other files or expand without bound.
    """

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ValueError(f"remove <!DOCTYPE {name}>")


def _parse(path: Path) -> ElementTree.Element:
    return ElementTree.parse(path, ElementTree.XMLParser(target=_NoDoctype())).getroot()


def _voc_image(root: Path, name: str, tree: ElementTree.Element) -> Image:
    width, height = (int(float(tree.findtext(f"size/{s}") or 0)) for s in ("width", "height"))
    image = Image(name, _voc_file(root, name, tree.findtext("filename")), width, height)
    for row in tree.findall("object"):
        ends = [float(_text(row, f"bndbox/{end}")) for end in ("xmin", "ymin", "xmax", "ymax")]
        x0, y0, x1, y1 = ends
        image.objects.append(
            Object(
                _text(row, "name").strip(),
                (x0 - 1, y0 - 1, x1, y1),
                ends,
                empty=not (x1 > x0 and y1 > y0),
                difficult=(row.findtext("difficult") or "0").strip() == "1",
            )
        )
    return image


def _text(row: ElementTree.Element, path: str) -> str:
    text = row.findtext(path)
    if text is None:
        raise ValueError(f"an object has no <{path}>")
    return text


def _voc_file(root: Path, name: str, given: str | None) -> Path:
    """Return the image file of an annotation.

    The candidates are `<name>.jpg`, as in VOC, the same name with other suffixes, and the file name
    in the annotation. Return the first candidate that exists, or else `<name>.jpg`.
    """
    folder = root / "JPEGImages"
    choices = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    choices += [folder / Path(given).name] if given else []
    return next((path for path in choices if path.is_file()), choices[0])
