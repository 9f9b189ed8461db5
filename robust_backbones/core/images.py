"""Decode image files to RGB and describe their properties. Every command reads images with it.

Files are untrusted: they may be damaged, claim any number of pixels, or not be images at all.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from robust_backbones.core.errors import UserError
from robust_backbones.core.image_formats import FORMATS, OPTIONAL, decoders

# First bytes of a file that no decoder recognizes -> kind of file, fix.
_FOREIGN = (
    (rb"....ftyp(hei|hev|mif1|msf1)", "a HEIC image", f"Run: {OPTIONAL['HEIF'][1]}"),
    (rb"....ftypavi", "an AVIF image", f"Run: {OPTIONAL['AVIF'][1]}"),
    (rb"version https://git-lfs", "a Git LFS pointer", "Run: git lfs pull"),
    (rb"\s*<", "HTML or XML", "Replace or remove it."),
    (rb"$", "empty file", "Replace or remove it."),
)

# Maps a kind of finding to (level, predicate of "images"). Both dataset checks report these kinds.
# Data with an error is unusable.
FINDINGS = {
    "missing file": ("error", "do not exist"),
    "unreadable": ("error", "cannot be decoded"),
    "truncated": ("error", "are truncated"),
    "deep": ("error", "have more than 8 bits per channel; set the range of their values"),
    "scaled": ("warning", "have more than 8 bits per channel, and are scaled to 8 bits"),
    "format": ("warning", "do not have the format of their file extension"),
    "turned": ("warning", "are rotated or mirrored as their EXIF orientation specifies"),
    "bad orientation": ("warning", "have an invalid EXIF orientation, which is ignored"),
    "gray": ("warning", "are grayscale, and are converted to three equal channels"),
    "cmyk": ("warning", "are CMYK, and are converted to RGB without a color profile"),
    "transparent": ("warning", "have an alpha channel, which is dropped"),
    "animated": ("warning", "have several frames or pages, and only the first is used"),
}
_DEEP_MODES = {"I": 32, "F": 32, "I;16": 16, "I;16B": 16, "I;16L": 16, "I;16N": 16}

_ORIENTATION = 0x0112  # EXIF tag of the orientation, which is 1 for upright images
TURNS = {  # orientation -> how to turn the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Decoding:
    """Settings that change the pixels of decoded images.

    Attributes:
        values: values that become 0 and 255 in images with more than 8 bits per channel. Values
            outside are clipped. None or empty: such images are an error.
        upright: whether to apply the EXIF orientation. Pillow always applies it to TIFF images.
        option: option that sets `values`, for error messages.
    """

    values: Sequence[float] | None = None
    upright: bool = True
    option: str = field(default="--image-range MIN MAX", compare=False)

    def __post_init__(self) -> None:
        """Check the values, and store them as a tuple.

        Raises:
            UserError: `values` are not two finite numbers in ascending order.
        """
        found = tuple(self.values) if self.values else None
        object.__setattr__(self, "values", found)
        if found is not None and not (
            len(found) == 2 and all(map(_is_finite, found)) and found[0] < found[1]
        ):
            raise UserError(
                f"{self.option.split()[0]} {' '.join(map(str, found))}: give two finite numbers, "
                "the values that become black and white, such as 0 65535."
            )


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


class ImageError(UserError):
    """An image file that cannot be used.

    Attributes:
        kind: key of `FINDINGS`.
        reason: description without the name of the file.
    """

    def __init__(self, message: str, kind: str = "unreadable", reason: str = ""):
        super().__init__(message)
        self.kind, self.reason = kind, reason


@dataclass(frozen=True)
class ImageFacts:
    """Properties of an image file.

    Attributes:
        format: Pillow's name of the file format.
        mode: Pillow's mode.
        orientation: EXIF orientation as stored; 1 if the file has none.
        frames: number of frames or pages.
        transparent: whether the image has an alpha channel or a transparent color.
    """

    format: str
    mode: str
    orientation: int
    frames: int
    transparent: bool

    def findings(self, suffix: str, decoding: Decoding) -> Iterator[tuple[str, str]]:
        """Yield the unusual properties as pairs (key of `FINDINGS`, detail).

        Args:
            suffix: file extension, such as `.jpg`.
            decoding: settings of the reader.
        """
        if self.format not in FORMATS.get(suffix.lower(), (self.format,)):
            yield "format", f"it is {self.format}"
        if self.orientation in TURNS and decoding.upright:
            yield "turned", f"orientation {self.orientation}"
        elif self.orientation not in TURNS and self.orientation not in (0, 1):
            yield "bad orientation", f"orientation {self.orientation}"
        if self.mode in ("1", "L", "LA"):
            yield "gray", f"mode {self.mode}"
        if self.mode == "CMYK":
            yield "cmyk", "mode CMYK"
        if self.transparent:
            yield "transparent", f"mode {self.mode}"
        if self.frames > 1 and self.format != "MPO":  # the other frames of MPO are previews
            yield "animated", f"{self.frames} frames"


@dataclass(frozen=True)
class Examined:
    """The result of checking an image file.

    Attributes:
        image: RGB image as a run would use it; None if it cannot be used.
        findings: pairs (key of `FINDINGS`, detail).
    """

    image: Image.Image | None
    findings: list[tuple[str, str]]


def decode(
    file: str | Path | IO[bytes], name: object = "", decoding: Decoding | None = None
) -> Image.Image:
    """Decode the first frame of an image file to RGB.

    Args:
        file: path or open file.
        name: name of the image in error messages (default: the path).
        decoding: settings (default: images with more than 8 bits per channel are an error).

    Raises:
        ImageError: the file is missing, damaged or not an image, claims too many pixels, or has
            more than 8 bits per channel although no range of values is given.
    """
    name, decoding = name or file, decoding or Decoding()
    with decoding_errors(name), open_image(file) as image:
        bits = _bits(image)
        image.load()
        return _turned(_to_rgb(image, bits, file, name, decoding), image, decoding)


def examine(path: Path, decoding: Decoding | None = None) -> Examined:
    """Decode an image file and find its unusual properties."""
    decoding = decoding or Decoding()
    found: list[tuple[str, str]] = []
    try:
        with decoding_errors(path), open_image(path) as image:
            bits, frames = _bits(image), getattr(image, "n_frames", 1)
            stored = orientation(image) if image.format == "TIFF" else 0
            image.load()
            facts = ImageFacts(
                image.format or "",
                image.mode,
                stored or orientation(image),
                frames,
                image.has_transparency_data,
            )
            found += facts.findings(path.suffix, decoding)
            rgb = _to_rgb(image, bits, path, path, decoding)
            found += [("scaled", f"{bits} bits")] if bits > 8 else []
            return Examined(_turned(rgb, image, decoding), found)
    except ImageError as error:
        return Examined(None, [*found, (error.kind, error.reason)])


def from_pillow(image: Image.Image, decoding: Decoding | None = None) -> Image.Image:
    """Convert a Pillow image to RGB, with the checks of `decode`. Ignore its EXIF orientation.

    Raises:
        ImageError: the image cannot be converted, as for `decode`.
    """
    with decoding_errors("the image"):
        bits = _bits(image)
        image.load()
        return _to_rgb(image, bits, None, "the image", decoding or Decoding())


@contextlib.contextmanager
def decoding_errors(name: object) -> Iterator[None]:
    """Convert all decoder exceptions in the block to an ImageError that names the image.

    Args:
        name: name of the image in the error message.

    Raises:
        ImageError: the file is missing, damaged, or claims too many pixels.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        message = f"image '{name}' does not exist. Correct the path, or restore the file."
        raise ImageError(message, "missing file", "it does not exist") from None
    except Exception as error:  # decoders raise exceptions of any type on damaged files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        fix = "Replace or remove it."
        if isinstance(error, _Foreign):
            reason, fix = error.args
        kind = "truncated" if "truncated" in reason.lower() else "unreadable"
        message = f"{name} cannot be read as an image ({reason}). {fix}"
        raise ImageError(
            message, kind, reason if fix.startswith("Re") else f"{reason}. {fix}"
        ) from None


