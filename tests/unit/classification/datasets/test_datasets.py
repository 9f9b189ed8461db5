"""The table of datasets, bundled data, splits, subsets and fingerprints."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from skimage import data
from sklearn.datasets import load_digits

from classification.datasets.embedded import DIGITS_TRAIN, TEXTURES
from classification.datasets.open import open_split
from classification.datasets.specs import DATASETS, METRIC_TITLES, SUITE
from classification.datasets.split import fingerprint
from classification.metrics import METRICS
from classification.transforms import AUGMENTATIONS
from robust_backbones.core.errors import UserError
from tests.support import SHARED


def load(name, split):
    """Return images `(N, 3, H, W)` float32 in [0, 1], and labels."""
    source = open_split(name, split)
    whole = source.images.is_floating_point()
    return source.images if whole else source.images / 255, source.labels


EMBEDDED = [name for name, row in DATASETS.items() if not row.needs_root]


@pytest.mark.parametrize("name", DATASETS)
def test_every_spec_is_complete(name):
    row = DATASETS[name]
    assert row.augmentation in AUGMENTATIONS and row.statistics.source == "dataset"
    assert row.image_size > 0 and set(row.images) <= {"train", "test"}
    assert row.title and row.split_rule and row.license and row.metric in METRICS
    assert row.name == name and set(METRICS) == set(METRIC_TITLES)


@pytest.mark.parametrize("name", SUITE)
def test_specs_agree_with_the_paper(name):
    path = SHARED / "reference" / "datasets.yaml"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    facts, row = yaml.safe_load(path.read_text()), DATASETS[name]
    task = facts["tasks"][name]
    assert row.classes == task["classes"] and row.metric == task["metric"]
    assert name in facts["metric_rule"][row.metric]
    assert row.images == {"train": task["train"], "test": task["test"]}
    known = task.get("torchvision", {})
    assert row.torchvision == (
        "" if known["auto_download"].lower().startswith("no") else known["class"]
    )


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("split", ["train", "test"])
def test_embedded_data_agrees_with_its_spec(name, split):
    row, source = DATASETS[name], open_split(name, split)
    images, labels = load(name, split)
    assert len(source) == len(labels) == row.images[split]
    assert images.shape == (len(labels), 3, row.image_size, row.image_size)
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.min() >= 0 and images.max() <= 1
    assert labels.unique().tolist() == list(range(row.classes))
    assert len(source.class_names) == source.classes == row.classes
    image, label = source[3]
    assert torch.equal(image, source.images[3]) and label == labels[3]
    assert source.fingerprint() == fingerprint(images, labels)


def test_digits_are_scikit_learns():
    (x, y), (x_test, y_test) = load("digits", "train"), load("digits", "test")
    assert (len(x), len(x_test)) == (DIGITS_TRAIN, 360) and len(x) + len(x_test) == 1797
    truth = load_digits()
    assert np.array_equal(torch.cat([y, y_test]).numpy(), truth.target)
    images = torch.cat([x, x_test])
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
    expected = [enlarged(image / 16) for image in truth.images[::100]]
    assert np.array_equal(images[::100, 0].numpy(), np.array(expected, dtype=np.float32))


def enlarged(image, size=32):
    """Interpolate linearly between pixel centers, first along rows, then along columns."""
    at = (np.arange(size) + 0.5) * len(image) / size - 0.5
    wide = np.array([np.interp(at, range(len(image)), row) for row in image])
    return np.array([np.interp(at, range(len(image)), column) for column in wide.T]).T


def test_faces_are_scikit_images():
    truth = data.lfw_subset()
    for split, rows in (("train", [0, 74, 100, 174]), ("test", [75, 99, 175, 199])):
        images = open_split("faces", split).images
        ends = len(images) // 2
        for image, row in zip(images[[0, ends - 1, ends, -1], 0], rows, strict=True):
            assert np.abs(image.numpy() - 255 * enlarged(truth[row])).max() <= 0.501


def test_texture_patches_of_train_and_test_do_not_touch():
    columns = {}
    for split in ("train", "test"):
        source = open_split("textures", split)
        for label, photo in enumerate(TEXTURES.values()):
            pixels = getattr(data, photo)()
            gray = pixels if pixels.ndim == 2 else pixels[:, :, 1]
            patches = source.images[source.labels == label][:, 0].numpy()
            found = [find_patch(gray, patch) for patch in patches[::16]]
            assert all(found)
            columns.setdefault((label, split), set()).update(c for f in found for _, c in f[:1])
    for label in range(len(TEXTURES)):
        assert max(columns[label, "train"]) + 32 + 32 <= min(columns[label, "test"])


def find_patch(photo, patch):
    """Return (row, column) of each position of the patch on a grid of 16 pixels."""
    return [
        (row, column)
        for row in range(0, 481, 16)
        for column in range(0, 481, 16)
        if np.array_equal(photo[row : row + 32, column : column + 32], patch)
    ]


def test_different_data_has_different_fingerprints():
    x, y = load("digits", "test")
    base = fingerprint(x, y)
    contents = b"(360, 3, 32, 32)" + x.numpy().tobytes() + y.numpy().tobytes()
    assert base == hashlib.sha256(contents).hexdigest()
    assert base == fingerprint(x.contiguous(memory_format=torch.channels_last), y)
    touched, relabeled = x.clone(), y.clone()
    touched[0, 0, 0, 0] += 1e-3
    relabeled[0] += 1
    flipped = fingerprint(x.flip(0), y.flip(0))
    others = {fingerprint(touched, y), fingerprint(x, relabeled), flipped, base}
    assert len(others) == 4


def test_the_fingerprint_of_digits_never_changes():
    expected = "116fcc5c189b3be599af9bb5158573fdc239f42befec4cd09c4772c0cfe6caea"
    assert open_split("digits", "train").fingerprint() == expected


def test_held_out_images_are_in_val_and_not_in_train():
    whole = open_split("digits", "train")
    train, val = (open_split("digits", split, held_out=0.2) for split in ("train", "val"))
    assert len(train) + len(val) == len(whole)
    rows = {image.numpy().tobytes() for image in val.images}
    assert not rows & {image.numpy().tobytes() for image in train.images}
    share = val.labels.bincount() / whole.labels.bincount()
    assert (share - 0.2).abs().max() < 0.01
    again = open_split("digits", "val", held_out=0.2)
    assert again.fingerprint() == val.fingerprint() != train.fingerprint()
    test = open_split("digits", "test", held_out=0.2)
    assert test.fingerprint() == open_split("digits", "test").fingerprint()


@pytest.mark.parametrize(
    "limit, counts",
    [
        (10, {1}),
        (123, {12, 13}),
        (1437, set(range(141, 147))),
        (5000, set(range(141, 147))),  # more images than there are
    ],
)
def test_a_limit_is_balanced_and_reproducible(limit, counts):
    source, again = (open_split("digits", "train", limit=limit) for _ in range(2))
    assert len(source) == min(limit, 1437) and set(source.labels.bincount().tolist()) <= counts
    assert source.fingerprint() == again.fingerprint()
    assert (limit >= 1437) == (source.fingerprint() == open_split("digits", "train").fingerprint())


def test_image_size_does_not_resize_stored_images():
    source = open_split("digits", "test", image_size=64)
    assert source.image_size == 64 and source.images.shape[2:] == (32, 32)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (("cifr10", "train"), {}, "dataset 'cifr10' is unknown. Did you mean cifar10 or cifar100"),
        (("digits", "dev"), {}, "split 'dev' of digits is unknown. Choose from train, val, test"),
        (("digits", "val"), {}, "digits has no split 'val'. Choose the part"),
        (("digits", "train"), {"held_out": 1}, "held-out part 1 is invalid. Choose a number in"),
        (("cifar10", "train"), {}, "dataset 'cifar10' needs data, .* --data PATH"),
        (("digits", "test"), {"limit": 9}, "limit of 9 images is less than the 10 classes of"),
    ],
)
def test_user_mistakes(arguments, options, message):
    with pytest.raises(UserError, match=message):
        open_split(*arguments, **options)


def test_importing_the_table_needs_no_torch():
    code = "import sys, classification.datasets.specs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
