"""Downscaled images, digests, held-out parts, fast decoding."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from classification.datasets import loader
from classification.datasets.open import open_split
from classification.datasets.split import held_out_mask
from robust_backbones.core.errors import UserError
from tests.support.small_data import write_tree


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "tree", size=40)


def opened(tree, downscale=None, split="train", size=32):
    source = open_split("folder", split, tree, image_size=size)
    return dataclasses.replace(source, downscale=downscale)


@pytest.mark.parametrize("kind", ["files", "bytes"])
def test_downscaling_equals_torchvisions_resize(tree, kind):
    plain = opened(tree)
    if kind == "bytes":
        pixels = torch.stack([v2.functional.pil_to_tensor(plain[i][0]) for i in range(len(plain))])
        plain = dataclasses.replace(plain, images=pixels)
    small = dataclasses.replace(plain, downscale=8)
    resize = v2.Resize(8)
    for i, image in enumerate(small.read(torch.tensor([5, 2]))):
        original, _ = opened(tree)[[5, 2][i]]
        expected = v2.functional.pil_to_tensor(resize(original))
        found = image if kind == "bytes" else v2.functional.pil_to_tensor(image)
        assert torch.equal(found, expected)
    image, label = small[5]
    assert label == plain[5][1] and (min(image.size) if kind == "files" else image.shape[-1]) == 8


def test_downscaling_uses_the_shorter_side_and_keeps_small_images(tmp_path):
    for split in ("train", "test"):
        for name, size in (("a", (60, 30)), ("b", (12, 20))):  # width, height
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", size).save(tmp_path / split / name / "0.png")
    source = opened(tmp_path, downscale=15)
    assert [source[i][0].size for i in (0, 1)] == [(30, 15), (12, 20)]


def test_downscaled_images_are_transformed_to_full_size(tree):
    """Detail is removed, the size is unchanged, in training and test batches."""
    for split, batches in (("train", loader.train_batches), ("test", loader.load_batches)):
        options = dict(augmentation="imagenet_plain", seed=0, epoch=0) if split == "train" else {}
        (plain, _), (small, _) = (
            next(iter(batches(opened(tree, downscale, split), 6, **options)))
            for downscale in (None, 4)
        )
        assert small.shape == plain.shape == (6, 3, 32, 32)
        roughness = [(x[..., 1:] - x[..., :-1]).abs().mean() for x in (plain, small)]
        assert roughness[1] < roughness[0] / 4


def change_a_byte(tree):
    file = next((tree / "train" / "bee").glob("*.png"))
    contents = bytearray(file.read_bytes())
    contents[-20] ^= 1
    file.write_bytes(contents)


def test_the_content_digest_covers_the_bytes_of_files(tree):
    before = opened(tree)
    digest, fingerprint = before.content_digest(), before.fingerprint()
    assert opened(tree).content_digest() == digest
    change_a_byte(tree)
    assert opened(tree).fingerprint() == fingerprint  # the same names and sizes
    assert opened(tree).content_digest() != digest


@pytest.mark.parametrize("name", ["folder", "digits"])
def test_the_content_digest_covers_order_and_labels(tree, name):
    source = opened(tree) if name == "folder" else open_split("digits", "train", limit=30)
    digests = {
        source.content_digest(),
        source.subset(torch.arange(len(source) - 1, -1, -1)).content_digest(),
        source.subset(torch.arange(len(source) - 1)).content_digest(),
        dataclasses.replace(source, labels=source.labels.flip(0)).content_digest(),
    }
    assert len(digests) == 4


def test_a_deleted_file(tree):
    source = opened(tree)
    (tree / "train" / "bee" / "000.png").unlink()
    with pytest.raises(UserError, match="000.png: cannot be read .No such file"):
        source.content_digest()


def test_a_broken_link(tree):
    source = opened(tree)
    file = tree / "train" / "bee" / "000.png"
    file.unlink()
    file.symlink_to(tree / "nowhere.png")
    with pytest.raises(UserError, match="000.png: cannot be read .No such file"):
        source.fingerprint()


def test_held_out_images_depend_on_the_seed():
    labels = torch.arange(200) % 4
    masks = [held_out_mask(labels, 0.2, seed) for seed in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    for mask in masks:
        np.testing.assert_array_equal(torch.bincount(labels[mask]), [10] * 4)


def photograph(path, size, mode="RGB", **options):
    """Save a photograph: with noise, rounding differences between decoders would be large."""
    from skimage import data

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(data.astronaut()).resize(size, Image.BICUBIC).convert(mode)
    picture.save(path, **{"quality": 90} | options)


# Size of the file, mode, extension -> decoded size (at least 73 pixels for a network with 32),
# maximal and mean difference of the test view, in levels of 255.
FAST = [
    ((140, 120), "RGB", "jpg", (140, 120), 1, 0.1),
    ((120, 140), "L", "jpg", (120, 140), 1, 0.1),
    ((20, 30), "RGB", "jpg", (20, 30), 1, 0.1),
    ((300, 200), "RGB", "jpg", (150, 100), 12, 1.5),
    ((300, 292), "RGB", "jpg", (75, 73), 12, 1.5),
    ((1200, 600), "L", "jpg", (150, 75), 12, 1.5),
    ((32, 32), "RGB", "jpg", (32, 32), 0, 0.0),
    ((1200, 600), "RGB", "png", (1200, 600), 0, 0.0),
    ((300, 200), "CMYK", "jpg", (300, 200), 0, 0.0),
]


@pytest.mark.parametrize("size, mode, ending, decoded, largest, mean", FAST)
def test_fast_decoding_is_within_tolerance(tmp_path, size, mode, ending, decoded, largest, mean):
    for split, name in itertools.product(("train", "test"), "ab"):
        photograph(tmp_path / split / name / f"0.{ending}", size, mode)
    exact = opened(tmp_path, split="test", size=32)
    fast = dataclasses.replace(exact, decode="fast")
    image, _ = fast[0]
    found = image.size if isinstance(image, Image.Image) else tuple(image.shape[:0:-1])
    assert found == decoded
    if decoded != size:  # Pillow decodes to the same pixels at this size
        with Image.open(tmp_path / "test" / "a" / f"0.{ending}") as drafted:
            drafted.draft(mode, decoded)
            assert torch.equal(image, v2.functional.pil_to_tensor(drafted.convert("RGB")))
    (x, _), (x_fast, _) = (next(iter(loader.load_batches(s, 1))) for s in (exact, fast))
    levels = 255 * (x - x_fast).abs()
    assert type(x_fast) is torch.Tensor and x_fast.shape == x.shape
    assert levels.max() <= largest + 1e-3 and levels.mean() <= mean
    assert mean == 0 or levels.max() > 0  # really decoded in another way


def test_fast_decoding_draws_the_same_crops(tmp_path):
    for i, name in itertools.product(range(3), "ab"):
        photograph(tmp_path / "train" / name / f"{i}.jpg", (60, 50), quality=95)
        photograph(tmp_path / "test" / name / f"{i}.jpg", (60, 50))
    batches = [
        next(
            loader.train_batches(
                dataclasses.replace(opened(tmp_path), decode=decode),
                6,
                augmentation=name,
                seed=1,
                epoch=0,
                workers=workers,
            )
        )[0]
        for name, decode, workers in (
            ("imagenet_plain", "exact", 0),
            ("imagenet_plain", "fast", 0),
            ("imagenet_plain", "fast", 1),
        )
    ]
    assert 255 * (batches[0] - batches[1]).abs().max() < 2.5
    assert torch.equal(batches[1], batches[2])


@pytest.mark.parametrize("damage", [b"", b"\xff\xd8\xff\xe0 no picture", "half"])
def test_fast_decoding_of_damaged_files(tmp_path, damage):
    for split, name in itertools.product(("train", "test"), "ab"):
        photograph(tmp_path / split / name / "0.jpg", (300, 200))
    file = tmp_path / "train" / "a" / "0.jpg"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage == "half" else damage)
    with pytest.raises(UserError, match="0.jpg cannot be read as an image .*. Replace or remove"):
        dataclasses.replace(opened(tmp_path), decode="fast")[0]
