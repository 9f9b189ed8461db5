"""The sides of `adversarial_step.py`: the library's training step, and ours in several forms."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from classification.models import Classifier
from classification.training.folding import FoldedCopy
from classification.training.learner import Learner
from robust_backbones import attacks
from tests.support import robustness_bridge as bridge
from tests.support.small_models import learning

EPS, STEPS, STEP_SIZE, LR = 1.0, 3, 2 / 3, 0.01


@dataclass(frozen=True)
class Form:
    """How we make the step.

    Attributes:
        channels_last: order of images and weights.
        folded: the attack runs on a `FoldedCopy`.
        fused: PyTorch's fused SGD.
        compiled: `torch.compile` of the attacked and of the trained network.
    """

    channels_last: bool = True
    folded: bool = False
    fused: bool = False
    compiled: bool = False


LIBRARY = "robustness library"
PRETRAIN = "pretrain"  # what classification.pretrain does, all of it
OURS = {
    "eager": Form(channels_last=False),
    "channels_last": Form(),
    "folded": Form(folded=True),
    "folded, fused SGD": Form(folded=True, fused=True),
    "compiled": Form(compiled=True),
    PRETRAIN: None,
}


def library_side(
    library, arch: str, state: dict, use_best: bool, dtype: torch.dtype, device: torch.device
):
    """`(step, network)`: a training step as the library makes it, and what it trains."""
    dataset = library.datasets.ImageNet("/nowhere")
    dataset.num_classes = 10
    model, _ = library.model_utils.make_and_restore_model(arch=arch, dataset=dataset)
    model = getattr(model, "module", model)  # out of DataParallel
    model.model.load_state_dict(state)
    model.to(device, dtype)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=1e-4)
    settings = bridge.loop_settings(
        constraint="2", eps=EPS, attack_lr=STEP_SIZE, attack_steps=STEPS, use_best=use_best
    )

    def step(x, y):
        library.train._model_loop(settings, "train", [(x, y)], model, optimizer, 0, True, None)

    return step, model.model


def our_side(
    form: Form, arch: str, state: dict, use_best: bool, dtype: torch.dtype, device: torch.device
):
    """`(step, network)`: ours, likewise."""
    model = Classifier(arch, 10)
    model.net.load_state_dict(state)
    model.to(device, dtype)
    if form.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), LR, momentum=0.9, weight_decay=1e-4, fused=form.fused or None
    )
    pgd = partial(
        attacks.pgd, constraint="l2", eps=EPS, steps=STEPS, step_size=STEP_SIZE, use_best=use_best
    )
    folded = FoldedCopy(model) if form.folded else None
    trained: nn.Module = torch.compile(model, dynamic=False) if form.compiled else model

    def adversary(attacked, x, y):
        return pgd(folded.refresh() if folded else attacked, x, y)

    def step(x, y):
        if form.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        model.train()
        x_adv = adversary(trained, x, y)
        loss = cross_entropy(trained(x_adv), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, model.net


def learner_side(arch: str, state: dict, use_best: bool, dtype, device):
    """`(step, network)`: what `classification.pretrain` does, all of it."""
    model = Classifier(arch, 10)
    model.net.load_state_dict(state)
    model.to(device, dtype, memory_format=torch.channels_last)
    attack = dict(eps=EPS, steps=STEPS, step_size=STEP_SIZE, use_best=use_best)
    learner = Learner(model, learning(**attack, weight_decay=1e-4))
    return (lambda x, y: learner.step(x, y, [LR], seed=0)), model.net


def sides(
    library, names, arch: str, use_best: bool, dtype: torch.dtype, device: torch.device
) -> dict:
    """Name -> `(step, network)`, all from the same weights, the library first."""
    torch.manual_seed(0)
    state = Classifier(arch, 10).net.state_dict()
    built = {LIBRARY: library_side(library, arch, state, use_best, dtype, device)}
    for name in names:
        if name == PRETRAIN:
            built[name] = learner_side(arch, state, use_best, dtype, device)
        else:
            built[name] = our_side(OURS[name], arch, state, use_best, dtype, device)
    return built


def passes(arch: str, batch: int, size: int, device: torch.device) -> dict:
    """Name of a pass of the plain network in channels_last -> a function that makes it once."""
    torch.manual_seed(0)
    model = Classifier(arch, 10).to(device, memory_format=torch.channels_last)
    x = torch.rand(batch, 3, size, size).to(device, memory_format=torch.channels_last)
    folded = FoldedCopy(model).refresh()
    evaluated = folded.plain  # in eval mode, no gradient of parameters

    def forward(network):
        with torch.no_grad():
            network(x)

    def both(network):
        images = x.detach().requires_grad_()
        torch.autograd.grad(network(images).sum(), images)

    def train():
        model.train().zero_grad()
        model(x).sum().backward()

    return {
        "forward": partial(forward, evaluated),
        "forward, input gradient": partial(both, evaluated),
        "training forward, backward": train,
        "folded: forward": partial(forward, folded),
        "folded: forward, input gradient": partial(both, folded),
        "folded: refresh": folded.refresh,
    }
