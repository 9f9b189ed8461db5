"""Folded copies for attacks compute the model's function and do not change the model."""

import copy
from functools import partial, partialmethod

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

from classification.models import Normalize
from classification.training import folding
from classification.training.folding import FoldedCopy
from classification.training.learner import Learner
from robust_backbones import attacks
from robust_backbones.archs import ARCHS, RESNETS
from tests.support.networks import random_network
from tests.support.small_models import convolutional, data, learning, trained_on

CONVOLUTION = torch.ops.aten.convolution_backward.default
LARGE = {
    "resnet101",
    "resnet152",
    "wide_resnet50_4",
    "wide_resnet101_2",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
}


def classifier(arch: str = "resnet18", dtype=torch.float64) -> nn.Sequential:
    """A network with normalization, in train mode."""
    return nn.Sequential(Normalize(), random_network(arch)).to(dtype).train()


def images(n=3, size=48, dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    return torch.rand(n, 3, size, size, generator=g, dtype=torch.float64).to(dtype)


class Odd(nn.Module):
    """Networks in which folding could go wrong; `part` selects one."""

    def __init__(self, part: str):
        super().__init__()
        torch.manual_seed(0)
        self.part = part
        padding = dict(padding="same") if part == "same" else dict(padding=1)
        mode = "reflect" if part == "reflect" else "zeros"
        self.conv = nn.Conv2d(3, 3, 3, padding_mode=mode, **padding)
        self.norm = nn.BatchNorm2d(3, affine=part != "plain", track_running_stats=part != "batch")
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(3, 10)
        self.double()
        if part != "batch":
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        part, y = self.part, self.conv(x)
        if part == "untraceable" and y.mean() > 100:
            y = y + 1
        z = self.norm(y)
        if part == "conv used twice":
            z = z + y
        if part == "norm used twice":
            z = z + self.norm(x)
        if part == "conv called twice":
            z = z + self.conv(z)
        if part == "relu and more":
            z = z.clone() + self.relu(z)
        return self.fc(self.relu(z).mean((2, 3)))


def differences(folded, model, x) -> list[float]:
    """Relative differences of the logits and of their gradients from the model's."""
    model = copy.deepcopy(model).eval()
    sides = [folding._logits_and_gradient(network, x) for network in (folded, model)]
    return [folding._difference(a, b) for a, b in zip(*sides, strict=True)]


def norms_used(folded) -> int:
    assert isinstance(folded.network, torch.fx.GraphModule)
    calls = [n.target for n in folded.network.graph.nodes if n.op == "call_module"]
    return sum(isinstance(folded.network.get_submodule(c), nn.BatchNorm2d) for c in calls)


@pytest.mark.parametrize(
    "arch", [pytest.param(a, marks=pytest.mark.slow if a in LARGE else ()) for a in ARCHS]
)
def test_every_architecture(capsys, arch):
    model, x = classifier(arch), images(2, 32)
    folded = FoldedCopy(model)
    assert max(differences(folded, model, x)) < 1e-5
    if arch in RESNETS:
        assert norms_used(folded) == 0
    model.float()
    folded.refresh()
    logits, gradient = differences(folded, model, x.float())
    # Rounding can switch a ReLU whose input is nearly 0, which changes the gradient.
    assert logits < 1e-5 and gradient < 0.05
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_refresh_copies_every_change(dtype):
    model = Odd("").to(dtype)
    folded, x = FoldedCopy(model), images(size=8, dtype=dtype)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point():
            stale = copy.deepcopy(model)
            with torch.no_grad():
                value.mul_(1.5).add_(0.01)
            assert max(differences(folded.refresh(), model, x)) < 1e-5, name
            assert max(differences(folded, stale, x)) > 1e-5, name
    model.load_state_dict(Odd("").to(dtype).state_dict(), assign=True)
    assert differences(folded.refresh(), model, x)[0] < 1e-5
    model.double()
    assert max(differences(folded.refresh(), model, x.double())) < 1e-5


def test_the_model_does_not_change():
    model = classifier(dtype=torch.float32)
    model[1].layer1.eval().requires_grad_(False)
    for p in model[1].fc.parameters():
        p.grad = torch.ones_like(p)
    state = copy.deepcopy(model.state_dict())
    before = [(m.training, list(m._modules)) for m in model.modules()]
    required = [(p, p.requires_grad, p.grad, p.data_ptr()) for p in model.parameters()]
    folded, x = FoldedCopy(model), images(dtype=torch.float32)
    pgd = partial(attacks.pgd, constraint="l2", eps=1.0, steps=2, step_size=0.5)
    for _ in range(2):
        pgd(folded.refresh(), x, torch.arange(3))
    folded.train()
    assert not any(m.training for m in folded.modules())
    assert before == [(m.training, list(m._modules)) for m in model.modules()]
    after = [(p, p.requires_grad, p.grad, p.data_ptr()) for p in model.parameters()]
    for old, new in zip(required, after, strict=True):
        assert all(a is b or a == b for a, b in zip(old, new, strict=True))
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert not any(p.requires_grad for p in folded.parameters())


@pytest.mark.parametrize("use_best", [True, False])
@pytest.mark.parametrize("constraint, eps", [("l2", 1.0), ("linf", 8 / 255)])
def test_equal_adversarial_images(constraint, eps, use_best):
    model, x, y = classifier(), images(), torch.arange(3)
    pgd = partial(
        attacks.pgd, constraint=constraint, eps=eps, steps=3, step_size=eps / 2, use_best=use_best
    )
    found = pgd(FoldedCopy(model).refresh(), x, y)
    torch.testing.assert_close(found, pgd(model, x, y), rtol=0, atol=1e-5)
    assert (found - x).abs().max() > 1e-3


def test_equal_training():
    """The second step has other weights, so an outdated copy would fail."""
    attack = dict(eps=1.0, step_size=0.5, lr=0.01)
    ours, theirs = (Learner(classifier(), learning(**attack)) for _ in range(2))
    assert ours.folded
    theirs.folded = None
    x, y = images(5, 32), torch.arange(5)
    for learner in (ours, theirs):
        for seed, flips in enumerate(([], [0])):
            trained_on(learner, x.flip(flips), y.flip(flips), 0.01, seed)
    for name, value in theirs.model.state_dict().items():
        found = ours.model.state_dict()[name]
        torch.testing.assert_close(found, value, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "part",
    [
        "",
        "plain",
        "batch",
        "same",
        "reflect",
        "untraceable",
        "conv used twice",
        "norm used twice",
        "conv called twice",
        "relu and more",
    ],
)
def test_odd_networks(capsys, part, dtype):
    model = Odd(part).to(dtype)
    folded = FoldedCopy(model)
    with torch.no_grad():
        model.conv.weight.mul_(-1.5)
    assert max(differences(folded.refresh(), model, images(size=8, dtype=dtype))) < 1e-5
    assert capsys.readouterr().err == ""


def test_a_wrong_copy_is_not_used(monkeypatch, capsys):
    def wrong(folds):
        for conv, new in zip(folds.convs, folds.folded, strict=True):
            new.weight.copy_(conv.weight)
            new.bias.zero_()

    monkeypatch.setattr(folding._Folds, "refresh", wrong)
    model = classifier()
    folded = FoldedCopy(model)
    assert differences(folded, model, images()) == [0, 0]
    assert "warning: folding BatchNorm changed the network (logits differ" in (
        capsys.readouterr().err
    )
    with torch.no_grad():
        model[1].fc.weight.mul_(2)
    assert differences(folded.refresh(), model, images()) == [0, 0]
    assert capsys.readouterr().err == ""  # the warning is printed once


def test_autocast(capsys):
    model = classifier(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = differences(FoldedCopy(model), model, images(dtype=torch.float32))
    assert logits < 0.1 and capsys.readouterr().err == ""


class Masks(TorchDispatchMode):
    """Gradients that convolutions compute: for input, weight and bias."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is CONVOLUTION:
            self.found.append(list(args[-1]))
        return operation(*args, **kwargs or {})


def test_attacks_compute_no_gradients_of_weights(monkeypatch):
    """Eager and compiled. Compiled, an attack on the model itself would."""
    pgd = partial(attacks.pgd, constraint="l2", eps=1.0, steps=2, step_size=0.5)
    model, (x, y) = convolutional(), data()
    model.insert(0, nn.Conv2d(3, 3, 1))
    with Masks() as masks:
        expected = pgd(FoldedCopy(model), x, y)
    # The first two belong to the comparison with the model.
    assert masks.found[2:4] and masks.found[4:] == [[True, False, False]] * 4

    compiled = []

    def capture(graph, inputs):
        nodes = [node for node in graph.graph.nodes if node.target is CONVOLUTION]
        compiled.extend(list(node.args[-1]) for node in nodes)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=capture, bw_compiler=capture)
    found = pgd(torch.compile(model, backend=backend), x, y)
    assert all(weight for _, weight, _ in compiled)
    compiled.clear()
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", partialmethod(compile_module, backend=backend))
    folded = FoldedCopy(model, compiles=True)
    found = pgd(folded, x, y)
    assert compiled == [[True, False, False]] * 2  # one graph for all steps
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    torch.testing.assert_close(pgd(folded.refresh(), x, y), pgd(model, x, y))
    assert len(compiled) == 2  # new weights are not compiled again


def test_the_copy_adds_nothing_to_the_state_dict():
    model = classifier()
    names = list(model.state_dict())
    FoldedCopy(model)
    assert list(model.state_dict()) == names
