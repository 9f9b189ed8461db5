"""Classifiers: inputs, state dicts, and saving and loading."""

import pytest
import torch

from classification.models import Classifier, Normalize, backbone_digest, fill, load_classifier
from robust_backbones.archs import ARCHS
from robust_backbones.checkpoint.architectures import BATCH_COUNTER, build_network
from robust_backbones.checkpoint.formats import FORMAT, FORMAT_VERSION
from robust_backbones.checkpoint.io import read_checkpoint, save_file
from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import IMAGENET, InputStatistics
from tests.support.networks import random_network

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def classifier(**kwargs):
    torch.manual_seed(0)
    return Classifier.build("resnet18", 10, **kwargs).eval()


def own_file(model, path):
    contents = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "model": model.state_dict(),
        "metadata": {},
    }
    save_file(contents, path)
    return path


def test_normalize_by_hand():
    layer = Normalize((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
    out = layer(torch.ones(1, 3, 2, 2))
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([0.9, 0.4, 0.175]))
    assert layer.mean.shape == layer.std.shape == (3, 1, 1)


def test_the_first_layer_normalizes():
    model = classifier()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))
    torch.testing.assert_close(model(X), model.net((X - mean) / std))
    assert model(X).shape == (2, 10)


def test_state_dict_names():
    model = classifier()
    names = set(model.state_dict())
    net = {f"net.{name}" for name in build_network("resnet18", 10).state_dict()}
    assert names == {"normalize.mean", "normalize.std"} | net


def test_a_file_gives_the_same_logits(tmp_path):
    model = classifier(statistics=InputStatistics((0.5, 0.4, 0.3), (0.25, 0.3, 0.35)))
    loaded = load_classifier(own_file(model, tmp_path / "c.pt"))
    assert not loaded.training
    torch.testing.assert_close(loaded(X), model(X))


def test_a_file_without_statistics_gets_imagenets(tmp_path):
    model = classifier()
    state = {k: v for k, v in model.net.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "old.pth")  # as before PyTorch 0.4.1: no BatchNorm counters
    with pytest.warns(UserWarning, match="old.pth: ImageNet's are assumed. Pass statistics="):
        loaded = load_classifier(tmp_path / "old.pth")
    torch.testing.assert_close(loaded(X), model(X))


def test_a_file_without_head_is_refused(tmp_path):
    state = {k: v for k, v in classifier().net.state_dict().items() if not k.startswith("fc.")}
    torch.save(state, tmp_path / "trunk.pth")
    with pytest.raises(UserError, match="has no last layer .*Give a complete classifier"):
        load_classifier(tmp_path / "trunk.pth")


def test_unknown_architecture():
    with pytest.raises(UserError, match="'vgg' is unknown. Did you mean vgg16_bn"):
        Classifier.build("vgg", 10)


# The paper's architectures without wide_resnet50_4, which runs the code of wide_resnet50_2.
TRANSFERRED = (
    "resnet18",
    "resnet50",
    "wide_resnet50_2",
    "densenet161",
    "mnasnet1_0",
    "mobilenet_v2",
    "resnext50_32x4d",
    "shufflenet_v2_x1_0",
    "vgg16_bn",
)


@pytest.fixture(scope="module", params=TRANSFERRED)
def found(request, tmp_path_factory):
    """A checkpoint of each architecture, with different classes than the task."""
    path = tmp_path_factory.mktemp("arch") / "network.pth"
    torch.save(random_network(request.param, 7).state_dict(), path)
    found = read_checkpoint(path)
    path.unlink()
    return found


def below_the_head(model):
    head = ARCHS[model.arch].head
    return {k: v.clone() for k, v in model.net.state_dict().items() if not k.startswith(head + ".")}


def learn(model):
    """One SGD step in train mode on all trainable parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.1, weight_decay=0.1)
    model.train()
    torch.nn.functional.cross_entropy(model(X), torch.tensor([0, 1])).backward()
    optimizer.step()


def test_a_network_for_another_task(found):
    """The last layer is new, and everything before it is from the file."""
    model = fill(found).for_task(5, seed=3).eval()
    torch.manual_seed(3)
    expected = torch.nn.Linear(ARCHS[found.arch].feature_dim, 5)
    assert torch.equal(model.head.weight, expected.weight)
    assert torch.equal(model.head.bias, expected.bias)
    for name, tensor in below_the_head(model).items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, found.tensors[name]), name
    with torch.no_grad():
        features = model.features(X)
        assert features.shape == (2, ARCHS[found.arch].feature_dim)
        torch.testing.assert_close(model.head(features), model(X))


def test_frozen_means_frozen(found):
    """No parameter or BatchNorm statistic changes except the head's."""
    model = fill(found).for_task(5, seed=0)
    model.freeze()
    before, head, digest = below_the_head(model), model.head.weight.clone(), backbone_digest(model)
    for _ in range(2):
        learn(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in below_the_head(model).items())
    assert not torch.equal(head, model.head.weight)
    assert backbone_digest(model) == digest
    # Dropout is off too.
    assert torch.equal(model(X), model(X))


def test_frozen_as_in_the_papers_code(found):
    """Statistics adapt, but parameters do not."""
    model = fill(found).for_task(5, seed=0)
    model.freeze(statistics=False)
    before = below_the_head(model)
    learn(model)
    moved = {n for n, tensor in below_the_head(model).items() if not torch.equal(tensor, before[n])}
    statistics = {n for n in before if n.endswith(("running_mean", "running_var", BATCH_COUNTER))}
    assert moved and moved <= statistics
    assert any(name.endswith("running_var") for name in moved)


def test_the_digest_covers_everything_that_determines_features():
    model = classifier()
    digest = backbone_digest(model)
    with torch.no_grad():
        model.head.weight.add_(1)
        assert backbone_digest(model) == digest
        for name in ("net.conv1.weight", "net.layer4.1.bn2.running_mean", "normalize.std"):
            tensor = model.state_dict()[name]
            tensor.view(-1)[0] += 1e-3
            assert backbone_digest(model) != digest, name
            tensor.view(-1)[0] -= 1e-3
