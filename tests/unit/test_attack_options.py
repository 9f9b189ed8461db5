"""What the options of the attacks do, what they cost, and models without a usable gradient."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from robust_backbones.attacks import CONSTRAINTS, fgsm, pgd
from robust_backbones.core.errors import UserError
from tests.support.backward_masks import BackwardMasks
from tests.support.small_models import convolutional, data, linear, norm

BALLS = [("l2", 0.5), ("linf", 8 / 255)]
# So small, around grey, that no pixel reaches the border of [0, 1].
SMALL = [("l2", 0.1), ("linf", 4 / 255)]


@pytest.fixture
def model():
    return convolutional()


def losses(model, x, y):
    """Of each image, in eval mode as the attack sees it."""
    with torch.no_grad():
        return cross_entropy(model.eval()(x), y, reduction="none")


@pytest.mark.parametrize("constraint, eps", SMALL)
def test_reaching_one_of_two_classes_is_leaving_the_other(constraint, eps):
    net, _ = linear()
    x, y = data(low=0.4, high=0.6)
    away = pgd(net, x, y, constraint=constraint, eps=eps, steps=3, step_size=eps / 2)
    to = pgd(
        net, x, 1 - y, constraint=constraint, eps=eps, steps=3, step_size=eps / 2, targeted=True
    )
    torch.testing.assert_close(to, away, atol=1e-6, rtol=0)
    assert (losses(net, to, 1 - y) < losses(net, x, 1 - y)).all()


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("constraint, eps", BALLS)
def test_the_best_iterate_and_the_last(model, constraint, eps, targeted):
    """Against a loop written out here: all iterates kept, their losses taken one by one."""
    x, y = data(16)
    rule, sign, step_size = CONSTRAINTS[constraint], -1 if targeted else 1, 3 * eps
    iterates = [x]
    for _ in range(4):
        point = iterates[-1].clone().requires_grad_()
        loss = cross_entropy(model.eval()(point), y, reduction="sum")
        (gradient,) = torch.autograd.grad(sign * loss, [point])
        iterates.append(rule.project(rule.step(iterates[-1], gradient, step_size), x, eps))
        iterates[-1] = iterates[-1].clamp(0, 1)
    scores = torch.stack([sign * losses(model, iterate, y) for iterate in iterates])
    best = torch.stack(iterates)[scores.argmax(0), torch.arange(16)]

    bound = dict(constraint=constraint, eps=eps, steps=4, step_size=step_size, targeted=targeted)
    torch.testing.assert_close(pgd(model, x, y, **bound), best, atol=1e-6, rtol=0)
    last = pgd(model, x, y, use_best=False, **bound)
    torch.testing.assert_close(last, iterates[-1], atol=1e-6, rtol=0)
    assert not torch.equal(best, last)  # else this would show nothing


@pytest.mark.parametrize("use_best", [True, False])
@pytest.mark.parametrize("constraint, eps", BALLS)
def test_the_best_try_of_each_image(model, constraint, eps, use_best):
    x, y = data(16)
    bound = dict(
        constraint=constraint, eps=eps, steps=2, step_size=eps, random_start=True, use_best=use_best
    )
    generator = torch.Generator().manual_seed(5)
    tries = torch.stack([pgd(model, x, y, generator=generator, **bound) for _ in range(3)])
    winners = torch.stack([losses(model, x_adv, y) for x_adv in tries]).argmax(0)
    assert len(winners.unique()) > 1  # neither the first nor the last try wins everywhere
    found = pgd(model, x, y, restarts=3, generator=torch.Generator().manual_seed(5), **bound)
    torch.testing.assert_close(found, tries[winners, torch.arange(16)], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "options, passes",
    [
        (dict(use_best=False), 4),
        (dict(use_best=True), 5),
        (dict(use_best=False, restarts=2), 10),
        (dict(use_best=True, restarts=3), 15),
    ],
    ids=str,
)
def test_forward_passes(model, options, passes):
    x, y = data()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    pgd(
        model,
        x,
        y,
        constraint="l2",
        eps=1.0,
        steps=4,
        step_size=1.0,
        random_start=True,
        generator=torch.Generator(),
        **options,
    )
    assert len(calls) == passes
    calls.clear()
    fgsm(model, x, y, constraint="l2", eps=1.0)
    assert len(calls) == 1


def test_gradients_of_parameters_are_not_computed(model):
    x, y = data()
    with BackwardMasks() as seen:
        cross_entropy(model(x), y).backward()
        assert all(weight for _, weight, _ in seen.masks)  # in training they are
        seen.masks.clear()
        pgd(model, x, y, constraint="l2", eps=1.0, steps=3, step_size=1.0)
    assert seen.masks == [(True, False, False)] * 6  # convolution and BatchNorm, three steps


@pytest.mark.parametrize("constraint, eps", SMALL)
def test_fgsm_is_one_step(constraint, eps):
    net, direction = linear()
    x, y = data(low=0.4, high=0.6)
    up = torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1) * direction
    unit = CONSTRAINTS[constraint].step(torch.zeros_like(x), up.expand_as(x), 1.0)
    x_adv = fgsm(net, x, y, constraint=constraint, eps=eps)
    torch.testing.assert_close(x_adv, x + eps * unit, atol=1e-6, rtol=0)
    short = fgsm(net, x, y, constraint=constraint, eps=eps, step_size=eps / 4)
    torch.testing.assert_close(short, x + eps / 4 * unit, atol=1e-6, rtol=0)
    to = fgsm(net, x, y, constraint=constraint, eps=eps, targeted=True)
    torch.testing.assert_close(to, x - eps * unit, atol=1e-6, rtol=0)


def test_fgsm_from_a_random_start_is_that_of_fast_training():
    net, direction = linear()
    x, y = data(low=0.4, high=0.6)
    up = torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1) * direction
    eps, generator = 8 / 255, torch.Generator().manual_seed(2)
    delta = CONSTRAINTS["linf"].random_start(x, eps, generator) - x
    expected = x + (delta + 1.25 * eps * up.sign()).clamp(-eps, eps)
    x_adv = fgsm(
        net,
        x,
        y,
        constraint="linf",
        eps=eps,
        step_size=1.25 * eps,
        random_start=True,
        generator=torch.Generator().manual_seed(2),
    )
    torch.testing.assert_close(x_adv, expected, atol=1e-6, rtol=0)


class Odd(nn.Module):
    """Logits `scale * mean(x)` and 0, whatever the other images; the scale is the image's own."""

    def __init__(self, scale):
        super().__init__()
        self.scale = torch.tensor(scale)

    def forward(self, x):
        first = self.scale * x.mean((1, 2, 3))
        return torch.stack([first, torch.zeros_like(first)], 1)


