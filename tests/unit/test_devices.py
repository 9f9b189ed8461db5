"""Work on a device that is not the CPU: nothing mixes devices, and results are the CPU's."""

from functools import partial

import pytest
import torch

from classification import colors
from classification.datasets.open import open_split
from classification.interpret.optimize import invert, noise, visualize
from classification.metrics import top1
from classification.models import Classifier
from classification.robustness_eval.execute import execute_plan
from classification.robustness_eval.plan import Attack
from classification.training.evaluate import adversary, evaluate
from classification.training.learner import Learner, NotFinite
from classification.training.methods import METHODS
from classification.transfer import features, knn, probe
from robust_backbones.attacks import pgd
from tests.support.device_table import PASSED, gives_the_results_of_the_cpu
from tests.support.small_models import blobs, convolutional, data, digits, learning, trained
from tests.support.stand_in import AVAILABLE, synchronizations


def attacked(device, constraint, generator_device=None, **options):
    x, y = (t.to(device) for t in data())
    generator = torch.Generator(generator_device or device).manual_seed(0)
    how = dict(constraint=constraint, eps=0.3, steps=2, step_size=0.2, random_start=True)
    return [pgd(convolutional().to(device), x, y, generator=generator, **how, **options)]


def trained_steps(device, **changes):
    """Three steps of training, the last one by a learner that resumed from the first two."""
    x, y = blobs(12)
    learners = [Learner(convolutional().to(device), learning(**changes)) for _ in range(2)]
    rates = [0.05] * learners[0].settings.updates_per_batch
    for seed in range(2):
        learners[0].step(x, y, rates, seed)
    learners[0].report()
    learners[1].load(learners[0].state())
    learners[1].step(x, y, rates, seed=2)
    sums = learners[1].report()
    return [torch.tensor(float(sums.loss)), *learners[1].result.state_dict().values()]


def evaluated(device, attack):
    x, y = digits(30)
    attack = adversary(learning().attack, 0, device) if attack else None
    found = evaluate(trained().to(device), zip(x.split(8), y.split(8), strict=True), attack)
    return [found.predictions, found.labels, torch.tensor(found.loss)]


def attacked_in_parts(device):
    records = []
    plan = [Attack("clean", "l2", 0.0), Attack("pgd", "l2", 0.5, 2, 2)]
    more = dict(seed=1, classes=10, records=records, add=records.append)
    execute_plan(trained().to(device), [digits(20)], plan, **more)
    return [torch.tensor(record[key]) for record in records for key in ("right", "norms")]


