"""Read datasets in VOC's layout, including invalid annotations."""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from robust_backbones.core.errors import UserError
from robust_backbones.core.files import read_text
from robust_backbones.detection.data.annotations import Annotations, Image, Object, Problem, inside

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
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"{root} is not a folder. Give the folder of ImageSets/, Annotations/ and JPEGImages/."
        )
    listed = root / "ImageSets" / "Main" / f"{split}.txt"
    try:
        names = [line.split()[0] for line in read_text(listed).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        splits = ", ".join(sorted(p.stem for p in listed.parent.glob("*.txt")))
        fix = f"Choose from {splits}" if splits else "Give a folder in VOC's layout, with splits"
        raise UserError(f"split '{split}' does not exist in {listed.parent}. {fix}.") from None
    try:
        for name in names:
            inside(root, name)
    except ValueError as error:
        raise UserError(f"{listed}: {error}.") from None
    found = Annotations(list(classes or ()), [], [])
    found.problems += [
        Problem("duplicate id", "", f"{name} is listed twice in {listed}")
        for name, count in sorted(Counter(names).items())
        if count > 1
    ]
    labels = []  # class names of the objects of each image
    for name in dict.fromkeys(names):
        path = root / "Annotations" / f"{name}.xml"
        try:
            tree = _parse(path)
            found.images.append(_voc_image(root, name, tree))
            labels.append([_text(row, "name").strip() for row in tree.findall("object")])
        except FileNotFoundError:
            raise UserError(f"{listed} lists {name}, but {path} does not exist.") from None
        except OSError as error:
            raise UserError(f"{path}: the file cannot be read ({error.strerror}).") from None
        except _NOT_VOC as error:
            raise UserError(f"{path} is not a VOC annotation ({error}).") from None
    if classes is None:
        found.classes = sorted({name for names in labels for name in names if name})
    found.ids = list(range(len(found.classes)))
    indices = {name: index for index, name in enumerate(found.classes)}
    for image, names in zip(found.images, labels, strict=True):
        for number, (thing, name) in enumerate(zip(image.objects, names, strict=True)):
            thing.class_index = indices.get(name)
            if thing.class_index is None:
                text = f"object {number} has class '{name}', which is not listed"
                found.problems.append(Problem("unknown class", image.file.name, text))
    return found


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
                None,  # `read_voc` sets the class
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