@pytest.mark.parametrize("use_best", [True, False])
@pytest.mark.parametrize("constraint, eps", SMALL)
@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_an_image_without_direction_stays(constraint, eps, use_best, scale):
    x, y = data(3, low=0.4, high=0.6)
    bound = dict(constraint=constraint, eps=eps, steps=3, step_size=eps, use_best=use_best)
    x_adv = pgd(Odd([1.0, scale, 1.0]), x, y, **bound)
    assert torch.equal(x_adv[1], x[1])
    torch.testing.assert_close(norm(x_adv - x, constraint)[::2], torch.full((2,), eps))
    if constraint == "l2":  # a start beyond the border of [0, 1] is only clamped
        x = torch.zeros_like(x)
        bound |= dict(random_start=True, generator=torch.Generator().manual_seed(0))
        x_adv = pgd(Odd([1.0, scale, 1.0]), x, y, **bound)
        assert x_adv.isfinite().all() and x_adv.min() == 0 and norm(x_adv, "l2").max() <= eps + 1e-6


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_in_one_pixel_is_none(constraint, value):
    x, _ = data(2)
    gradient = torch.ones_like(x)
    gradient[0, 1, 2, 3] = value
    moved = CONSTRAINTS[constraint].step(x, gradient, 0.1)
    assert torch.equal(moved[0], x[0]) and (moved[1] > x[1]).all()


@pytest.mark.parametrize("constraint, eps", SMALL)
def test_a_tiny_gradient_gives_a_whole_step(constraint, eps):
    """1e-30 squared is 0 in float32."""
    x, y = data(2, low=0.4, high=0.6)
    x_adv = pgd(
        Odd([1e-28, 1e-28]),
        x,
        y,
        constraint=constraint,
        eps=eps,
        steps=1,
        step_size=eps,
        use_best=False,
    )
    torch.testing.assert_close(norm(x_adv - x, constraint), torch.full((2,), eps))


@pytest.mark.parametrize("logits", [lambda x: torch.zeros(4, 2), lambda x: x.round().detach()])
def test_a_model_that_hides_its_gradient(logits):
    class Hiding(nn.Linear):
        def forward(self, x):
            return super().forward(logits(x).flatten(1)[:, :2])

    for trained in (True, False):
        model = Hiding(2, 2).requires_grad_(trained)
        with pytest.raises(UserError, match="no gradient with respect to its images"):
            pgd(model, *data(), constraint="l2", eps=1.0, steps=1, step_size=1.0)


@pytest.mark.parametrize(
    ("inside", "images"),
    [
        (torch.inference_mode, data),
        (contextlib.nullcontext, torch.inference_mode()(data)),  # images that were created inside
    ],
)
def test_inference_mode_is_named(model, inside, images):
    with inside(), pytest.raises(UserError, match="torch.inference_mode is on .*inference_mode=F"):
        pgd(model, *images(), constraint="l2", eps=1.0, steps=1, step_size=1.0)
    with torch.no_grad():
        assert pgd(model, *data(), constraint="l2", eps=1.0, steps=1, step_size=1.0).shape


def test_double_precision_and_an_empty_batch(model):
    x, y = data()
    bound = dict(constraint="l2", eps=1.0, steps=2, step_size=1.0)
    assert pgd(model.double(), x.double(), y, **bound).dtype == torch.float64
    assert pgd(model, x.double()[:0], y[:0], **bound).shape == (0, 3, 6, 6)
