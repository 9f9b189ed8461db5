"""Visualization and inversion: closed-form steps of a linear network, the contract of an attack,
and the gradient past the last rectifier."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from classification.interpret.optimize import (
    KINDS,
    correlation,
    invert,
    noise,
    relative_distance,
    representations,
    visualize,
)
from classification.models import Classifier
from robust_backbones.core.errors import UserError
from tests.support.networks import random_network
from tests.support.small_models import convolutional, data, norm


class Net(nn.Module):
    """A body that computes the representation, and a last layer."""

    def __init__(self, body: nn.Module, size: int, classes: int = 3):
        super().__init__()
        torch.manual_seed(5)
        self.body, self.head = body, nn.Linear(size, classes)

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.features(x))


def linear() -> Net:
    """Five units, each a fixed direction in the pixels of `(3, 6, 6)`."""
    torch.manual_seed(2)
    return Net(nn.Sequential(nn.Flatten(), nn.Linear(108, 5)), 5)


def deep() -> Net:
    """In train mode, with BatchNorm, dropout and a rectifier before the representation."""
    return Net(nn.Sequential(convolutional()[:-1], nn.Linear(64, 8), nn.ReLU()), 8).train()


def direction(net: Net, kind: str, number: int) -> torch.Tensor:
    """Return the gradient `(3, 6, 6)` of a linear network's unit or logit."""
    weight = net.body[1].weight
    rows = net.head.weight @ weight if kind == "class" else weight
    return rows[number].detach().view(3, 6, 6)


