"""Computations of several processes, as JSON files `NAME.RANK`."""

import json

import torch
from torch import nn

from classification.training import distributed
from classification.training.learner import Learner
from tests.support.small_models import blobs, learning, trained_on


def network(norm: bool) -> nn.Sequential:
    torch.manual_seed(0)
    middle = nn.BatchNorm2d(4) if norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(3, 4, 3), middle, nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


def train(method: str, norm: bool, **changes) -> dict:
    """Losses and weights after four steps on the same global batches of 8."""
    model = network(norm)
    if norm:
        distributed.sync_batchnorm(model, torch.device("cpu"))
    learner = Learner(model, learning(method=method, **changes))
    x, y = blobs(32)
    share = 8 // distributed.world()
    losses = []
    for step in range(4):
        first = 8 * step + share * distributed.rank()
        mine = slice(first, first + share)
        sums = trained_on(learner, x[mine], y[mine], 0.05, seed=step)
        loss, images = distributed.total([sums.loss, sums.images], learner.device)
        losses.append(loss / images)
    weights = {name: value.tolist() for name, value in model.state_dict().items()}
    return {"losses": losses, "weights": weights}


def main(words: list[str]) -> None:
    cases = {
        "pgd": dict(method="pgd", norm=False),
        "pgd, sync": dict(method="pgd", norm=True),
        "standard, sync": dict(method="standard", norm=True),
        "trades, sync": dict(method="trades", norm=True, eps=0.0),
        "pgd, pieces": dict(method="pgd", norm=False, accumulate=2),
        "pgd, ema": dict(method="pgd", norm=True, ema=0.9),
    }
    with distributed.group(torch.device("cpu")):
        found = {name: train(**case) for name, case in cases.items()}
        found["shared"] = distributed.from_first(lambda: [distributed.rank(), "first"])
        everywhere = distributed.total([1.0, distributed.rank()], torch.device("cpu"))
        found["total"] = everywhere
        with open(f"{words[0]}.{distributed.rank()}", "w", encoding="utf-8") as file:
            json.dump(found, file)
