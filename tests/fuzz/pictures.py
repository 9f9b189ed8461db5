"""Images of many formats."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from classification.datasets.image_files import read_fast
from robust_backbones.core.errors import UserError
from robust_backbones.core.images import Decoding, decode
from robust_backbones.detection.data import annotations, validate
from robust_backbones.detection.inspect import predictor
from tests.fuzz.cases import Seed
from tests.support.image_files import KINDS


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG header that claims the given number of pixels, without data."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def image_seeds(folder: Path) -> list[Seed]:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 13, 3), np.uint8)
    rgb = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [rgb.convert("P"), rgb.convert("L").convert("P")]
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    many = {"save_all": True, "append_images": frames}
    seeds = [
        ("jpg", encoded(rgb, "jpeg", exif=exif)),
        ("jpg", encoded(rgb, "jpeg", progressive=True)),
        ("jpg", encoded(rgb.convert("CMYK"), "jpeg")),
        ("jpg", encoded(rgb.convert("L"), "jpeg")),
        ("png", encoded(rgb, "png")),
        ("png", encoded(frames[0], "png", transparency=3)),
        ("png", encoded(deep, "png")),
        ("png", encoded(rgb.convert("1"), "png")),
        ("png", encoded(rgb.convert("RGBA"), "png", **many)),
        ("png", bomb(30_000, 30_000)),
        ("png", bomb(2**31 - 1, 2**31 - 1)),
        ("png", bomb(13_000, 13_000)),
        ("gif", encoded(frames[0], "gif", **many)),
        ("webp", encoded(rgb, "webp", **many)),
        ("webp", encoded(rgb, "webp", lossless=True, exif=exif)),
        ("bmp", encoded(rgb, "bmp")),
        ("tif", encoded(rgb, "tiff", compression="tiff_lzw")),
        ("tif", encoded(deep, "tiff")),
        ("tif", encoded(rgb, "tiff", exif=exif)),
        ("ppm", encoded(rgb, "ppm")),
        ("ppm", b"P3\n2 2\n255\n" + b"1 2 3 " * 4),
        ("pgm", encoded(rgb.convert("L"), "ppm")),
        ("jpg", encoded(rgb, "jpeg2000")),
        ("png", encoded(rgb, "ico")),
        ("jpg", b""),
        ("jpg", encoded(rgb, "tga")),
        ("png", encoded(frames[0], "pcx")),
    ]
    seeds += [(kind.suffix[1:], kind.data) for kind in KINDS if kind.scaled is not None]
    seeds += [
        (ending, encoded(rgb, kind)) for ending, kind in (("avif", "avif"), ("jp2", "jpeg2000"))
    ]
    return [Seed(f"x.{ending}", data) for ending, data in seeds]


def read_images(folder: Path, path: Path) -> None:
    """Read the file with every reader, then raise the first error."""
    refused = []
    for read in (
        lambda: decode(path),
        lambda: decode(path, decoding=Decoding((0, 65535))),
        lambda: read_fast(path, 2),
        lambda: predictor.as_array(path),
    ):
        try:
            read()
        except UserError as error:
            refused.append(error)
    validate.check(
        annotations.Annotations("x", images=[annotations.Image(1, path, 8, 8)]), workers=1
    )
    if refused:
        raise refused[0]
