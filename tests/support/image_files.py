"""Image files of every kind, with the pixels that a reader must return."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (24, 32, 3), np.uint8)  # 32 x 24 pixels
GRAY = RGB[..., 1]
DEEP = RNG.integers(0, 4096, (24, 32, 3)).astype(np.uint16)
RANGE = (0.0, 4095.0)


def scaled(values: np.ndarray) -> np.ndarray:
    """Scale `RANGE` to 0 to 255, `(H, W, 3)` uint8."""
    found = np.floor(values / RANGE[1] * 255 + 0.5).clip(0, 255).astype(np.uint8)
    return three(found) if found.ndim == 2 else found


def three(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, 2)


def pillow(form: str, image: Image.Image | None = None, **options) -> bytes:
    file = io.BytesIO()
    (image or Image.fromarray(RGB)).save(file, form, **options)
    return file.getvalue()


def opencv(suffix: str, pixels: np.ndarray) -> bytes:
    found, data = cv2.imencode(suffix, pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    assert found
    return data.tobytes()


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def gray_alpha_16(gray: np.ndarray) -> bytes:
    """A PNG with two channels of 16 bits, which neither library writes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + np.stack([row, row[::-1]], -1).astype(">u2").tobytes() for row in gray)
    head = struct.pack(">IIBBBBB", gray.shape[1], gray.shape[0], 16, 4, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def long_exif(orientation: int) -> bytes:
    """An orientation of 32 bits, such as 65537, which Pillow does not write."""
    data = pillow("JPEG", exif=exif(6), quality=95)
    short = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0), struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    order = "<" if short[0] in data else ">"
    old = short[order == ">"]
    assert data.count(old) == 1
    return data.replace(old, struct.pack(f"{order}HHII", 0x0112, 4, 1, orientation))


@dataclass(frozen=True)
class Kind:
    """A kind of image file.

    Attributes:
        title: name in tables.
        suffix: file extension.
        data: contents of the file.
        findings: kinds of findings that a check reports.
        pixels: pixels that a reader returns, `(H, W, 3)` uint8; None: the file cannot be used
            without a range of values, or at all.
        scaled: pixels that a reader returns if `RANGE` is given; None: as `pixels`.
    """

    title: str
    suffix: str
    data: bytes
    findings: tuple[str, ...] = ()
    pixels: np.ndarray | None = None
    scaled: np.ndarray | None = None

    def write(self, folder: Path, stem: str = "a") -> Path:
        path = folder / f"{stem}{self.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.data)
        return path


def _decoded(data: bytes, convert: Callable = lambda image: image.convert("RGB")) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(convert(image))


def _plain(title: str, suffix: str, data: bytes, *findings: str) -> Kind:
    """A kind with the pixels of Pillow's own conversion."""
    return Kind(title, suffix, data, findings, _decoded(data))


def _deep(title: str, suffix: str, data: bytes, values: np.ndarray, *findings: str) -> Kind:
    return Kind(title, suffix, data, ("deep", *findings), None, scaled(values))


def _turned(title: str, suffix: str, form: str, turn: int, **options) -> Kind:
    """A file whose stored pixels, turned upright, are `RGB`."""
    upright = Image.fromarray(RGB)
    stored = {
        2: lambda: np.flip(RGB, 1),
        3: lambda: np.rot90(RGB, 2),
        4: lambda: np.flip(RGB, 0),
        5: lambda: RGB.transpose(1, 0, 2),
        6: lambda: np.rot90(RGB),
        7: lambda: np.rot90(RGB.transpose(1, 0, 2), 2),
        8: lambda: np.rot90(RGB, -1),
    }[turn]()
    data = pillow(form, Image.fromarray(np.ascontiguousarray(stored)), exif=exif(turn), **options)
    return Kind(title, suffix, data, ("turned",), np.asarray(upright))