HOW = dict(eps=1000.0, steps=3, step_size=0.05)
WANTED = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
BOTH = [partial(visualize, targets=torch.tensor([0, 3, 1, 2])), partial(invert, targets=WANTED)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_visualization_follows_its_unit_or_class(kind):
    net, (x, _) = linear(), data(low=0.4, high=0.6)
    targets = torch.tensor([0, 2, 1, 0])
    found = visualize(net, x, targets, kind=kind, **HOW)
    for i, number in enumerate(targets.tolist()):
        up = direction(net, kind, number)
        expected = x[i] + 3 * 0.05 * up / up.norm()
        torch.testing.assert_close(found[i], expected, atol=1e-6, rtol=0)


def test_an_inversion_steps_down_the_squared_distance():
    net, (x, _) = linear(), data(low=0.4, high=0.6)
    wanted = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    found = invert(net, x, wanted, eps=1000.0, steps=1, step_size=0.1)
    weight, bias = (p.detach().double().numpy() for p in net.body[1].parameters())
    flat = x.flatten(1).double().numpy()
    # The gradient of |Wx + b - t| is W^T (Wx + b - t), up to its length.
    gradient = (flat @ weight.T + bias - wanted.double().numpy()) @ weight
    expected = flat - 0.1 * gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    np.testing.assert_allclose(found.flatten(1).numpy(), expected, atol=1e-6)


def test_an_inversion_finds_the_representation():
    net, (x, _) = linear(), data(low=0.4, high=0.6)
    wanted = representations(net, data(low=0.45, high=0.55)[0].flip(0))
    found = invert(net, x, wanted, eps=1000.0, steps=400, step_size=0.005)
    assert (relative_distance(representations(net, found), wanted) < 0.02).all()


@pytest.mark.parametrize("eps, step_size", [(0.3, 0.2), (1.0, 5.0), (1000.0, 30.0)])
@pytest.mark.parametrize("use_best", [False, True])
@pytest.mark.parametrize("function", BOTH, ids=["visualize", "invert"])
def test_the_result_is_in_the_ball_and_in_the_unit_range(function, eps, step_size, use_best):
    x, _ = data()
    found = function(deep(), x, eps=eps, steps=4, step_size=step_size, use_best=use_best)
    assert (norm(found - x, "l2") <= eps + 1e-5).all()
    assert found.min() >= 0 and found.max() <= 1
    assert found.shape == x.shape and not found.requires_grad and not torch.equal(found, x)


@pytest.mark.parametrize("function", BOTH, ids=["visualize", "invert"])
def test_purity(function):
    net, (x, _) = deep(), data()
    net.body[0][1].eval()  # one frozen layer among training ones
    net.head.weight.requires_grad_(False)
    net.body[1].weight.grad = torch.ones_like(net.body[1].weight)
    x.requires_grad_()
    state, before = copy.deepcopy(net.state_dict()), x.detach().clone()
    modes, flags = [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]
    rng = torch.get_rng_state()
    with torch.no_grad():  # the caller's grad mode must not matter
        function(net, x, **HOW)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == flags
    assert torch.equal(net.body[1].weight.grad, torch.ones_like(net.body[1].weight))
    assert all(p.grad is None for p in net.parameters() if p is not net.body[1].weight)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(x, before) and x.grad is None


@pytest.mark.parametrize("function", BOTH, ids=["visualize", "invert"])
def test_an_image_does_not_depend_on_its_batch(function):
    net, (x, _) = deep(), data()
    together = function(net, x, **HOW)
    targets = function.keywords["targets"]
    alone = [function(net, x[i : i + 1], targets=targets[i : i + 1], **HOW) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("function", BOTH, ids=["visualize", "invert"])
def test_the_best_step_is_at_least_as_good_as_start_and_last(function):
    net, (x, _) = deep(), data()
    targets = function.keywords["targets"]

    def score(z):
        found = representations(net, z)
        if targets.dim() == 1:
            return found[range(4), targets]
        return -relative_distance(found, targets)

    how = dict(eps=1000.0, steps=5, step_size=20.0)  # far too long
    best = score(function(net, x, use_best=True, **how))
    assert (best >= score(x)).all() and (best >= score(function(net, x, **how))).all()


def test_dead_units_have_a_gradient():
    """A unit that is always 0 gets the gradient of the input of its rectifier."""
    net, (x, _) = linear(), data(low=0.4, high=0.6)
    net.body.append(nn.ReLU(inplace=True))
    with torch.no_grad():
        net.body[1].bias.fill_(-50.0)
    assert not representations(net, x).any()
    up = direction(net, "unit", 4)
    found = visualize(net, x, torch.full((4,), 4), **HOW)
    torch.testing.assert_close(found, x + 3 * 0.05 * up / up.norm(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "arch",
    [
        "resnet18",
        "densenet161",
        "mnasnet1_0",
        "mobilenet_v2",
        "shufflenet_v2_x1_0",
        pytest.param("vgg16_bn", marks=pytest.mark.slow),
    ],
)
def test_the_last_rectifier_of_every_architecture_is_found(arch):
    """A unit that is 0 everywhere has a gradient only if the rectifier was found."""
    model = Classifier.build(arch, 4)
    model.net = random_network(arch, 4)
    x = noise(1, 64, torch.Generator().manual_seed(0))
    before = representations(model, x)
    unit = int(before[0].argmin())
    assert before[0, unit] == 0
    found = visualize(model, x, torch.tensor([unit]), eps=1000.0, steps=1, step_size=1.0)
    torch.testing.assert_close(norm(found - x, "l2"), torch.ones(1), atol=1e-3, rtol=0)


def test_noise_is_gray_and_depends_on_its_seed():
    one, same, other = (noise(3, 32, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.shape == (3, 3, 32, 32) and one.min() >= 0 and one.max() <= 1
    assert abs(one.mean() - 0.5) < 0.002 and abs(one.std() - 0.05) < 0.002


def test_measures():
    a, b = torch.rand(3, 2, 4, 4), torch.rand(3, 2, 4, 4)
    for i in range(3):
        left, right = a[i].flatten().numpy(), b[i].flatten().numpy()
        assert relative_distance(a, b)[i].item() == pytest.approx(
            np.linalg.norm(left - right) / np.linalg.norm(right), rel=1e-5
        )
        assert correlation(a, b)[i].item() == pytest.approx(np.corrcoef(left, right)[0, 1], 1e-5)
    assert correlation(a, torch.ones_like(a)).isnan().all()


def test_progress_counts_every_image_of_every_step():
    seen = []
    visualize(linear(), data()[0], torch.zeros(4, dtype=torch.int64), progress=seen.append, **HOW)
    assert seen == [4, 4, 4]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(kind="pixel"), "kind 'pixel' is unknown. Choose from unit, class"),
        (dict(targets=torch.tensor([0, 0, 5, 0])), "unit 5 does not exist .* Choose from 0 to 4"),
        (dict(targets=torch.tensor([0, 0, -1, 0])), "unit -1 does not exist"),
        (dict(targets=torch.tensor([0, 0, 3, 0]), kind="class"), "class 3 .* Choose from 0 to 2"),
        (dict(targets=torch.tensor([0])), r"shape \(1,\). Pass one index for each of the 4"),
        (dict(steps=0), "steps is 0; it must be at least 1"),
        (dict(eps=-1.0), "eps is -1.0"),
        (dict(step_size=float("nan")), "step_size is nan"),
        (dict(x=data()[0] + 1), r"must be in \[0, 1\]"),
    ],
)
def test_wrong_parameters(change, message):
    right = dict(x=data()[0], targets=torch.zeros(4, dtype=torch.int64)) | HOW
    with pytest.raises(UserError, match=message):
        visualize(linear(), **right | change)


def test_inference_mode_is_named():
    with torch.inference_mode(), pytest.raises(UserError, match="torch.inference_mode is on"):
        visualize(linear(), data()[0], torch.zeros(4, dtype=torch.int64), **HOW)


def test_targets_of_an_inversion():
    with pytest.raises(
        UserError, match=r"shape \(3, 5\). Pass one representation .* of the 4 images"
    ):
        invert(linear(), data()[0], torch.rand(3, 5), **HOW)


def test_a_network_without_gradients():
    net = linear()
    net.body.append(type("Cut", (nn.Module,), {"forward": lambda self, x: x.detach()})())
    with pytest.raises(UserError, match="has no gradient with respect to its images"):
        visualize(net, data()[0], torch.zeros(4, dtype=torch.int64), **HOW)
