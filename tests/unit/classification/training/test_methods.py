"""Training methods against the formulas of their authors."""

import copy
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from classification.training.methods import METHODS, Objective, replay
from robust_backbones.attacks import pgd
from tests.support.small_models import blobs, convolutional, learning, linear, norm


def crafted(method, model, x, y, **changes):
    """Adversarial images of each update, with a backward pass after each."""
    model = copy.deepcopy(model)  # the loss changes its BatchNorm statistics
    row = METHODS[method]
    settings, found = learning(method=method, **changes), []
    loss, generator = Objective(model, settings), torch.Generator().manual_seed(3)
    x_adv = row.craft(model, x, y, settings.attack, generator)
    for update in range(settings.updates_per_batch):
        if update:
            x_adv = replay(x_adv, x, settings.attack)
        found.append(x_adv.detach().clone())
        loss(x, x_adv, y)[0].backward()
    return found


@pytest.mark.parametrize("constraint", ["l2", "linf"])
@pytest.mark.parametrize("method", METHODS)
def test_images_stay_in_the_ball_and_in_range(method, constraint):
    model, (x, y) = convolutional(), blobs(8)
    changes = dict(constraint=constraint, eps=0.2, random_start=method != "pgd")
    for x_adv in crafted(method, model, x, y, **changes):
        assert norm(x_adv - x, constraint).max() <= 0.2 * (1 + 1e-5)
        assert x_adv.min() >= 0 and x_adv.max() <= 1
        assert method == "standard" or (x_adv != x).any()


@pytest.mark.parametrize("method", METHODS)
def test_each_layer_keeps_its_mode_and_its_statistics(method):
    model, (x, y) = convolutional(), blobs(8)
    model[1].eval()  # frozen by its user
    before = copy.deepcopy(model.state_dict())
    attack = learning(random_start=True).attack
    METHODS[method].craft(model, x, y, attack, torch.Generator())
    assert model.training and not model[1].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_standard_trains_on_the_images_themselves():
    x, y = blobs(8)
    assert torch.equal(crafted("standard", convolutional(), x, y)[0], x)


@pytest.mark.parametrize("method", ["pgd", "fast"])
def test_pgd_and_fast_are_the_attack(method):
    model, (x, y) = convolutional(), blobs(8)
    attack = dict(
        constraint="linf", eps=0.1, steps=1, step_size=0.125, random_start=True, use_best=False
    )
    expected = pgd(model, x, y, **attack, generator=torch.Generator().manual_seed(3))
    assert torch.equal(crafted(method, model, x, y, **attack)[0], expected)


def test_free_moves_by_the_gradient_of_each_update():
    """Shafahi et al. 2019, algorithm 1: `m` updates, each moving the perturbation by eps * sign."""
    (net, direction), (x, y) = linear(), blobs(8)
    first, second, third = crafted(
        "free", net, x, y, constraint="linf", eps=0.1, steps=3, step_size=0.1, random_start=True
    )
    assert not torch.equal(first, x)  # a random start
    assert torch.equal(crafted("free", net, x, y, random_start=False)[0], x)
    # The loss of class 0 rises along w1 - w0 and the loss of class 1 against it, at every x.
    uphill = (direction * (1 - 2 * y).view(-1, 1, 1, 1)).sign()
    for before, after in ((first, second), (second, third)):
        expected = (before + 0.1 * uphill).clamp(x - 0.1, x + 0.1).clamp(0, 1)
        torch.testing.assert_close(after, expected)


def test_the_loss_of_trades_matches_the_authors_code():
    """trades.py sums KLDivLoss and divides it by the batch size."""
    model, (x, y) = convolutional().eval(), blobs(8)
    x_adv = (x + 0.05).clamp(0, 1)
    loss, logits = Objective(model, learning(method="trades", beta=3.0))(x, x_adv, y)
    robust = torch.nn.KLDivLoss(reduction="sum")(
        F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1)
    )
    expected = F.cross_entropy(model(x), y) + 3.0 * robust / len(x)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(logits, model(x_adv))


@pytest.mark.parametrize(("scale", "authors_are_finite"), [(1.0, True), (2000.0, False)])
def test_the_gradient_of_trades_is_finite_where_a_probability_underflows(scale, authors_are_finite):
    (model, _), (x, y) = linear(), blobs(8)
    with torch.no_grad():
        model[1].weight *= scale
    weight, x_adv = model[1].weight, (x + 0.05).clamp(0, 1)
    loss, _ = Objective(model, learning(method="trades", beta=3.0))(x, x_adv, y)
    (gradient,) = torch.autograd.grad(loss, [weight])
    divergence = F.kl_div(
        F.log_softmax(model(x_adv), 1), F.softmax(model(x), 1), reduction="batchmean"
    )
    (theirs,) = torch.autograd.grad(F.cross_entropy(model(x), y) + 3.0 * divergence, [weight])
    assert gradient.isfinite().all() and bool(theirs.isfinite().all()) == authors_are_finite
    if authors_are_finite:
        torch.testing.assert_close(gradient, theirs)


def test_trades_attacks_the_divergence_and_not_the_label():
    model, (x, y) = convolutional(), blobs(8)
    attack = dict(eps=0.5, steps=5, step_size=0.2, random_start=True)
    found = crafted("trades", model, x, y, **attack)[0]
    assert torch.equal(found, crafted("trades", model, x, 1 - y, **attack)[0])
    model.eval()

    def divergence(x_adv):
        clean = F.softmax(model(x), 1)
        return F.kl_div(F.log_softmax(model(x_adv), 1), clean, reduction="none").sum(1)

    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    random = (x + 0.5 * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
    assert (divergence(found) > divergence(random)).float().mean() > 0.8


def test_label_smoothing_matches_pytorch():
    model, (x, y) = convolutional().eval(), blobs(8)
    smooth = partial(F.cross_entropy, label_smoothing=0.2)
    for method, expected in (("pgd", smooth(model(x), y)), ("trades", smooth(model(x), y))):
        loss, _ = Objective(model, learning(method=method, label_smoothing=0.2))(
            x, x, y
        )  # equal images have no divergence
        torch.testing.assert_close(loss, expected)