_FRAMES = {"save_all": True, "append_images": [Image.fromarray(RGB).rotate(180)]}
_PALETTE = Image.fromarray(RGB).convert("P")
KINDS = (
    _plain("JPEG", ".jpg", pillow("JPEG")),
    _plain("PNG", ".png", pillow("PNG")),
    _plain("WebP", ".webp", pillow("WEBP", lossless=True)),
    _plain("BMP", ".bmp", pillow("BMP")),
    _plain("TIFF", ".tif", pillow("TIFF")),
    _plain("PPM", ".ppm", pillow("PPM")),
    _plain("AVIF", ".avif", pillow("AVIF")),
    _plain("JPEG 2000", ".jp2", pillow("JPEG2000")),
    _plain("TGA", ".tga", pillow("TGA")),
    _plain("GIF", ".gif", pillow("GIF", _PALETTE)),
    _plain("animated GIF", ".gif", pillow("GIF", _PALETTE, **_FRAMES), "animated"),
    _plain("animated WebP", ".webp", pillow("WEBP", **_FRAMES), "animated"),
    _plain("TIFF with several pages", ".tif", pillow("TIFF", **_FRAMES), "animated"),
    _plain("black and white", ".png", pillow("PNG", Image.fromarray(GRAY).convert("1")), "gray"),
    _plain("gray", ".jpg", pillow("JPEG", Image.fromarray(GRAY)), "gray"),
    _plain(
        "gray with alpha",
        ".png",
        pillow("PNG", Image.fromarray(GRAY).convert("LA")),
        "gray",
        "transparent",
    ),
    _plain("palette", ".png", pillow("PNG", _PALETTE)),
    _plain(
        "palette with transparency", ".png", pillow("PNG", _PALETTE, transparency=3), "transparent"
    ),
    _plain("RGBA", ".png", pillow("PNG", Image.fromarray(RGB).convert("RGBA")), "transparent"),
    _plain("CMYK", ".jpg", pillow("JPEG", Image.fromarray(RGB).convert("CMYK")), "cmyk"),
    _plain("CMYK TIFF", ".tif", pillow("TIFF", Image.fromarray(RGB).convert("CMYK")), "cmyk"),
    _plain("YCbCr TIFF", ".tif", pillow("TIFF", Image.fromarray(RGB).convert("YCbCr"))),
    _plain("PNG named .jpg", ".jpg", pillow("PNG"), "format"),
    *(_turned(f"EXIF orientation {turn}", ".png", "PNG", turn) for turn in range(2, 9)),
    _turned("TIFF with EXIF orientation", ".tif", "TIFF", 6),
    _turned("WebP with EXIF orientation", ".webp", "WEBP", 6, lossless=True),
    _plain("EXIF orientation 65537", ".jpg", long_exif(65537), "bad orientation"),
    _plain("EXIF orientation 9", ".png", pillow("PNG", exif=exif(9)), "bad orientation"),
    _deep("16-bit gray PNG", ".png", opencv(".png", DEEP[..., 0]), DEEP[..., 0]),
    _deep("16-bit RGB PNG", ".png", opencv(".png", DEEP), DEEP),
    _deep(
        "16-bit gray PNG with alpha",
        ".png",
        gray_alpha_16(DEEP[..., 0]),
        DEEP[..., 0],
        "transparent",
    ),
    _deep("16-bit gray TIFF", ".tif", opencv(".tif", DEEP[..., 0]), DEEP[..., 0]),
    _deep("16-bit RGB TIFF", ".tif", opencv(".tif", DEEP), DEEP),
    _deep("16-bit PGM", ".pgm", opencv(".pgm", DEEP[..., 0]), DEEP[..., 0]),
    _deep("16-bit PPM", ".ppm", opencv(".ppm", DEEP), DEEP),
    _deep(
        "12-bit PGM",
        ".pgm",
        b"P5 32 24 4095\n" + DEEP[..., 0].astype(">u2").tobytes(),
        DEEP[..., 0],
    ),
    _deep(
        "16-bit JPEG 2000",
        ".jp2",
        pillow("JPEG2000", Image.fromarray(DEEP[..., 0]), irreversible=False),
        DEEP[..., 0],
    ),
    _deep(
        "32-bit integer TIFF",
        ".tif",
        pillow("TIFF", Image.fromarray(DEEP[..., 0].astype(np.int32))),
        DEEP[..., 0],
    ),
    _deep(
        "float TIFF",
        ".tif",
        pillow("TIFF", Image.fromarray(DEEP[..., 0].astype(np.float32))),
        DEEP[..., 0],
    ),
    Kind(
        "float TIFF with NaN",
        ".tif",
        pillow("TIFF", Image.fromarray(np.full((24, 32), np.nan, np.float32))),
        ("unreadable",),
    ),
    Kind("truncated JPEG", ".jpg", pillow("JPEG")[:600], ("truncated",)),
    Kind(
        "damaged PNG", ".png", pillow("PNG").replace(b"IDAT", b"IDAT" + bytes(9)), ("unreadable",)
    ),
    Kind("empty file", ".jpg", b"", ("unreadable",)),
    Kind("HTML page", ".jpg", b"<html>404", ("unreadable",)),
    Kind(
        "Git LFS pointer", ".jpg", b"version https://git-lfs.github.com/spec/v1\n", ("unreadable",)
    ),
    Kind("HEIC without its plugin", ".heic", b"\0\0\0\x18ftypheic" + bytes(40), ("unreadable",)),
    Kind(
        "EPS named .jpg",
        ".jpg",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        ("unreadable",),
    ),
)
BY_TITLE = {kind.title: kind for kind in KINDS}
assert len(BY_TITLE) == len(KINDS)
