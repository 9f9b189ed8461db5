"""Read folders of images and semantic masks, and the class index of each pixel.

A mask is an 8-bit PNG with one channel, gray or with a palette. Its values are class indices, and
255 marks pixels without a label. The colors of a palette have no meaning.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
from detectron2.utils.file_io import PathManager

from robust_backbones.core.errors import UserError
from robust_backbones.core.files import read_text
from robust_backbones.core.image_formats import describe_skipped, has_image_suffix
from robust_backbones.core.images import ImageError, decoding_errors, open_image, upright_size
from robust_backbones.detection.data.annotations import Annotations, Image, Mask, Problem

IGNORED = 255  # value of pixels without a label
CLASSES_FILE = "classes.txt"  # class names in the folder of the masks, one per line
_MODES = ("L", "P", "1")  # Pillow's modes of images with one channel of at most 8 bits
_INVALID = "It must be an 8-bit PNG with one channel, whose values are class indices."
_WORKERS = 8


def read_mask(mask: Mask, classes: int | None = None) -> np.ndarray:
    """Read the class index of each pixel.

    Args:
        mask: mask file.
        classes: number of classes; None to accept any index.

    Returns:
        Class indices `(H, W)`, uint8. Pixels without a label are `IGNORED`.

    Raises:
        UserError: the file is missing, damaged or not a mask, or has an index of at least
            `classes`.
    """
    path = mask.file
    with decoding_errors(path), PathManager.open(path, "rb") as file, open_image(file) as image:
        if fault := _fault(image):
            raise ImageError(f"mask {path} {fault}. {_INVALID}", reason=fault)
        found = np.array(image, np.uint8)
    if mask.reduce_zero_label:
        found = np.where(found == IGNORED, IGNORED, found - 1).astype(np.uint8)  # 0 becomes 255
    if classes is not None and (high := found[(found >= classes) & (found != IGNORED)]).size:
        raise UserError(f"mask {path}: {index_fault(int(high.max()), high.size, classes)}.")
    return found


def index_fault(index: int, pixels: int, classes: int) -> str:
    """Describe an index that no class has."""
    return (
        f"{pixels} pixels have an index of up to {index}, but the classes are 0 to {classes - 1}, "
        f"and {IGNORED} for pixels without a label"
    )


def _fault(image: PIL.Image.Image) -> str:
    """Return why an opened file is not a mask; empty if it is one."""
    if image.format != "PNG":
        return f"is a {image.format} file"
    arguments = str([tile.args for tile in image.tile])  # type: ignore[attr-defined]
    if image.mode not in _MODES or ";16" in arguments:
        return f"has mode {image.mode}"
    if "L;2" in arguments or "L;4" in arguments:  # Pillow scales these values to 0 to 255
        return "has fewer than 8 bits per pixel"
    return ""


def read_masks(
    images: Path, masks: Path, classes: Sequence[str] | None = None, reduce_zero_label: bool = False
) -> Annotations:
    """Pair images with masks of the same name, except for the extension. The pixels are not read.

    The class names are the lines of `classes.txt` in the folder of the masks, or else `classes`, or
    else the indices 0, 1, … up to the largest index in the masks.

    Args:
        images: folder of the images.
        masks: folder of the masks, PNG files.
        classes: class names in order, for folders without `classes.txt`; None if unknown.
        reduce_zero_label: whether the value 0 means no label, and class k has the value k + 1.

    Returns:
        The images, with sizes and masks. Files without a partner, sizes that differ and files that
        are not masks are problems.

    Raises:
        UserError: a folder does not exist or has no images or no PNG files, or `classes.txt` is
            invalid.
    """
    files, skipped = _files(images, "the images", has_image_suffix)
    by_stem, others = _files(masks, "the masks", lambda name: name.lower().endswith(".png"))
    found = Annotations(f"{images} and {masks}")
    for name, paths, missing in (
        ("image", set(files) - set(by_stem), f"no mask {masks}/{{}}.png"),
        ("mask", set(by_stem) - set(files), f"no image {{}} in {images}"),
    ):
        source = files if name == "image" else by_stem
        found.problems += [
            Problem("no partner", source[stem].name, missing.format(stem)) for stem in sorted(paths)
        ]
    strange = [name for name in (*skipped, *others) if name != CLASSES_FILE]
    if strange:
        found.problems.append(Problem("skipped", "", describe_skipped(strange)))
    stems = sorted(set(files) & set(by_stem))
    pairs = [(stem, files[stem], Mask(str(by_stem[stem]), reduce_zero_label)) for stem in stems]
    with ThreadPoolExecutor(_WORKERS) as pool:
        for image, problems in pool.map(_pair, pairs):
            found.problems += problems
            found.images += [image] if image else []
        listed = masks / CLASSES_FILE
        if listed.is_file():
            found.classes = _read_classes(listed)
        elif classes:
            found.classes = [*classes]
        else:
            found.classes = [*map(str, range(1 + max(pool.map(_largest, found.images), default=0)))]
    found.ids = [*range(len(found.classes))]
    return found


def _files(
    folder: Path, what: str, wanted: Callable[[str], bool]
) -> tuple[dict[str, Path], list[str]]:
    """Return the wanted files of a folder by stem, and the names of its other files.

    Raises:
        UserError: the folder does not exist or has no such file, or two have the same stem.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Give the folder of {what}.")
    names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found: dict[str, Path] = {}
    for path in names:
        if not wanted(path.name):
            continue
        if other := found.get(path.stem):
            raise UserError(
                f"{folder} has {other.name} and {path.name}. Remove one: images and masks are "
                "paired by their file names without the extension."
            )
        found[path.stem] = path
    rest = [path.name for path in names if path.name not in {p.name for p in found.values()}]
    if not found:
        has = f"It contains {describe_skipped(rest)}. " if rest else ""
        kind = "PNG files" if what == "the masks" else "images"
        raise UserError(f"{folder} has no {kind}. {has}Give the folder of {what}.")
    return found, rest


