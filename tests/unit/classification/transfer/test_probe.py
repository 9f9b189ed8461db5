"""Probes against scikit-learn, and properties of an optimum."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from classification.metrics import METRICS, top1
from classification.transfer import probe
from classification.transfer.logistic import interpolate, levels
from classification.transfer.memory import Size, make_plan
from robust_backbones.core.errors import UserError


def features(n=300, d=20, classes=4, seed=0, spread=1.0):
    """Features like those after a ReLU: many zeros, an empty column, and a duplicate column."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = torch.randn(n, d, generator=g) + spread * torch.randn(classes, d, generator=g)[y] + 0.5
    x = x.relu().double()
    x[:, 0], x[:, 1] = 0, x[:, 2]
    return x, y


def objective(x, y, weights, bias, penalty):
    logits = x @ weights.T + bias
    loss = torch.nn.functional.cross_entropy(logits, y, reduction="sum")
    return (loss + penalty / 2 * weights.square().sum()).item()


def scikit_learns(x, y, penalty, tol=1e-10):
    """Weights and bias of scikit-learn, which uses a single weight vector for two classes."""
    binary = len(y.unique()) == 2
    model = LogisticRegression(C=(2 if binary else 1) / penalty, tol=tol, max_iter=20000)
    model.fit(x.numpy(), y.numpy())
    w, b = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    return (torch.cat([-w / 2, w / 2]), torch.cat([-b / 2, b / 2])) if binary else (w, b)


TASKS = {
    "overlapping": dict(),
    "separable": dict(spread=4.0),
    "two classes": dict(classes=2),
    "more features than images": dict(n=60, d=100),
    "many classes": dict(n=400, d=30, classes=25, spread=2.0),
    "one feature": dict(d=3, classes=3),
}


@pytest.mark.parametrize("task", TASKS)
def test_the_optimum_matches_scikit_learn(task):
    x, y = features(**TASKS[task])
    classes, penalties = len(y.unique()), [1e-2, 1.0, 30.0, 1e4]
    found = probe.fit(x, y, classes, penalties, tolerance=1e-9)
    assert found.converged.all()
    for i, penalty in enumerate(penalties):
        w, b = scikit_learns(x, y, penalty)
        theirs, ours = objective(x, y, w, b, penalty), found.objective[i].item()
        assert ours == pytest.approx(theirs, rel=1e-6)
        own = objective(x, y, found.weights[i], found.bias[i], penalty)
        assert ours == pytest.approx(own, rel=1e-9)
        margin = found.logits(x)[i].sort(dim=1).values
        sure = margin[:, -1] - margin[:, -2] > 1e-2
        assert torch.equal(found.predict(x)[i][sure], (x @ w.T + b).argmax(1)[sure])


def test_the_whole_path_of_real_data():
    """At every penalty at least as good as scikit-learn, and equal where it converged."""
    x, y = (torch.from_numpy(a)[:200] for a in load_digits(return_X_y=True))
    x, y = x.double(), y.long()
    found = probe.fit(x, y, 10)
    assert found.converged.all() and len(found.penalties) == 45
    tight = probe.fit(x, y, 10, tolerance=1e-10)
    assert ((found.objective - tight.objective) / tight.objective).max() < 1e-5
    for i in range(16, 45, 12):
        penalty = probe.PENALTIES[i]
        theirs = objective(x, y, *scikit_learns(x, y, penalty, 1e-8), penalty)
        assert found.objective[i].item() <= theirs * (1 + 1e-5)
        if penalty > 1e-2:
            assert found.objective[i].item() == pytest.approx(theirs, rel=1e-4)


def test_default_penalties():
    logs = np.log10(probe.PENALTIES)
    assert len(logs) == 45 and np.allclose(logs, np.linspace(-6, 5, 45))


