"""Nearest neighbors against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from classification.metrics import top1
from classification.transfer.knn import choose_neighbors, classify
from robust_backbones.core.errors import UserError


def split():
    """Features and labels of training and test images, with overlapping classes."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 4
    x = (torch.randn(400, 20, generator=g) + torch.randn(4, 20, generator=g)[y]).relu().double()
    return x[:200], y[:200], x[200:], y[200:]


@pytest.mark.parametrize("k", [1, 3, 10, 150])
def test_neighbors_match_scikit_learn(k):
    x, y, x_test, _ = split()
    theirs = KNeighborsClassifier(k, metric="cosine").fit(x.numpy(), y.numpy())
    found = classify(x, y, x_test, k, 4, temperature=None)
    assert found.tolist() == theirs.predict(x_test.numpy()).tolist()
    cosines = lambda d: np.exp((1 - d) / 0.07)  # noqa: E731
    theirs = KNeighborsClassifier(k, metric="cosine", weights=cosines).fit(x.numpy(), y.numpy())
    found = classify(x, y, x_test, k, 4)
    assert found.tolist() == theirs.predict(x_test.numpy()).tolist()


def test_the_number_of_neighbors_is_chosen():
    x, y, x_val, y_val = split()
    k, curve = choose_neighbors(x, y, x_val, y_val, 4, top1)
    assert [row[0] for row in curve] == [1, 2, 5, 10, 20, 50, 100, 200]
    for each, value in curve:
        assert top1(classify(x, y, x_val, each, 4), y_val) == value
    assert k == max(each for each, value in curve if value == max(v for _, v in curve))


def test_scale_and_size_of_batches_do_not_matter(monkeypatch):
    x, y, x_test, _ = split()
    found = classify(x, y, x_test, 7, 4)
    monkeypatch.setattr("classification.transfer.knn.SIMILARITIES", 1)
    assert torch.equal(classify(1000 * x, y, x_test / 1000, 7, 4), found)
    monkeypatch.setattr("classification.transfer.knn.free_bytes", lambda device: 0)
    assert torch.equal(classify(x, y, x_test, 7, 4), found)  # 7 training images at a time


def test_a_low_temperature_is_the_nearest_neighbor():
    x, y, x_test, _ = split()
    found = classify(x, y, x_test, 50, 4, temperature=1e-9)
    assert torch.equal(found, classify(x, y, x_test, 1, 4))


def test_a_zero_feature_vector_is_allowed():
    x, y, _, _ = split()
    assert classify(x, y, torch.zeros(1, 20), 5, 4).shape == (1,)


X, Y = torch.eye(12), torch.arange(12) % 4
ERRORS = {
    "13 neighbors: there are 12 images. Give 1 to 12": lambda: classify(X, Y, X, 13, 4),
    "temperature 0": lambda: classify(X, Y, X, 1, 4, temperature=0),
    "neighbors [20, 30]: there are 12": lambda: choose_neighbors(X, Y, X, Y, 4, top1, ks=[20, 30]),
    "some features are NaN or infinite. Check": lambda: classify(X, Y, X.log(), 1, 4),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(message):
    with pytest.raises(UserError) as error:
        ERRORS[message]()
    assert message in str(error.value)