def _read_classes(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in read_text(file).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a list of class names ({error}).") from None
    while lines and not lines[-1]:
        lines.pop()
    if not lines or not all(lines) or len(set(lines)) < len(lines) or len(lines) > IGNORED:
        raise UserError(
            f"{file} has {len(lines)} lines, {len(set(lines) - {''})} of them different names. It "
            f"must have one name per class, each different, at most {IGNORED}."
        )
    return lines


def _pair(pair: tuple[str, Path, Mask]) -> tuple[Image | None, list[Problem]]:
    stem, path, mask = pair
    try:
        width, height = upright_size(path)
    except ImageError as error:
        return None, [Problem(error.kind, path.name, error.reason)]
    image = Image(stem, path, width, height, mask=mask)
    try:
        with decoding_errors(mask.file), open_image(mask.file) as opened:
            fault, size = _fault(opened), opened.size
    except ImageError as error:
        fault, size = error.reason, (width, height)
    if fault:
        return image, [Problem("invalid mask", mask.name, fault)]
    if size != (width, height):
        text = f"the mask has {size[0]} x {size[1]} pixels, the image {width} x {height}"
        return image, [Problem("wrong size", path.name, text)]
    return image, []


def _largest(image: Image) -> int:
    assert image.mask
    try:
        found = read_mask(image.mask)
    except UserError:  # the check reports it
        return 0
    return int(found[found != IGNORED].max(initial=0))


def count_pixels(found: Annotations) -> list[Problem]:
    """Count the pixels of each class in all masks, and store them as `Image.pixels`.

    Returns:
        Masks that cannot be read, and masks with an index that no class has.
    """
    problems: list[Problem] = []
    known = {p.image for p in found.problems if p.kind == "invalid mask"}
    with ThreadPoolExecutor(_WORKERS) as pool:
        for some in pool.map(partial(_count, len(found.classes), known), found.images):
            problems += some
    return problems


def _count(classes: int, known: set[str], image: Image) -> list[Problem]:
    assert image.mask
    name, image.pixels = image.mask.name, [0] * classes
    if name in known:
        return []
    try:
        counts = np.bincount(read_mask(image.mask).ravel(), minlength=256).tolist()
    except ImageError as error:
        return [Problem("invalid mask", name, error.reason)]
    image.pixels = counts[:classes]
    if excess := sum(counts[classes:IGNORED]):
        highest = max(index for index in range(classes, IGNORED) if counts[index])
        return [Problem("unknown class", name, index_fault(highest, excess, classes))]
    if not sum(image.pixels):
        return [Problem("no labels", name, "no pixel has a label")]
    return []


def to_dict(image: Image) -> dict:
    """Convert an image with a mask to Detectron2's dictionary.

    The key `reduce_zero_label` is this project's. Detectron2 ignores it.
    """
    assert image.mask
    return {
        "file_name": str(image.file),
        "image_id": image.id,
        "width": image.width,
        "height": image.height,
        "sem_seg_file_name": image.mask.file,
        "reduce_zero_label": image.mask.reduce_zero_label,
    }


def mask_of(item: dict) -> Mask:
    """Return the mask of a Detectron2 dictionary with `sem_seg_file_name`."""
    return Mask(str(item["sem_seg_file_name"]), item.get("reduce_zero_label", False))


def digest(mask: Mask) -> str:
    """Return the SHA-256 of a mask file, and of the meaning of its values."""
    with PathManager.open(mask.file, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest() + "-1" * mask.reduce_zero_label