@pytest.mark.parametrize("task", TASKS)
def test_the_gradient_is_zero(task):
    x, y = features(**TASKS[task])
    found = probe.fit(x, y, len(y.unique()), [1e-3, 1.0, 1e3], tolerance=1e-14)
    for i, penalty in enumerate(found.penalties):
        w, b = found.weights[i].clone().requires_grad_(), found.bias[i].clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(x @ w.T + b, y, reduction="sum")
        gw, gb = torch.autograd.grad(loss + penalty / 2 * w.square().sum(), [w, b])
        length = math.hypot(gw.norm().item(), gb.norm().item())
        assert length < 1e-4
        assert found.gradient_norm[i].item() == pytest.approx(length, rel=1e-2, abs=1e-8)


def test_an_infinite_penalty_leaves_the_class_frequencies():
    x, y = features(n=200)
    y[:50] = 3
    found = probe.fit(x, y, 4, [1e9], tolerance=1e-12)
    frequencies = torch.bincount(y).double() / len(y)
    assert found.weights.abs().max() < 1e-5
    torch.testing.assert_close(found.bias[0].softmax(0), frequencies, rtol=0, atol=1e-4)


def test_scaled_features_are_a_scaled_penalty():
    """c * x with penalty c^2 * p has weights / c; shifted features have the same weights."""
    x, y = features()
    base = probe.fit(x, y, 4, [0.1, 10.0], tolerance=1e-12)
    scaled = probe.fit(1000 * x, y, 4, [1e5, 1e7], tolerance=1e-12)
    torch.testing.assert_close(1000 * scaled.weights, base.weights, rtol=0, atol=1e-4)
    shifted = probe.fit(x + 50, y, 4, [0.1, 10.0], tolerance=1e-12)
    torch.testing.assert_close(shifted.weights, base.weights, rtol=0, atol=1e-4)
    torch.testing.assert_close(shifted.objective, base.objective, rtol=1e-8, atol=0)


def test_order_batches_and_starts_do_not_matter():
    x, y = features()
    penalties = [10.0, 1e-3, 0.1, 10.0, 1e3, 1.0]
    first = probe.fit(x, y, 4, penalties, tolerance=1e-10)
    assert first.penalties.tolist() == penalties
    again = probe.fit(x, y, 4, penalties, tolerance=1e-10)
    assert torch.equal(first.weights, again.weights) and torch.equal(first.bias, again.bias)
    started = probe.fit(x, y, 4, penalties, tolerance=1e-10, start=first)
    assert started.iterations.max() <= 3
    plan = make_plan(Size(300, 20, 4, 6), x.device)
    for other in (
        started,
        *(
            probe.fit(x, y, 4, penalties, tolerance=1e-10, plan=other)
            for other in (replace(plan, slice_size=1, state=1), replace(plan, store="mapped"))
        ),
    ):
        torch.testing.assert_close(other.objective, first.objective, rtol=1e-8, atol=0)


def test_float32_is_nearly_float64():
    x, y = features()
    half = probe.fit(x.float(), y, 4, [0.1, 10.0], tolerance=1e-5, dtype=torch.float32)
    full = probe.fit(x, y, 4, [0.1, 10.0])
    assert half.weights.dtype == torch.float32 and half.converged.all()
    torch.testing.assert_close(half.objective, full.objective, rtol=1e-4, atol=0)


def test_too_few_iterations_are_reported():
    x, y = features()
    found = probe.fit(x, y, 4, [1e-3, 1e9], max_iterations=1)
    assert not found.converged[0] and found.iterations[0] == 1


def test_constant_features():
    found = probe.fit(torch.ones(30, 5), torch.arange(30) % 3, 3, [1e-6, 1.0])
    assert found.converged.all()
    assert found.objective.tolist() == pytest.approx([30 * math.log(3)] * 2)


def test_one_feature_may_dominate_the_others():
    x, y = features(n=100, d=300)
    x[:, 4] *= 1e5
    x[:, 5:50] = x[:, 4:5]
    found = probe.fit(x, y, 4, [0.1, 10.0], tolerance=1e-9)
    assert found.converged.all()
    # The 46 equal columns act like one that is longer by sqrt(46).
    merged = torch.cat([x[:, :4], 46**0.5 * x[:, 4:5], x[:, 50:]], 1)
    same = probe.fit(merged, y, 4, [0.1, 10.0], tolerance=1e-9)
    torch.testing.assert_close(found.objective, same.objective, rtol=1e-6, atol=0)


