"""The embedded digits against scikit-learn's own, and the fingerprint."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from classification.datasets import DATASETS, fingerprint, load
from classification.embedded import DIGITS_TRAIN
from robust_backbones.errors import UserError


@pytest.mark.parametrize("name", DATASETS)
def test_every_row_keeps_its_promises(name):
    row = DATASETS[name]
    for split in row.images:
        images, labels = load(name, split)
        assert images.shape == (len(labels), 3, row.image_size, row.image_size)
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        assert images.min() >= 0 and images.max() <= 1
        assert labels.unique().tolist() == list(range(row.classes))


def test_digits_are_the_real_ones_cut_once():
    (x, y), (x_test, y_test) = load("digits", "train"), load("digits", "test")
    assert (len(x), len(x_test)) == (DIGITS_TRAIN, 360) and len(x) + len(x_test) == 1797
    truth = load_digits()
    assert np.array_equal(torch.cat([y, y_test]).numpy(), truth.target)
    images = torch.cat([x, x_test])
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
    expected = [enlarged(image / 16) for image in truth.images[::100]]
    assert np.array_equal(images[::100, 0].numpy(), np.array(expected, dtype=np.float32))


def enlarged(image):
    """8x8 -> 32x32: straight lines between the pixels' centres, first along rows, then columns."""
    at = (np.arange(32) + 0.5) / 4 - 0.5
    wide = np.array([np.interp(at, range(8), row) for row in image])
    return np.array([np.interp(at, range(8), column) for column in wide.T]).T


def test_fingerprints_tell_data_apart():
    x, y = load("digits", "test")
    base = fingerprint(x, y)
    assert len(base) == 64 and base == fingerprint(*load("digits", "test"))
    assert base == fingerprint(x.contiguous(memory_format=torch.channels_last), y)
    touched, relabelled = x.clone(), y.clone()
    touched[0, 0, 0, 0] += 1e-3
    relabelled[0] += 1
    flipped = fingerprint(x.flip(0), y.flip(0))
    others = {fingerprint(touched, y), fingerprint(x, relabelled), flipped, base}
    assert len(others) == 4


@pytest.mark.parametrize(
    "name, split, message",
    [
        ("mnist", "train", "dataset 'mnist' is unknown; one of: digits"),
        ("digits", "dev", "split 'dev' is unknown to digits; one of: train, val, test"),
    ],
)
def test_wrong_names(name, split, message):
    with pytest.raises(UserError, match=message):
        load(name, split)


def test_importing_the_table_needs_no_torch():
    code = "import sys, classification.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
