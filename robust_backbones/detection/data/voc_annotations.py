"""Read datasets with VOC's XML files, including invalid annotations."""

import contextlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data.annotations import Annotations, Image, Object, Problem
from robust_backbones.detection.data.voc_layout import SUFFIXES, Layout, find_layout, read_split

# Values of <difficult>. Some tools write words.
_FLAGS = {"": False, "0": False, "1": True, "false": False, "true": True}


def read_voc(root: Path, split: str, classes: list[str] | None = None) -> Annotations:
    """Read a split of a dataset with VOC's XML files. Its class names may differ from VOC's.

    VOC counts pixels from 1, and a box includes its last pixel. A box from 1 to W covers an image
    of width W. As in Detectron2, it is converted to a box from 0 to W.

    Args:
        root: folder of the dataset; see `voc_layout.find_layout`.
        split: name of the split; see `voc_layout.read_split`.
        classes: class names, in order; None to use the names in all splits, sorted. The order is
            then the same for each split.

    Raises:
        UserError: a file does not exist, or is not in VOC's format.
    """
    layout = find_layout(Path(root))
    chosen = read_split(layout, split)
    found = Annotations(f"{root}, split {split}", problems=list(chosen.problems))
    labels = {}  # class names of the objects of each image
    for name in chosen.names:
        with _parsed(layout, name, chosen.source) as tree:
            found.images.append(_voc_image(layout.images, name, tree))
            labels[name] = _labels(tree)
    if classes is None:
        names = {label for some in labels.values() for label in some}
        for name in set(layout.names()) - labels.keys():
            with _parsed(layout, name, layout.root) as tree:
                names.update(_labels(tree))
        classes = sorted(names - {""})
    found.classes, found.ids = list(classes), list(range(len(classes)))
    indices = {name: index for index, name in enumerate(classes)}
    for image, some in zip(found.images, labels.values(), strict=True):
        for number, (thing, label) in enumerate(zip(image.objects, some, strict=True)):
            thing.class_index = indices.get(label)
            if thing.class_index is None:
                text = f"object {number} has class '{label}', which is not listed"
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


@contextlib.contextmanager
def _parsed(layout: Layout, name: str, source: Path) -> Iterator[ElementTree.Element]:
    """Yield the XML of an image, and convert errors in the file to a UserError.

    Args:
        layout: folders of the dataset.
        name: name of the image.
        source: split file or folder that lists the image, for the error message.
    """
    path = layout.xml(name)
    try:
        yield ElementTree.parse(path, ElementTree.XMLParser(target=_NoDoctype())).getroot()
    except FileNotFoundError:
        raise UserError(
            f"{source} lists '{name}', but {path} does not exist. List the names of XML files "
            "without the extension."
        ) from None
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror}).") from None
    except _NOT_VOC as error:
        raise UserError(f"{path} is not a VOC annotation ({error}).") from None


def _labels(tree: ElementTree.Element) -> list[str]:
    """Return the class names of the objects."""
    return [_text(row, "name").strip() for row in tree.findall("object")]


def _voc_image(folder: Path, name: str, tree: ElementTree.Element) -> Image:
    width, height = (int(float(tree.findtext(f"size/{s}") or 0)) for s in ("width", "height"))
    image = Image(name, _voc_file(folder, name, tree.findtext("filename")), width, height)
    for row in tree.findall("object"):
        ends = [float(_text(row, f"bndbox/{end}")) for end in ("xmin", "ymin", "xmax", "ymax")]
        x0, y0, x1, y1 = ends
        image.objects.append(
            Object(
                None,  # `read_voc` sets the class
                (x0 - 1, y0 - 1, x1, y1),
                ends,
                empty=not (x1 > x0 and y1 > y0),
                difficult=_FLAGS[(row.findtext("difficult") or "").strip().lower()],
            )
        )
    return image


def _text(row: ElementTree.Element, path: str) -> str:
    text = row.findtext(path)
    if text is None:
        raise ValueError(f"an object has no <{path}>")
    return text


def _voc_file(folder: Path, name: str, given: str | None) -> Path:
    """Return the image file of an annotation.

    The candidates are `<name>.jpg`, as in VOC, the same name with other suffixes, and the file name
    in the annotation. Return the first candidate that exists, or else `<name>.jpg`.
    """
    choices = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    choices += [folder / re.split(r"[\\/]", given)[-1]] if given else []
    return next((path for path in choices if path.is_file()), choices[0])