def test_a_class_without_images_is_never_predicted():
    x, y = features(classes=3)
    found = probe.fit(x, y + (y > 0), 4, [1.0])
    assert found.bias[0, 1] == -math.inf and not found.weights[0, 1].any()
    assert 1 not in found.predict(x)
    plain = probe.fit(x, y, 3, [1.0])
    torch.testing.assert_close(found.objective, plain.objective)
    full = probe.refit(x, torch.arange(len(y)) % 4, 4, 1.0, found)  # it is a valid start
    assert full.converged.all() and full.bias.isfinite().all()


def split(**options):
    x, y = features(n=400, **options)
    return x[:200], y[:200], x[200:], y[200:]


@pytest.mark.parametrize("metric", METRICS)
def test_the_chosen_penalty_is_the_best(metric):
    x, y, x_val, y_val = split()
    found = probe.choose(x, y, x_val, y_val, 4, METRICS[metric])
    penalties, values = zip(*found.curve, strict=True)
    assert list(penalties) == sorted(penalties) and found.value == max(values)
    best = [i for i, value in enumerate(values) if value == found.value]
    nearest = min(best, key=lambda i: abs(i - len(values) // 2))
    assert found.penalty == penalties[nearest] and not found.edge
    chosen = found.probes.one(nearest)
    assert METRICS[metric](chosen.predict(x_val)[0], y_val, 4) == found.value
    both = torch.cat([x, x_val]), torch.cat([y, y_val])
    final = probe.refit(*both, 4, found.penalty, found.probes)
    scratch = probe.refit(*both, 4, found.penalty)
    torch.testing.assert_close(final.objective, scratch.objective, rtol=1e-5, atol=0)
    assert final.iterations <= scratch.iterations


PEAK = [1, 2, 3, 4, 6, 5, 4, 3]  # accuracies of eight added penalties, ascending
PATHS = {
    # validation accuracies in the order of calls, chosen index on the curve, decades added
    "inside": ([1, 2, 1], 1, 0),
    "a plateau inside": ([2, 2, 1], 1, 0),
    "stronger": ([1, 2, 3, *PEAK], 3 + 4, 2),
    "weaker": ([3, 2, 1, *PEAK], 4, 2),
    "equal everywhere": ([2] * 3, 1, 0),
    "stronger, then a plateau": ([1, 2, 3, *[4] * 8], 11 // 2, 2),
    "weaker, then a plateau": ([3, 2, 1, *[4] * 8], 11 // 2, 2),
}


@pytest.mark.parametrize("path", PATHS)
def test_the_path_is_extended_while_that_is_better(path):
    values, position, decades = PATHS[path]
    asked = iter(values)
    found = probe.choose(*split(), 4, lambda *_: next(asked), penalties=[1, 2, 4])
    assert next(asked, None) is None and len(found.curve) == len(values)
    assert found.extended == decades and not found.edge
    penalties = [p for p, _ in found.curve]
    assert penalties == sorted(penalties) == found.probes.penalties.tolist()
    assert found.penalty == penalties[position]


def test_an_edge_without_extensions():
    asked = iter(range(100))
    found = probe.choose(*split(), 4, lambda *_: next(asked), penalties=[0.1, 1, 10])
    assert found.edge and found.extended == 6 and len(found.curve) == 3 + 24
    assert found.penalty == pytest.approx(1e7)
    asked = iter(range(100))
    options = dict(penalties=[0.1, 1, 10], extend=False)
    found = probe.choose(*split(), 4, lambda *_: next(asked), **options)
    assert found.edge and found.extended == 0 and found.penalty == 10


def test_separable_classes_do_not_extend_to_weak_penalties():
    x, y, x_val, y_val = split(spread=5.0)
    found = probe.choose(x, y, x_val, y_val, 4, top1, penalties=[1e-6, 1e-4, 1e-2, 1])
    assert found.value == 100 and found.penalty == 1e-2 and not found.edge  # the middle


def test_levels_contain_every_index_once():
    for count in range(1, 60):
        for together in (1, 3, 100):
            assert sorted(sum(levels(count, together), [])) == list(range(count))


def test_interpolation_of_a_cubic_is_exact():
    known = {float(x): torch.tensor([x**3, 1.0]) for x in (0, 1, 3, 4, 9)}
    assert interpolate(2.0, known).tolist() == pytest.approx([8, 1])
    assert interpolate(11.0, known).tolist() == [729, 1]


@pytest.mark.parametrize(
    "fraction, counts",
    [(0.01, [1, 1, 1]), (0.1, [10, 1, 2]), (0.5, [50, 4, 10]), (1, [100, 7, 20])],
)
def test_fractions_of_classes(fraction, counts):
    labels = torch.tensor([0] * 100 + [2] * 7 + [5] * 20)[torch.randperm(127)]
    found = probe.draw_fraction(labels, fraction, seed=1)
    assert len(found.unique()) == len(found)
    assert torch.bincount(labels[found])[[0, 2, 5]].tolist() == counts
    assert torch.equal(found, probe.draw_fraction(labels, fraction, seed=1))
    if fraction < 1:
        assert not torch.equal(found, probe.draw_fraction(labels, fraction, seed=2))
    assert set(found.tolist()) <= set(probe.draw_fraction(labels, 1.0, seed=1).tolist())


@pytest.mark.parametrize("shots", [1, 5])
def test_few_shots(shots):
    labels = torch.tensor([0, 2, 5] * 40)[torch.randperm(120)]
    found = probe.few_shot(labels, shots, seed=1)
    assert len(found) == len(found.unique()) == 3 * shots
    assert torch.bincount(labels[found]).tolist() == [shots, 0, shots, 0, 0, shots]
    assert torch.equal(found, probe.few_shot(labels, shots, seed=1))
    assert not torch.equal(found, probe.few_shot(labels, shots, seed=2))
    assert set(found.tolist()) <= set(probe.few_shot(labels, shots + 3, seed=1).tolist())


X, Y = features(n=12)
ERRORS = {
    "features have the shape (12,), labels": lambda: probe.fit(X[:, 0], Y, 4),
    "features have the shape (12, 20), labels (11,)": lambda: probe.fit(X, Y[1:], 4),
    "features have the shape (0, 20)": lambda: probe.fit(X[:0], Y[:0], 4),
    "must be finite": lambda: probe.fit(X.log(), Y, 4),
    "features have dtype torch.int64": lambda: probe.fit(X.long(), Y, 4),
    "from 0 to 3. Give int64 in [0, 3)": lambda: probe.fit(X, Y, 3),
    "labels are torch.float64": lambda: probe.fit(X, Y.double(), 4),
    "from -1 to 2": lambda: probe.fit(X, Y - 1, 4),
    "only 1 class has training images": lambda: probe.fit(X, 0 * Y, 4),
    "penalties [1.0, 0.0]": lambda: probe.fit(X, Y, 4, [1.0, 0.0]),
    "penalties []": lambda: probe.fit(X, Y, 4, []),
    "start has (classes, features) (4, 20), but the data has (5, 20)": lambda: probe.fit(
        X, Y, 5, [1.0], start=probe.fit(X, Y, 4, [1.0])
    ),
    "give three or more": lambda: probe.choose(X, Y, X, Y, 4, top1, penalties=[1, 1, 2]),
    "--shots 4: the smallest class has 3 training images. Choose 1 to 3": lambda: probe.few_shot(
        Y, 4, 0
    ),
    "--shots 0": lambda: probe.few_shot(Y, 0, 0),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(message):
    with pytest.raises(UserError) as error:
        ERRORS[message]()
    assert message in str(error.value)