class _Foreign(Exception):
    """A file that no decoder recognizes. Arguments: reason, fix."""


@contextlib.contextmanager
def open_image(file: str | Path | IO[bytes]) -> Iterator[Image.Image]:
    """Open an image file without decoding it, and check its number of pixels."""
    try:
        image = Image.open(file, formats=decoders())
    except UnidentifiedImageError:
        head = _contents(file, 32)
        for pattern, what, fix in _FOREIGN:
            if re.match(pattern, head, re.DOTALL):
                raise _Foreign(what, fix) from None
        raise _Foreign("unknown image format", "Replace or remove it.") from None
    with image:
        check_size(image)
        yield image


def _contents(file: str | Path | IO[bytes], count: int = -1) -> bytes:
    if isinstance(file, (str, Path)):
        with open(file, "rb") as opened:
            return opened.read(count)
    file.seek(0)
    return file.read(count)


def check_size(image: Image.Image) -> None:
    """Reject an image that would need gigabytes of memory.

    A file of a few bytes can claim any number of pixels. Pillow only
    warns about images with up to twice the allowed number of pixels.

    Raises:
        ValueError: the image has more than `PIL.Image.MAX_IMAGE_PIXELS` pixels.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:
        raise ValueError(
            f"{image.width} x {image.height} pixels exceed the limit of {limit} pixels, "
            "PIL.Image.MAX_IMAGE_PIXELS"
        )


def _bits(image: Image.Image) -> int:
    """Return the number of bits per channel. Call it before the image is loaded.

    Pillow reduces some images with several channels to 8 bits while it loads them.
    """
    arguments = [tile.args for tile in image.tile] if isinstance(image, ImageFile) else []
    if image.format in ("PNG", "PPM") and any(";16" in str(each) for each in arguments):
        return 16
    if image.mode in _DEEP_MODES:
        return _DEEP_MODES[image.mode]
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))  # type: ignore[attr-defined]
    if image.format == "PPM" and isinstance(arguments[0], tuple):
        return int(arguments[0][-1]).bit_length()  # the largest value
    if image.format == "JPEG2000" and isinstance(image, ImageFile) and image.fp:
        head = _contents(image.fp, 256)
        at = head.find(b"ihdr")
        return (head[at + 14 if at > 0 else 42] & 0x7F) + 1
    return 8


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation as stored, 1 if the file has none.

    Only the keys of `TURNS` are valid. Pillow applies the orientation of TIFF images when it loads
    them.
    """
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data raise exceptions of any type; the pixels are still valid
        return 1
    return found if isinstance(found, int) else -1


