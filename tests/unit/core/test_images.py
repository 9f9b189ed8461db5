"""Decode every kind of image file. Compare with Pillow and with the values that were written."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from robust_backbones.core import images
from robust_backbones.core.errors import UserError
from robust_backbones.core.images import Decoding, ImageError, decode, examine
from tests.support.image_files import (
    BY_TITLE,
    DEEP,
    KINDS,
    RANGE,
    RGB,
    exif,
    opencv,
    pillow,
    scaled,
)

TITLES = [kind.title for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS, ids=TITLES)
def test_each_kind_gives_its_pixels_and_findings(tmp_path, kind):
    path = kind.write(tmp_path)
    examined = examine(path)
    assert sorted(name for name, _ in examined.findings) == sorted(kind.findings)
    if kind.pixels is None:
        with pytest.raises(ImageError, match=str(path)) as refused:
            decode(path)
        assert examined.image is None and refused.value.kind in kind.findings
    else:
        for image in (examined.image, decode(path), decode(io.BytesIO(kind.data), "a")):
            assert image.mode == "RGB" and np.array_equal(np.asarray(image), kind.pixels)


@pytest.mark.parametrize("kind", KINDS, ids=TITLES)
def test_a_range_of_values_scales_images_with_more_than_8_bits_only(tmp_path, kind):
    examined = examine(kind.write(tmp_path), Decoding(RANGE))
    expected = kind.pixels if kind.scaled is None else kind.scaled
    assert (examined.image is None) == (expected is None)
    if expected is not None:
        assert np.array_equal(np.asarray(examined.image), expected)
    wanted = ["scaled" if name == "deep" else name for name in kind.findings]
    assert sorted(name for name, _ in examined.findings) == sorted(wanted)


@pytest.mark.parametrize("turn", range(2, 9))
def test_turned_pixels_are_those_of_pillow(tmp_path, turn):
    data = pillow("PNG", exif=exif(turn))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(np.asarray(decode(io.BytesIO(data))), expected)
    assert np.array_equal(np.asarray(decode(io.BytesIO(data), "", Decoding(upright=False))), RGB)


def test_values_outside_the_range_are_clipped(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(opencv(".png", DEEP[..., 0]))
    found = np.asarray(decode(path, decoding=Decoding((1000, 2000))))
    assert (found[DEEP[..., 0] <= 1000] == 0).all() and (found[DEEP[..., 0] >= 2000] == 255).all()


MESSAGES = {
    "16-bit RGB PNG": r"has 16 bits per channel, with values from \d+ to \d+\. .*: --image-",
    "empty file": r"\(empty file\)\. Replace or remove it",
    "HTML page": r"\(HTML or XML\)\. Replace or remove it",
    "Git LFS pointer": r"\(a Git LFS pointer\)\. Run: git lfs pull",
    "HEIC without its plugin": r"\(a HEIC image\)\. Run: pip install pillow-heif",
    "EPS named .jpg": r"\(unknown image format\)",
    "float TIFF with NaN": r"\(some values are not finite\)",
}


@pytest.mark.parametrize("title", MESSAGES)
def test_the_error_names_the_cause_and_the_fix(tmp_path, title):
    with pytest.raises(UserError, match=MESSAGES[title]):
        decode(BY_TITLE[title].write(tmp_path))


@pytest.mark.parametrize(
    "values", [(1, 1), (5, 2), (0, float("nan")), (0, 1, 2), (float("-inf"), 1), ("a", "b")]
)
def test_invalid_ranges(values):
    with pytest.raises(UserError, match="INPUT.IMAGE_RANGE .*: give two finite numbers"):
        Decoding(values, option="INPUT.IMAGE_RANGE [MIN,MAX]")


def test_pillow_images_in_memory():
    deep = Image.fromarray(DEEP[..., 0])
    with pytest.raises(UserError, match="the image has 16 bits per channel"):
        images.from_pillow(deep)
    found = np.asarray(images.from_pillow(deep, Decoding(RANGE)))
    assert np.array_equal(found, scaled(DEEP[..., 0]))
    assert np.array_equal(np.asarray(images.from_pillow(Image.fromarray(RGB))), RGB)
