"""Against the real `robustness` library: its files load here, ours load there; its attack and its
training step are ours."""

import copy
import types
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from classification.interpret import optimize
from classification.models import Classifier, load_classifier
from classification.training.learner import Learner
from robust_backbones import attacks
from robust_backbones.checkpoint import export
from robust_backbones.checkpoint.architectures import build_network
from robust_backbones.checkpoint.io import read_checkpoint
from tests.support import robustness_bridge, small_models
from tests.support.foreign_checkpoints import publish
from tests.support.networks import random_network


@pytest.fixture
def as_old_torch(monkeypatch):
    """The library calls torch.load for files with pickles of its own; since PyTorch 2.6 that must
    be asked for."""
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: load(*a, **{"weights_only": False} | k))
    robustness_bridge.stay_on_the_cpu(monkeypatch.setattr)


# Those that the library does not have by name.
FOREIGN = ("mobilenet_v2", "shufflenet_v2_x1_0")


def restore(library, arch, path=None):
    """The library's model: by name, or around torchvision's network as the authors do it."""
    dataset = library.datasets.ImageNet("/nowhere")
    dataset.num_classes = 10
    model, _ = library.model_utils.make_and_restore_model(
        arch=build_network(arch, 10) if arch in FOREIGN else arch,
        dataset=dataset,
        resume_path=path,
        parallel=False,
        add_custom_forward=arch in FOREIGN,
    )
    return model.eval()


@pytest.mark.usefixtures("as_old_torch")
@pytest.mark.parametrize(
    "arch", ["resnet18", "resnet50", "wide_resnet50_2", "densenet161", *FOREIGN]
)
def test_our_file_loads_in_the_library(library, tmp_path, arch):
    network = random_network(arch)
    torch.save(network.state_dict(), tmp_path / "a.pth")
    source = read_checkpoint(tmp_path / "a.pth")
    contents = export.robustness_contents(source)
    export.save(source, contents, "robustness", tmp_path / "b.pt")
    model = restore(library, arch, str(tmp_path / "b.pt"))  # strict

    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found, _ = model(image)
        expected = load_classifier(tmp_path / "b.pt")(image)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("as_old_torch")
@pytest.mark.parametrize("save", [torch.save, publish], ids=["zip", "published"])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50", *FOREIGN])
def test_the_librarys_file_loads_here(library, tmp_path, arch, save):
    """Saved as its training loop does it: DataParallel, dill, cyclic schedule and optimizer."""
    import dill

    torch.manual_seed(1)
    network = random_network(arch)
    model = restore(library, arch)
    inner = model.model.model if arch in FOREIGN else model.model
    inner.load_state_dict(network.state_dict())
    wrapped = torch.nn.DataParallel(model)
    settings = types.SimpleNamespace(
        lr=0.1, momentum=0.9, weight_decay=0, mixed_precision=False, epochs=15
    )
    settings.custom_lr_multiplier = "cyclic"  # stores NumPy scalars
    optimizer, schedule = library.train.make_optimizer_and_schedule(settings, wrapped, None, None)
    for parameter in wrapped.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # stores momentum
    schedule.step()
    assert isinstance(schedule.state_dict()["_last_lr"][0], np.float64)
    contents = {
        "model": wrapped.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "epoch": 90,
        "amp": None,
        "nat_prec1": 62.83,
    }
    save(contents, tmp_path / "a.ckpt", pickle_module=dill)

    read = read_checkpoint(tmp_path / "a.ckpt")
    assert (read.arch, read.layout, read.metadata["epoch"]) == (arch, "robustness", 90)
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected, _ = model(image)
        found = load_classifier(tmp_path / "a.ckpt")(image)
    assert torch.equal(found, expected)


# Radius and step: long enough that iterates meet the ball's border and overshoot, so that the best
# one is not always the last. The library's names of the norms are '2' and 'inf'.
ATTACKS = {"l2": ("2", 0.5, 0.4), "linf": ("inf", 8 / 255, 6 / 255)}


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    for norm in (net[1], net[4]):
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 2)
    return net


NETWORKS = {"conv": conv_net, "resnet18": partial(random_network, "resnet18")}


def precise(network: str, low=0.1, high=0.9):
    """A network in train mode, images `(5, 3, 32, 32)` in [0, 1], and labels.

    Inside (0, 1) unless asked otherwise: see the test with black and white pixels.

    In float64: the two sides scale the gradient differently (mean and sum of the batch's losses),
    and in float32 that rounding decides the sign of the few near-zero entries of a linf step, and,
    where two iterates' losses are nearly equal, which of them is best. Both are right then, and
    differ by a whole step. Five images, since division by a power of two would round nothing.
    """
    model = NETWORKS[network]().double().train()
    g = torch.Generator().manual_seed(3)
    x = low + (high - low) * torch.rand(5, 3, 32, 32, generator=g, dtype=torch.float64)
    return model, x.clamp(0, 1), torch.arange(5)


def both_attacks(library, model, x, y, constraint, steps, **options):
    """The library's adversarial images and ours."""
    theirs_constraint, eps, step_size = ATTACKS[constraint]
    # A copy: after its attack it runs the images in train mode, which moves BatchNorm's statistics.
    theirs = robustness_bridge.wrap(library, copy.deepcopy(model)).double().train()
    _, expected = theirs(
        x,
        y,
        make_adv=True,
        constraint=theirs_constraint,
        eps=eps,
        step_size=step_size,
        iterations=steps,
        **options,
    )
    ours = robustness_bridge.as_ours(model).double().train()
    found = attacks.pgd(
        ours, x, y, constraint=constraint, eps=eps, step_size=step_size, steps=steps, **options
    )
    assert (found - x).abs().amax((1, 2, 3)).max() > 1e-3  # not just x
    return expected, found