def clusters(device, size):
    """Features and labels of training and validation images, with overlapping classes."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 3
    x = torch.randn(3, size, generator=generator)[y] + torch.randn(120, size, generator=generator)
    return [t.to(device) for t in (x[:60], y[:60], x[60:], y[60:])]


def probed(device, size, dtype):
    x, y, x_val, y_val = clusters(device, size)
    x, x_val = x.to(dtype), x_val.to(dtype)
    chosen = probe.choose(x, y, x_val, y_val, 3, top1, penalties=[0.1, 1, 10])
    final = probe.refit(x, y, 3, chosen.penalty, chosen.probes)
    return [torch.tensor(chosen.value), final.predict(x_val), final.objective]


def neighbors(device):
    x, y, x_val, y_val = clusters(device, 8)
    k, _ = knn.choose_neighbors(x, y, x_val, y_val, 3, top1)
    return [torch.tensor(k), knn.classify(x, y, x_val, k, 3)]


def extracted(device):
    torch.manual_seed(0)
    model = Classifier.build("shufflenet_v2_x1_0", 10)
    model = model.to(device).to(memory_format=torch.channels_last)
    return features.extract(model, open_split("digits", "test", limit=10)).parts(10)


class WithFeatures(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = convolutional()

    def features(self, x):
        return self.net[:-1](x)

    def forward(self, x):
        return self.net(x)


def interpreted(device):
    model, x = WithFeatures().to(device), noise(2, 6, torch.Generator().manual_seed(0)).to(device)
    how = dict(eps=1.0, steps=2, step_size=0.5)
    with torch.no_grad():
        targets = model.eval().features(data(2)[0].to(device))
    return [visualize(model, x, torch.tensor([0, 3]), **how), invert(model, x, targets, **how)]


def recolored(device):
    """Another device changes the colors of a whole batch at once, the CPU of one image."""
    torch.manual_seed(0)
    numbers = torch.stack([colors.draw_numbers() for _ in range(6)])
    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    return [colors.finish(pixels, numbers, device)]


WORK = {
    "colors": recolored,
    "pgd, l2": partial(attacked, constraint="l2"),
    "pgd, linf": partial(attacked, constraint="linf", use_best=False, targeted=True),
    "pgd, restarts": partial(attacked, constraint="linf", restarts=2),
    "pgd, generator on the CPU": partial(attacked, constraint="l2", generator_device="cpu"),
    **{f"train, {m}": partial(trained_steps, method=m, random_start=True) for m in METHODS},
    "train, averaged in parts": partial(trained_steps, method="pgd", ema=0.9, accumulate=3),
    "train, free in parts": partial(trained_steps, method="free", accumulate=2, ema=0.9),
    "evaluate": partial(evaluated, attack=False),
    "evaluate, attacked": partial(evaluated, attack=True),
    "robustness-eval": attacked_in_parts,
    "probe": partial(probed, size=8, dtype=torch.float64),
    "probe, more features than images": partial(probed, size=80, dtype=torch.float32),
    "k-NN": neighbors,
    "features": extracted,
    "interpret": interpreted,
}


def reports_a_loss_that_is_not_finite(device):
    learner = Learner(convolutional().to(device), learning())
    torch.nn.init.constant_(learner.model[5].bias, float("inf"))
    before = learner.model[0].weight.detach().clone()
    for seed in range(3):
        learner.step(*blobs(8), [0.05], seed)
    with pytest.raises(NotFinite, match="the loss became nan"):
        learner.report()
    assert torch.equal(learner.model[0].weight, before)


def runs_in_reduced_precision(device, precision):
    """The stand-in has no autocast, so only a GPU rounds."""
    assert all(t.isfinite().all() for t in trained_steps(device, precision=precision))


# Operations that mix devices.
MIXED = {
    "sum": lambda d: torch.ones(2, device=d) + torch.ones(2),
    "list": lambda d: torch.stack([torch.ones((), device=d), torch.ones(())]),
    "layer": lambda d: torch.nn.Linear(2, 2)(torch.ones(1, 2, device=d)),
    "index": lambda d: torch.ones(2)[torch.zeros(1, dtype=torch.int64, device=d)],
    "mask": lambda d: torch.where(torch.ones(2, device=d) > 0, torch.ones(2), 0),
    "generator of the CPU": lambda d: torch.rand(2, device=d, generator=torch.Generator()),
    "generator of the device": lambda d: torch.rand(2, generator=torch.Generator(d)),
    "array": lambda d: torch.ones(2, device=d).numpy(),
}


def is_refused(device, operation):
    with pytest.raises((RuntimeError, TypeError)):
        operation(device)


# Operations on a tensor of the device, and how often the host waits.
WAITS = {
    "arithmetic": (lambda x: (x + 1).sum(), 0),
    "a scalar of the CPU": (lambda x: x * torch.tensor(2.0), 0),
    "to the device": (lambda x: torch.ones(2).to(x), 1),
    "to the device, without waiting": (lambda x: torch.ones(2).to(x.device, non_blocking=True), 0),
    "item": (lambda x: x.sum().item(), 1),
    "list": (lambda x: x.tolist(), 1),
    "condition": (lambda x: bool((x > 0).all()), 1),
    "to the CPU": (lambda x: x.cpu(), 1),
    "selection by a mask": (lambda x: x[x > 0], 1),
    "selection by indices": (lambda x: x[torch.zeros(1, dtype=torch.int64, device=x.device)], 0),
}


def waits(device, operation, expected):
    x = torch.ones(2, device=device)
    with synchronizations() as found:
        operation(x)
    assert len(found) == expected, found


def waits_in_reports_only(device, method):
    changes = dict(method=method, random_start=True, ema=0.9, accumulate=2)
    learner = Learner(convolutional().to(device), learning(**changes))
    rates = [0.05] * learner.settings.updates_per_batch
    learner.step(*blobs(8), rates, seed=0)  # compares the network with its folded copy once
    with synchronizations() as found:
        for seed in (1, 2):
            learner.step(*blobs(8), rates, seed)
        assert not found, found
        learner.report()
    assert found


def changes_shapes_in_place(device):
    x = torch.ones(2, 3, device=device)
    assert x.unsqueeze_(0).shape == x.cpu().shape == (1, 2, 3)
    assert x.squeeze_(0).t_().shape == (x + 1).shape == (3, 2)


CHECKS = {
    **{name: partial(gives_the_results_of_the_cpu, work=work) for name, work in WORK.items()},
    **{f"refused: {name}": partial(is_refused, operation=op) for name, op in MIXED.items()},
    **{
        name: partial(runs_in_reduced_precision, precision=name) for name in ("bfloat16", "float16")
    },
    "loss that is not finite": reports_a_loss_that_is_not_finite,
}
if AVAILABLE:  # the stand-in counts synchronizations
    CHECKS |= {
        **{f"waits: {m}": partial(waits_in_reports_only, method=m) for m in METHODS},
        **{
            f"waits: {name}": partial(waits, operation=op, expected=count)
            for name, (op, count) in WAITS.items()
        },
        "shapes": changes_shapes_in_place,
    }


@pytest.mark.parametrize("name", CHECKS)
def test_another_device(device_outcomes, name):
    assert device_outcomes[name] == PASSED
