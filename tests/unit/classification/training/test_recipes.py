"""Learning rates against PyTorch's schedulers."""

import math

import pytest
import torch
from torch.optim import lr_scheduler

from classification.training.recipes import SCHEDULES, learning_rate

TOTAL = 90


def theirs(make) -> list[float]:
    """Learning rates of a PyTorch scheduler for `TOTAL` steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.4)
    scheduler, rates = make(optimizer), []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    "name, make",
    [
        ("constant", lambda o: lr_scheduler.ConstantLR(o, 1)),
        ("step", lambda o: lr_scheduler.StepLR(o, TOTAL // 3, 0.1)),
        ("cosine", lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL)),
    ],
)
def test_schedules_match_pytorch(name, make):
    ours = [learning_rate(step, TOTAL, 0.4, name) for step in range(TOTAL)]
    assert ours == pytest.approx(theirs(make))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 5, 100])
def test_learning_rates_are_positive_and_reach_the_peak(name, total):
    rates = [learning_rate(step, total, 0.4, name) for step in range(total)]
    assert 0 < min(rates) and max(rates) <= 0.4
    assert max(rates) == pytest.approx(0.4, rel=1 / total if name == "cyclic" else 1e-9)


@pytest.mark.parametrize("name, top", [("cyclic", 50), ("one-cycle", 24)])
def test_one_rise_and_one_decay(name, top):
    rates = [learning_rate(step, 101, 1.0, name) for step in range(101)]
    assert rates.index(max(rates)) == top
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[-1] < 0.02
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_warmup_multiplies_the_schedule_by_a_line():
    rates = [learning_rate(step, 100, 1.0, "cosine", warmup=4) for step in range(6)]
    plain = [(1 + math.cos(math.pi * step / 100)) / 2 for step in range(6)]
    rise = [0.25, 0.5, 0.75, 1, 1, 1]
    assert rates == pytest.approx([f * r for f, r in zip(rise, plain, strict=True)])