def upright_size(path: Path) -> tuple[int, int]:
    """Read the width and height of an image from its header, as `decode` returns the image.

    Raises:
        ImageError: the file is missing or not an image, or claims too many pixels.
    """
    with decoding_errors(path), open_image(path) as image:
        swapped = orientation(image) in (5, 6, 7, 8) and image.format != "TIFF"
        return image.size[::-1] if swapped else image.size


def _turned(rgb: Image.Image, image: Image.Image, decoding: Decoding) -> Image.Image:
    turn = TURNS.get(orientation(image)) if decoding.upright else None
    return rgb if turn is None else rgb.transpose(turn)


def _to_rgb(
    image: Image.Image,
    bits: int,
    file: str | Path | IO[bytes] | None,
    name: object,
    decoding: Decoding,
) -> Image.Image:
    """Convert a loaded image to RGB, ignoring its EXIF orientation.

    Args:
        image: loaded image.
        bits: number of bits per channel.
        file: file of the image, if there is one.
        name, decoding: as for `decode`.
    """
    if bits <= 8:
        return image.convert("RGB")
    values = _deep_values(image, file)
    if not np.isfinite(values).all():
        raise ValueError("some values are not finite")
    if decoding.values is None:
        found = f"{bits} bits per channel, with values from {values.min():g} to {values.max():g}"
        raise ImageError(
            f"{name} has {found}. Only 8 bits are read unchanged. Give the values that become "
            f"black and white: {decoding.option}.",
            "deep",
            found,
        )
    low, high = decoding.values
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8)).convert("RGB")


def _deep_values(image: Image.Image, file: str | Path | IO[bytes] | None) -> np.ndarray:
    """Return the values of an image with more than 8 bits, `(H, W)` or `(H, W, 3)` RGB.

    Pillow reduces several channels to 8 bits, and changes the values of PPM files.
    """
    if image.mode in _DEEP_MODES and image.format != "PPM":
        return np.asarray(image)
    if file is None or image.mode not in ("I", "RGB", "RGBA"):
        raise ValueError(f"more than 8 bits per channel in mode {image.mode} are not supported")
    values = cv2.imdecode(np.frombuffer(_contents(file), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.itemsize < 2:
        raise ValueError("more than 8 bits per channel in this format are not supported")
    return values if values.ndim == 2 else values[:, :, 2::-1]