@pytest.mark.usefixtures("as_old_torch")
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("use_best", [True, False])
@pytest.mark.parametrize("steps", [1, 3, 7])
@pytest.mark.parametrize("constraint", ATTACKS)
@pytest.mark.parametrize("network", NETWORKS)
def test_adversarial_images_agree(library, network, constraint, steps, use_best, targeted):
    expected, found = both_attacks(
        library, *precise(network), constraint, steps, use_best=use_best, targeted=targeted
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("as_old_torch")
@pytest.mark.parametrize("use_best", [True, False])
@pytest.mark.parametrize("constraint", ATTACKS)
def test_adversarial_images_with_black_and_white_pixels_agree(
    library, monkeypatch, constraint, use_best
):
    """The library clamps images to [0, 1] again before it normalises them. Where a pixel is exactly
    0 or 1, the gradient of `clamp` was 1 when the library was written and is 0 in PyTorch 2.14
    (pytorch issue 184574): its attack no longer moves such pixels. Ours has no such clamp and does,
    as the library's own without it, which changes no value.
    """
    normalizer = library.attacker.helpers.InputNormalize
    monkeypatch.setattr(normalizer, "forward", lambda self, x: (x - self.new_mean) / self.new_std)
    model, x, y = precise("conv", -0.1, 1.1)
    assert (x == 0).any() and (x == 1).any()
    expected, found = both_attacks(library, model, x, y, constraint, 7, use_best=use_best)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found != x)[x == 0].any() and (found != x)[x == 1].any()


@pytest.mark.usefixtures("as_old_torch")
@pytest.mark.parametrize("use_best", [True, False])
@pytest.mark.parametrize("constraint", ATTACKS)
@pytest.mark.parametrize("network", NETWORKS)
def test_training_steps_agree(library, network, constraint, use_best):
    """Two steps, since the first one's momentum only moves weights in the second."""
    model, x, y = precise(network)
    theirs_constraint, eps, step_size = ATTACKS[constraint]
    batches = [(x, y), (x.flip(0), y.flip(0))]
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01)
    before, twin = copy.deepcopy(model.state_dict()), copy.deepcopy(model)

    theirs = robustness_bridge.wrap(library, twin).double()
    settings = robustness_bridge.loop_settings(
        constraint=theirs_constraint,
        eps=eps,
        attack_lr=step_size,
        attack_steps=3,
        use_best=use_best,
    )
    library.train._model_loop(
        settings, "train", batches, theirs, sgd(theirs.parameters()), 0, True, None
    )
    ours = robustness_bridge.as_ours(model).double()
    learner = Learner(
        ours,
        small_models.learning(
            constraint=constraint,
            eps=eps,
            step_size=step_size,
            steps=3,
            use_best=use_best,
            weight_decay=0.01,
        ),
    )
    for images, labels in batches:
        small_models.trained_on(learner, images, labels, 0.05)

    for name, expected in twin.state_dict().items():  # BatchNorm's statistics too
        torch.testing.assert_close(model.state_dict()[name], expected, rtol=0, atol=1e-4, msg=name)
    floats = [name for name, value in before.items() if value.is_floating_point()]
    assert max((model.state_dict()[n] - before[n]).abs().max() for n in floats) > 0.01  # it moved


@pytest.mark.usefixtures("as_old_torch")
@pytest.mark.parametrize("use_best", [True, False])
@pytest.mark.parametrize("what", ["invert", "unit"])
def test_pictures_of_representations_agree(library, monkeypatch, what, use_best):
    """Their notebooks' losses on their ResNet, whose `fake_relu` is our straight gradient."""
    normalizer = library.attacker.helpers.InputNormalize  # as above: no second clamp
    monkeypatch.setattr(normalizer, "forward", lambda self, x: (x - self.new_mean) / self.new_std)
    ours, theirs = Classifier.build("resnet18", 10).double(), restore(library, "resnet18").double()
    ours.net.load_state_dict(random_network("resnet18").state_dict())
    theirs.model.load_state_dict(ours.net.state_dict())
    theirs.attacker.normalize.double()
    x, other = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    units = torch.tensor([5, 17, 400])

    def loss(model, z, targets):
        _, found = model(z, with_latent=True, fake_relu=True)
        if what == "unit":
            return found[torch.arange(3), targets], None
        return (found - targets).norm(dim=1) / targets.norm(dim=1), None

    function = {"invert": optimize.invert, "unit": optimize.visualize}[what]
    targets = units if what == "unit" else optimize.representations(ours.eval(), other)
    _, expected = theirs(
        x,
        targets,
        make_adv=True,
        custom_loss=loss,
        constraint="2",
        eps=1000,
        step_size=1.0,
        iterations=6,
        use_best=use_best,
        targeted=what == "invert",
    )
    found = function(ours, x, targets, eps=1000.0, step_size=1.0, steps=6, use_best=use_best)
    assert (found - x).flatten(1).norm(dim=1).min() > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
