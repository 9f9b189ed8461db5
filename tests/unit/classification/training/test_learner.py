"""One training step: updates, accumulation, averaged weights, precisions, and resuming."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from classification.training.learner import Learner, NotFinite, TrainSums, seed_of
from classification.training.methods import METHODS
from tests.support.small_models import blobs, learning, trained_on


def network(seed=0, norm=True):
    torch.manual_seed(seed)
    middle = nn.BatchNorm2d(4) if norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(3, 4, 3), middle, nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


def learner(norm=True, **changes):
    return Learner(network(norm=norm), learning(**changes))


def lazy(**changes):
    """A learner that, as on a GPU, reads nothing from its device before a report."""
    ours = learner(**changes)
    ours.fused = True
    ours._prepare_optimizer()
    return ours


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_one_step_is_sgd_by_hand():
    ours, (x, y) = learner(method="standard", weight_decay=0.0), blobs(8)
    twin = network()
    sums = trained_on(ours, x, y, 0.25)
    logits = twin(x)
    loss = nn.functional.cross_entropy(logits, y)
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    assert sums.loss == pytest.approx(8 * loss.item()) and sums.images == 8
    assert sums.correct == (logits.argmax(1) == y).sum()
    for new, old, slope in zip(ours.model.parameters(), twin.parameters(), gradients, strict=True):
        torch.testing.assert_close(new, old - 0.25 * slope)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(method):
    changes = dict(eps=0.3, step_size=0.3, steps=2, random_start=method != "pgd", beta=1.0)
    ours, (x, y) = learner(method=method, **changes), blobs()
    assert ours.settings.updates_per_batch == (2 if method == "free" else 1)
    for seed in range(12):
        sums = trained_on(ours, x, y, 0.05, seed)
    assert sums.correct == len(y) and sums.loss / len(y) < 0.2
    assert ours.model.training


@pytest.mark.parametrize("method", ["standard", "pgd", "free", "trades"])
def test_accumulation_gives_the_gradient_of_the_batch(method):
    """Without BatchNorm, which would see parts, and without random starts."""
    x, y = blobs(12)
    whole, pieces = (learner(False, method=method, accumulate=n) for n in (1, 3))
    if method == "free":  # each part has its own random start
        x = x * 0 + y.view(-1, 1, 1, 1)  # in a corner of [0, 1]
    for one in (whole, pieces):
        sums = trained_on(one, x, y)
        assert sums.images == 12
    tolerance = dict(rtol=1e-4, atol=1e-5) if method != "free" else dict(rtol=0.1, atol=0.05)
    for a, b in zip(whole.model.parameters(), pieces.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_averaged_weights_are_an_exponential_average():
    ours, (x, y) = learner(ema=0.9), blobs(8)
    expected = None
    for seed in range(4):
        trained_on(ours, x, y, 0.1, seed)
        weight = ours.model[4].weight.detach().clone()
        expected = weight if expected is None else 0.9 * expected + 0.1 * weight
    torch.testing.assert_close(ours.result[4].weight, expected)
    assert ours.result is not ours.model
    assert not torch.equal(ours.result[1].running_mean, ours.model[1].running_mean)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_is_close_and_keeps_float32_weights(precision):
    x, y = blobs(16)
    full, low = (learner(precision=p) for p in ("float32", precision))
    low.scaler = torch.amp.GradScaler(  # the default initial scale overflows in the first step
        "cpu", init_scale=64.0, enabled=precision == "float16"
    )
    for one in (full, low):
        for seed in range(3):
            sums = trained_on(one, x, y, 0.02, seed)
        assert all(p.dtype == torch.float32 for p in one.model.parameters())
    reference = network()
    for name, weight in full.model.named_parameters():
        moved = (weight - reference.get_parameter(name)).norm()
        assert (low.model.get_parameter(name) - weight).norm() < 0.2 * moved + 1e-3, name
    assert sums.images == 16


@pytest.mark.parametrize("margin", [15.0, 18.0])  # at 18 the loss itself is 0 in float32
def test_float16_attacks_move_images_of_a_confident_model(margin):
    """In float16, the gradient of a loss of 1e-6 underflows before it reaches the image."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 2))
    nn.init.uniform_(model[1].weight, -0.01, 0.01)
    model[1].bias = nn.Parameter(torch.tensor([margin, 0.0]))
    ours = Learner(model, learning(precision="float16", use_best=False))
    x, y = blobs(16)[0], torch.zeros(16, dtype=torch.int64)
    assert 0 <= nn.functional.cross_entropy(model(x), y) < 1e-6
    with ours._autocast():
        x_adv = ours.method.craft(ours.model, x, y, ours.settings.attack, torch.Generator())
    assert x_adv.dtype == torch.float32
    assert ((x_adv - x).flatten(1).norm(dim=1) > 0.1).all()


