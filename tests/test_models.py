"""Classifiers: their inputs, their state dict, and the way through a file and back."""

import pytest
import torch

from classification.models import Classifier, Normalize, load_classifier
from robust_backbones import checkpoint
from robust_backbones.errors import UserError
from robust_backbones.zoo import IMAGENET_MEAN, IMAGENET_STD

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def classifier(**kwargs):
    torch.manual_seed(0)
    return Classifier("resnet18", 10, **kwargs).eval()


def own_file(model, path):
    contents = {"format": checkpoint.FORMAT, "version": checkpoint.FORMAT_VERSION,
                "model": model.state_dict(), "metadata": {}}  # fmt: skip
    checkpoint.save(contents, path)
    return path


def test_normalize_by_hand():
    layer = Normalize((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
    out = layer(torch.ones(1, 3, 2, 2))
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([0.9, 0.4, 0.175]))
    assert layer.mean.shape == layer.std.shape == (3, 1, 1)


def test_the_first_layer_normalises():
    model = classifier()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(model(X), model.net((X - mean) / std))
    assert model(X).shape == (2, 10)


def test_state_dict_names():
    model = classifier()
    names = set(model.state_dict())
    net = {f"net.{name}" for name in checkpoint.build_network("resnet18", 10).state_dict()}
    assert names == {"normalize.mean", "normalize.std"} | net


def test_a_file_gives_the_same_logits(tmp_path):
    model = classifier(mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.35))
    loaded = load_classifier(own_file(model, tmp_path / "c.pt"))
    assert not loaded.training
    torch.testing.assert_close(loaded(X), model(X))


def test_a_file_without_statistics_gets_imagenets(tmp_path):
    model = classifier()
    state = {k: v for k, v in model.net.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "old.pth")  # as before PyTorch 0.4.1: no BatchNorm counters
    torch.testing.assert_close(load_classifier(tmp_path / "old.pth")(X), model(X))


def test_a_file_without_head_is_refused(tmp_path):
    state = {k: v for k, v in classifier().net.state_dict().items() if not k.startswith("fc.")}
    torch.save(state, tmp_path / "trunk.pth")
    with pytest.raises(UserError, match="has no last layer .*give a complete classifier"):
        load_classifier(tmp_path / "trunk.pth")


def test_unknown_architecture():
    with pytest.raises(UserError, match="'vgg' is unknown; one of: resnet18"):
        Classifier("vgg", 10)
