"""The attack contract, and the optima that a linear model has in closed form."""

import copy

import pytest
import torch
from torch import nn

from robust_backbones.attacks import CONSTRAINTS, pgd
from robust_backbones.core.errors import UserError
from tests.support.small_models import convolutional, data, linear, norm

BALLS = [("l2", 0.5), ("linf", 8 / 255)]
# Large enough to leave the ball in one step, and to push pixels over the border of [0, 1].
WIDE = [("l2", 3.0), ("linf", 0.6)]

OPTIONS = [
    dict(),
    dict(use_best=False),
    dict(targeted=True),
    dict(random_start=True),
    dict(random_start=True, use_best=False, targeted=True),
    dict(random_start=True, restarts=3),
    dict(random_start=True, restarts=3, use_best=False),
]


@pytest.fixture
def model():
    return convolutional()


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("constraint, eps", [("l2", 0.1), ("linf", 4 / 255)])
def test_a_linear_models_optimum(constraint, eps, steps):
    net, direction = linear()
    x, y = data(low=0.4, high=0.6)
    up = torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1) * direction
    unit = up / up.flatten(1).norm(dim=1).view(-1, 1, 1, 1) if constraint == "l2" else up.sign()
    x_adv = pgd(net, x, y, constraint=constraint, eps=eps, steps=steps, step_size=eps)
    torch.testing.assert_close(x_adv, x + eps * unit, atol=1e-6, rtol=0)


@pytest.mark.parametrize("constraint, eps", [("l2", 0.1), ("linf", 4 / 255)])
def test_steps_inside_the_ball_add_up(constraint, eps):
    net, _ = linear()
    x, y = data(low=0.4, high=0.6)
    bound = dict(constraint=constraint, eps=eps)
    once = pgd(net, x, y, steps=1, step_size=eps / 2, **bound)
    twice = pgd(net, x, y, steps=2, step_size=eps / 4, **bound)
    torch.testing.assert_close(once, twice, atol=1e-6, rtol=0)
    torch.testing.assert_close(norm(once - x, constraint), torch.full((4,), eps / 2))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("constraint, eps", BALLS + WIDE)
def test_the_result_is_in_the_ball_and_is_an_image(model, constraint, eps, options):
    x, y = data()
    x_adv = pgd(
        model,
        x,
        y,
        constraint=constraint,
        eps=eps,
        steps=3,
        step_size=2 * eps,
        generator=torch.Generator().manual_seed(0),
        **options,
    )
    assert (norm(x_adv - x, constraint) <= eps + 1e-6).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert x_adv.shape == x.shape and not x_adv.requires_grad
    assert not torch.equal(x_adv, x)


@pytest.mark.parametrize("constraint, eps", BALLS)
def test_the_loss_never_falls(model, constraint, eps):
    x, y = data(16)
    model.eval()
    loss = nn.CrossEntropyLoss(reduction="none")
    # Steps far too long overshoot; the clean image itself is then the best point seen.
    for step_size in (eps / 3, 50 * eps):
        x_adv = pgd(model, x, y, constraint=constraint, eps=eps, steps=2, step_size=step_size)
        assert (loss(model(x_adv), y) >= loss(model(x), y) - 1e-6).all()


@pytest.mark.parametrize("constraint, eps", BALLS)
def test_an_image_is_attacked_independently_of_its_batch(model, constraint, eps):
    x, y = data(4)
    bound = dict(constraint=constraint, eps=eps, steps=3, step_size=eps / 2)
    together = pgd(model, x, y, **bound)
    alone = torch.cat([pgd(model, x[i : i + 1], y[i : i + 1], **bound) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("constraint, eps", BALLS)
def test_purity(model, constraint, eps):
    x, y = data()
    model.train()
    model[1].eval()  # one frozen layer among training ones
    model[0].weight.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    x.requires_grad_()
    state = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    rng, x_before = torch.get_rng_state(), x.detach().clone()
    with torch.no_grad():  # the caller's grad mode does not matter either
        pgd(
            model,
            x,
            y,
            constraint=constraint,
            eps=eps,
            steps=2,
            step_size=eps,
            random_start=True,
            generator=torch.Generator().manual_seed(3),
        )
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(model[5].weight.grad, torch.ones_like(model[5].weight))
    assert all(p.grad is None for p in model.parameters() if p is not model[5].weight)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(x, x_before) and x.grad is None


def test_modes_come_back_after_a_failure(model):
    x, y = data()
    model.train()
    with pytest.raises(IndexError):
        pgd(model, x, y + 5, constraint="l2", eps=1.0, steps=1, step_size=1.0)
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_eps_zero_gives_x(model, constraint):
    x, y = data()
    x_adv = pgd(model, x, y, constraint=constraint, eps=0.0, steps=3, step_size=0.0)
    assert torch.equal(x_adv, x)


@pytest.mark.parametrize("constraint, eps", BALLS)
def test_a_random_start_follows_its_generator(model, constraint, eps):
    x, y = data()

    def attack(seed):
        # No step length: what comes back is the start.
        return pgd(
            model,
            x,
            y,
            constraint=constraint,
            eps=eps,
            steps=1,
            step_size=0.0,
            random_start=True,
            generator=torch.Generator().manual_seed(seed),
        )

    assert torch.equal(attack(1), attack(1))
    assert not torch.equal(attack(1), attack(2))


def test_random_starts_of_l2_lie_on_the_sphere_and_of_linf_in_the_box():
    x, generator = torch.full((50, 3, 6, 6), 0.5), torch.Generator().manual_seed(0)
    l2 = CONSTRAINTS["l2"].random_start(x, 0.2, generator) - x
    torch.testing.assert_close(norm(l2, "l2"), torch.full((50,), 0.2))
    linf = CONSTRAINTS["linf"].random_start(x, 0.2, generator) - x
    assert linf.abs().max() <= 0.2 + 1e-6 and abs(linf.std() - 0.2 / 3**0.5) < 0.005


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(constraint="l1"), "'l1' is unknown. Choose from l2, linf"),
        (dict(eps=-0.1), "eps is -0.1. It must be a finite number of at least 0"),
        (dict(eps=float("nan")), "eps is nan"),
        (dict(steps=0), "steps is 0; it must be at least 1"),
        (dict(step_size=-1.0), "step_size is -1.0"),
        (dict(random_start=True), "random_start needs a generator"),
        (dict(restarts=0), "restarts is 0; it must be at least 1"),
        (dict(restarts=2), "restarts is 2, but without random_start all tries are equal"),
    ],
)
def test_wrong_parameters(model, change, message):
    x, y = data()
    right = dict(constraint="l2", eps=1.0, steps=1, step_size=1.0)
    with pytest.raises(UserError, match=message):
        pgd(model, x, y, **right | change)


def test_images_without_a_batch(model):
    with pytest.raises(UserError, match=r"shape \(3, 6, 6\); images must be \(N, C, H, W\)"):
        pgd(model, data()[0][0], 0, constraint="l2", eps=1.0, steps=1, step_size=1.0)


@pytest.mark.parametrize("value", [-0.1, 1.1, 200.0, float("nan")])
@pytest.mark.parametrize("eps", [0.0, 1.0])
def test_images_outside_the_unit_range(model, value, eps):
    x, y = data()
    x[0, 0, 0, 0] = value
    with pytest.raises(UserError, match=r"must be in \[0, 1\]"):
        pgd(model, x, y, constraint="l2", eps=eps, steps=1, step_size=1.0)
