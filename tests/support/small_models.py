"""Images, norms and tiny models for tests of attacks."""

from dataclasses import fields

import torch
from torch import nn

from classification.training.learner import Learner, TrainSums
from classification.training.settings import AttackSettings, TrainSettings


def norm(delta: torch.Tensor, constraint: str) -> torch.Tensor:
    """Norm of each image of `(N, C, H, W)`, `(N,)`."""
    return delta.flatten(1).norm(dim=1, p={"l2": 2, "linf": float("inf")}[constraint])


def data(n: int = 4, low: float = 0.0, high: float = 1.0):
    """Images `(n, 3, 6, 6)` of noise in [low, high] and alternating labels 0, 1."""
    g = torch.Generator().manual_seed(7)
    x = low + (high - low) * torch.rand(n, 3, 6, 6, generator=g)
    return x, torch.arange(n) % 2


def linear():
    """A linear model of two classes, and w1 - w0, along which the loss of class 0 rises."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 2))
    direction = (net[1].weight[1] - net[1].weight[0]).detach().view(1, 3, 6, 6)
    return net, direction


def convolutional() -> nn.Sequential:
    """A network in train mode, with layers that differ in eval mode."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(64, 2),
    )
    net[1].running_mean.uniform_(-0.5, 0.5)
    return net


def blobs(n: int = 42):
    """Dark images `(n, 3, 6, 6)` of class 0, bright ones of class 1."""
    y = torch.arange(n) % 2
    noise = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return 0.4 * noise + 0.6 * y.view(-1, 1, 1, 1), y


def learning(**changes) -> TrainSettings:
    """Settings of two-step L2 PGD with plain SGD. Changes may also name fields of the attack."""
    attack = {"eps": 0.5, "steps": 2, "step_size": 0.3, "use_best": True}
    for name in {field.name for field in fields(AttackSettings)} & set(changes):
        attack[name] = changes.pop(name)
    return TrainSettings(
        **{"attack": AttackSettings(**attack), "lr": 0.1, "weight_decay": 1e-3} | changes
    )


def trained_on(learner: Learner, x, y, lr: float = 0.1, seed: int = 0) -> TrainSums:
    """Perform one step, with the same learning rate for each update, and report it."""
    learner.step(x, y, [lr] * learner.settings.updates_per_batch, seed)
    return learner.report()


def digits(n: int = 400):
    """scikit-learn's first n digits: images `(n, 3, 8, 8)` in [0, 1], and labels 0 to 9."""
    from sklearn.datasets import load_digits

    found = load_digits()
    gray = torch.from_numpy(found.images[:n]).float().unsqueeze(1) / 16
    return gray.expand(-1, 3, -1, -1).clone(), torch.from_numpy(found.target[:n]).long()


def trained(seed: int = 0) -> nn.Sequential:
    """A small network in eval mode, trained on these digits without attacks."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    x, y = digits()
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()
