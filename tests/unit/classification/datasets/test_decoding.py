"""Unusual image files as classifiers see them: exact, fast, in shards, and in the cache."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from classification.datasets import image_cache, loader
from classification.datasets.image_files import read_fast
from classification.datasets.open import open_split
from classification.datasets.shard_writer import write_shards
from robust_backbones.core.errors import UserError
from robust_backbones.core.images import TURNS, Decoding
from tests.support.image_files import BY_TITLE, RANGE, RGB, exif, pillow

SIZE = (320, 240)
READERS = ("exact", "fast", "shards")


def write(folder, data: bytes, suffix: str) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            path = folder / split / name / f"a{suffix}"
            path.parent.mkdir(parents=True)
            path.write_bytes(data)


def opened(folder, reader: str, decoding=None, split="test"):
    if reader == "shards":
        if not folder.with_name("shards").exists():
            write_shards(folder, folder.with_name("shards"), 10, progress=lambda line: None)
        folder = folder.with_name("shards")
    source = open_split("folder", split, folder, image_size=32, decoding=decoding)
    return dataclasses.replace(source, decode="fast") if reader == "fast" else source


def first(source) -> torch.Tensor:
    return next(iter(loader.load_batches(source, 1)))[0]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("turn", [1, 6, 3])
def test_every_reader_turns_unless_told_otherwise(tmp_path, reader, turn):
    photo = Image.fromarray(RGB).resize(SIZE, Image.BICUBIC)
    data = pillow("JPEG", photo, quality=95, exif=exif(turn))
    write(tmp_path / "turned", data, ".jpg")
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    write(tmp_path / "upright" / "x", pillow("PNG", upright), ".png")
    write(tmp_path / "stored" / "x", pillow("PNG", Image.open(io.BytesIO(data))), ".png")
    expected = {
        True: first(opened(tmp_path / "upright" / "x", "exact")),
        False: first(opened(tmp_path / "stored" / "x", "exact", Decoding(upright=False))),
    }
    for chosen, wanted in expected.items():
        found = first(opened(tmp_path / "turned", reader, Decoding(upright=chosen)))
        tolerance = 12 / 255 if reader == "fast" else 0
        assert found.shape == wanted.shape and (found - wanted).abs().max() <= tolerance


@pytest.mark.parametrize("shorter", [240, 30])
@pytest.mark.parametrize("turn", TURNS)
def test_the_fast_decoder_turns_as_pillow(tmp_path, turn, shorter):
    path = tmp_path / "a.jpg"
    path.write_bytes(pillow("JPEG", Image.fromarray(RGB).resize(SIZE), exif=exif(turn)))
    stored = read_fast(path, shorter, Decoding(upright=False)).permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(stored).transpose(TURNS[turn]))
    assert np.array_equal(read_fast(path, shorter).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("reader", READERS)
def test_16_bit_images_are_scaled_or_refused(tmp_path, reader):
    kind = BY_TITLE["16-bit gray PNG"]
    write(tmp_path / "deep", kind.data, ".png")
    with pytest.raises(UserError, match="has 16 bits per channel, .* --image-range MIN MAX"):
        first(opened(tmp_path / "deep", reader))
    write(tmp_path / "x" / "plain", pillow("PNG", Image.fromarray(kind.scaled)), ".png")
    expected = first(opened(tmp_path / "x" / "plain", "exact"))
    assert torch.equal(first(opened(tmp_path / "deep", reader, Decoding(RANGE))), expected)


@pytest.mark.parametrize("title", ["GIF", "AVIF", "JPEG 2000", "PPM"])
@pytest.mark.parametrize("reader", READERS)
def test_other_formats_are_read(tmp_path, reader, title):
    kind = BY_TITLE[title]
    write(tmp_path / "a", kind.data, kind.suffix)
    write(tmp_path / "x" / "plain", pillow("PNG", Image.fromarray(kind.pixels)), ".png")
    expected = first(opened(tmp_path / "x" / "plain", "exact"))
    assert torch.equal(first(opened(tmp_path / "a", reader)), expected)


def test_a_range_for_data_without_image_files_is_refused():
    with pytest.raises(UserError, match="--image-range: digits has 8-bit images. Omit the option"):
        open_split("digits", "test", decoding=Decoding((0, 1)))


def test_the_cache_of_small_images_holds_turned_pixels(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    square = Image.fromarray(RGB[:24, :24])
    write(tmp_path / "a", pillow("PNG", square, exif=exif(6)), ".png")
    images = image_cache.read_decoded("test", tmp_path / "a", 24).images
    expected = np.asarray(square.transpose(TURNS[6])).transpose(2, 0, 1)
    assert np.array_equal(images[0].numpy(), expected)
