"""Image formats: their file extensions, and which of them this installation can decode."""

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Iterable

from PIL import Image, features

# Maps a file extension to Pillow's names of the formats that use it. No other decoder is used: the
# one for EPS, for example, would run the program Ghostscript.
FORMATS = {
    ".jpg": ("JPEG", "MPO"),
    ".jpeg": ("JPEG", "MPO"),
    ".jfif": ("JPEG", "MPO"),
    ".png": ("PNG",),
    ".bmp": ("BMP",),
    ".webp": ("WEBP",),
    ".gif": ("GIF",),
    ".tif": ("TIFF",),
    ".tiff": ("TIFF",),
    ".ppm": ("PPM",),
    ".pgm": ("PPM",),
    ".pbm": ("PPM",),
    ".pnm": ("PPM",),
    ".avif": ("AVIF",),
    ".heic": ("HEIF",),
    ".heif": ("HEIF",),
    ".jp2": ("JPEG2000",),
    ".tga": ("TGA",),  # last, because TGA files have no signature
}
# Formats that some installations of Pillow cannot decode: name in `PIL.features`, and the fix.
OPTIONAL = {
    "AVIF": ("avif", "pip install --upgrade pillow"),
    "HEIF": (None, "pip install pillow-heif"),
    "JPEG2000": ("jpg_2000", "pip install --upgrade pillow"),
    "WEBP": ("webp", "pip install --upgrade pillow"),
}


@functools.cache
def decoders() -> tuple[str, ...]:
    """Return Pillow's names of the formats in `FORMATS` that this installation can decode."""
    with contextlib.suppress(ImportError):
        import pillow_heif  # optional, installed by the user; no other package decodes HEIC

        pillow_heif.register_heif_opener()
    Image.init()
    names = dict.fromkeys(name for names in FORMATS.values() for name in names)
    features_of = {name: feature for name, (feature, _) in OPTIONAL.items() if feature}
    return tuple(
        name
        for name in names
        if name in Image.OPEN and (name not in features_of or features.check(features_of[name]))
    )


@functools.cache
def _suffixes() -> frozenset[str]:
    return frozenset(suffix for suffix, names in FORMATS.items() if names[0] in decoders())


def has_image_suffix(name: str) -> bool:
    """Return whether a file name has the extension of a format that this installation decodes."""
    return os.path.splitext(name)[1].lower() in _suffixes()


def missing_decoder(name: str) -> str:
    """Return the command that installs the decoder of a file, or an empty string."""
    formats = FORMATS.get(os.path.splitext(name)[1].lower(), ("",))
    return OPTIONAL[formats[0]][1] if formats[0] in OPTIONAL else ""


def describe_skipped(names: Iterable[str]) -> str:
    """Count skipped files by extension, such as `2 .heic (pip install pillow-heif), 1 .txt`."""
    counts = Counter(os.path.splitext(name)[1].lower() for name in names)
    return ", ".join(
        f"{count} {suffix or 'without extension'}"
        + (f" ({fix})" if (fix := missing_decoder(suffix and f"x{suffix}")) else "")
        for suffix, count in counts.most_common()
    )