def test_a_loss_that_is_not_finite_stops_before_the_update_and_reports_the_batch():
    ours, (x, y) = learner(), blobs(8)
    nn.init.constant_(ours.model[4].bias, float("inf"))
    before = copy.deepcopy(ours.model)
    with pytest.raises(NotFinite, match="the loss became nan at learning rate 0.05. Lower --lr"):
        try:
            trained_on(ours, x, y, 0.05)
        except NotFinite as error:
            assert torch.equal(error.batch["x"], x) and torch.equal(error.batch["y"], y)
            raise
    assert torch.equal(ours.model[0].weight, before[0].weight)


class Cliff(nn.Module):
    """Logits whose loss is finite, and whose gradient is infinite at the first weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return x.flatten(1)[:, :2] + self.weight.sqrt()


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        (dict(method="standard"), "Lower --lr."),
        (dict(method="trades", eps=0.0), "Lower --lr or lower --beta."),
        (dict(method="standard", precision="bfloat16"), "Lower --lr."),
        (dict(method="standard", accumulate=2), "Lower --lr."),
    ],
)
def test_gradients_that_are_not_finite_stop_before_the_update(changes, fix):
    ours, (x, y) = Learner(Cliff(), learning(**changes)), blobs(8)
    with pytest.raises(NotFinite, match="norm of the gradients became (nan|inf) .* 0.05") as error:
        trained_on(ours, x, y, 0.05)
    assert str(error.value).endswith(fix)
    assert error.value.batch["x_adv"].shape == x.shape
    assert torch.equal(ours.model.weight, torch.zeros(2))


def test_float16_skips_updates_until_the_loss_scale_is_at_its_minimum():
    ours, (x, y) = Learner(Cliff(), learning(method="standard", precision="float16")), blobs(8)
    for _ in range(16):  # the scale begins at 2**16
        trained_on(ours, x, y, 0.05)
    assert ours.scaler.get_scale() == 1 and torch.equal(ours.model.weight, torch.zeros(2))
    with pytest.raises(NotFinite, match="Lower --lr or use --precision bfloat16"):
        trained_on(ours, x, y, 0.05)


@pytest.mark.parametrize(
    "changes",
    [dict(method="standard", momentum=0.0), dict(), dict(method="free"), dict(accumulate=2)],
)
@pytest.mark.parametrize("bad", [0, 2])
def test_updates_after_a_failed_one_are_skipped_until_the_report(changes, bad):
    ours, (x, y) = lazy(**changes), blobs(8)
    batches = [x.roll(shift, 0) for shift in range(5)]
    batches[bad] = torch.full_like(x, float("nan"))
    for step, images in enumerate(batches):
        if step == bad:
            before = copy.deepcopy(ours.model)
        ours.step(images, y, [0.05 + 0.01 * step] * ours.settings.updates_per_batch, step)
    with pytest.raises(NotFinite, match=rf"the loss became nan at .* 0.0{5 + bad}\.") as error:
        ours.report()
    assert error.value.steps_ago == 4 - bad
    assert error.value.batch["x"].isnan().all() and error.value.batch["x_adv"].shape == x.shape
    for new, old in zip(ours.model.parameters(), before.parameters(), strict=True):
        assert torch.equal(new, old)


def test_skipping_the_first_update_leaves_no_momentum():
    """The fused optimizer of PyTorch would use uninitialized memory."""
    ours, (x, y) = lazy(method="standard", precision="float16", weight_decay=0.0), blobs(8)
    ours.scaler = torch.amp.GradScaler("cpu", init_scale=1e30)
    while ours.scaler.get_scale() > 1e5:  # float16 overflows
        trained_on(ours, x, y, 0.0)
    assert all((s["momentum_buffer"] == 0).all() for s in ours.optimizer.state.values())
    before = ours.model[4].weight.clone()
    ours.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    trained_on(ours, x, y, 0.1)
    step = ours.model[4].weight - before
    torch.testing.assert_close(step, -0.1 * ours.model[4].weight.grad)


def test_a_state_of_another_device_keeps_the_optimizer_of_this_one():
    cpu, gpu, (x, y) = learner(), lazy(), blobs(8)
    trained_on(cpu, x, y)
    gpu.load(copy.deepcopy(cpu.state()))
    assert gpu.optimizer.param_groups[0]["fused"]
    cpu.load(copy.deepcopy(gpu.state()))
    assert not cpu.optimizer.param_groups[0]["fused"]


def test_the_report_sums_the_steps_of_the_window():
    one, other, (x, y) = lazy(method="free"), lazy(method="free"), blobs(8)
    expected = TrainSums()
    for seed in range(3):
        expected.add(trained_on(one, x, y, 0.1, seed))
        other.step(x, y, [0.1] * 2, seed)
    assert other.report() == expected and expected.images == 24
    assert other.report() == TrainSums()


class Reads(TorchDispatchMode):
    """Operations that would wait for a GPU."""

    WAITS = {"_local_scalar_dense", "equal", "nonzero", "is_nonzero", "masked_select"}

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if (name := operation.overloadpacket.__name__) in self.WAITS:
            self.found.append(name)
        return operation(*args, **kwargs or {})


@pytest.mark.parametrize(
    "changes",
    [
        *(dict(method=method, random_start=method != "pgd") for method in METHODS),
        dict(ema=0.9, momentum=0.0),
        dict(precision="float16", accumulate=2),
        dict(precision="bfloat16", constraint="linf"),
    ],
)
def test_steps_read_nothing_from_the_device(monkeypatch, changes):
    ours, (x, y) = lazy(**changes), blobs(8)
    rates = [0.1] * ours.settings.updates_per_batch
    ours.step(x, y, rates, 0)  # checks the folded copy once
    with Reads() as reads:
        for name in ("tolist", "cpu", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, lambda *a, n=name: reads.found.append(n))
        for seed in range(1, 4):
            ours.step(x, y, rates, seed)
        monkeypatch.undo()
        assert reads.found == []
        ours.report()


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(ema=0.9),
        dict(precision="float16"),
        dict(method="free", steps=2, random_start=True),
        dict(method="fast", random_start=True),
    ],
)
def test_resuming_is_bit_exact(changes):
    x, y = blobs(8)
    straight, early = learner(**changes), learner(**changes)
    for one in (straight, early):
        for seed in range(3):
            trained_on(one, x, y, 0.1, seed)
    state = copy.deepcopy(early.state())
    late = Learner(network(seed=5), learning(**changes))
    late.load(state)
    torch.manual_seed(99)  # the global generator must not matter
    for one in (straight, late):
        for seed in range(3, 6):
            trained_on(one, x, y, 0.1, seed)
    assert equal(straight.model, late.model) and equal(straight.result, late.result)


def test_dropout_depends_on_the_seed_of_the_step():
    x, y = blobs(8)
    models = []
    for elsewhere in (1, 2):
        model = network()
        model.insert(4, nn.Dropout(0.5))
        ours = Learner(model, learning())
        torch.manual_seed(elsewhere)
        trained_on(ours, x, y, seed=7)
        models.append(ours.model)
    assert equal(*models)


def test_seeds_differ():
    seeds = {seed_of(a, b, c) for a in range(4) for b in range(4) for c in range(4)}
    assert len(seeds) == 64 and all(0 <= s < 2**63 for s in seeds)
    assert seed_of(1, 2) == seed_of(1, 2)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_steps_are_equal():
    (x, y), found = blobs(8), []
    for compiled in (False, True):
        ours = learner(compile=compiled)
        found.append([trained_on(ours, x, y, 0.1, seed).loss for seed in range(3)])
    assert found[1] == pytest.approx(found[0], rel=1e-3)
