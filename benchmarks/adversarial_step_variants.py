"""The training steps that `adversarial_step.py` compares: the library's, and variants of ours."""

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from classification.device_check import train_batch
from classification.models import Classifier
from classification.training.folding import FoldedCopy
from classification.training.learner import Learner
from robust_backbones import attacks
from tests.support import robustness_bridge as bridge
from tests.support.small_models import learning

EPS, STEPS, STEP_SIZE, LR = 1.0, 3, 2 / 3, 0.01


@dataclass(frozen=True)
class Variant:
    """A variant of our training step.

    Attributes:
        channels_last: whether images and weights are in channels_last memory format.
        folded: whether the attack runs on a `FoldedCopy`.
        fused: whether SGD is PyTorch's fused version.
        compiled: whether the network is compiled with `torch.compile`.
    """

    channels_last: bool = True
    folded: bool = False
    fused: bool = False
    compiled: bool = False


LIBRARY = "robustness library"
PRETRAIN = "pretrain"  # the whole step of classification.pretrain
OURS = {
    "eager": Variant(channels_last=False),
    "channels_last": Variant(),
    "folded": Variant(folded=True),
    "folded, fused SGD": Variant(folded=True, fused=True),
    "compiled": Variant(compiled=True),
    PRETRAIN: None,
}


def library_step(
    library, arch: str, state: dict, use_best: bool, dtype: torch.dtype, device: torch.device
):
    """Build the library's training step: `(step, trained network)`."""
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


def variant_step(
    variant: Variant,
    arch: str,
    state: dict,
    use_best: bool,
    dtype: torch.dtype,
    device: torch.device,
):
    """Build a variant of our training step: `(step, trained network)`."""
    model = Classifier.build(arch, 10)
    model.net.load_state_dict(state)
    model.to(device, dtype)
    if variant.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), LR, momentum=0.9, weight_decay=1e-4, fused=variant.fused or None
    )
    pgd = partial(
        attacks.pgd, constraint="l2", eps=EPS, steps=STEPS, step_size=STEP_SIZE, use_best=use_best
    )
    folded = FoldedCopy(model) if variant.folded else None
    trained: nn.Module = torch.compile(model, dynamic=False) if variant.compiled else model

    def adversary(attacked, x, y):
        return pgd(folded.refresh() if folded else attacked, x, y)

    def step(x, y):
        if variant.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        model.train()
        x_adv = adversary(trained, x, y)
        loss = cross_entropy(trained(x_adv), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, model.net


def pretrain_step(arch: str, state: dict, use_best: bool, dtype, device):
    """Build the training step of `classification.pretrain`: `(step, trained network)`."""
    model = Classifier.build(arch, 10)
    model.net.load_state_dict(state)
    model.to(device, dtype, memory_format=torch.channels_last)
    attack = dict(eps=EPS, steps=STEPS, step_size=STEP_SIZE, use_best=use_best)
    learner = Learner(model, learning(**attack, weight_decay=1e-4))
    return partial(train_batch, learner, lr=LR), model.net


def build_steps(
    library, names, arch: str, use_best: bool, dtype: torch.dtype, device: torch.device
) -> dict:
    """Build all steps with the same initial weights: `{name: (step, network)}`, library first."""
    torch.manual_seed(0)
    state = Classifier.build(arch, 10).net.state_dict()
    built = {LIBRARY: library_step(library, arch, state, use_best, dtype, device)}
    for name in names:
        if name == PRETRAIN:
            built[name] = pretrain_step(arch, state, use_best, dtype, device)
        else:
            built[name] = variant_step(OURS[name], arch, state, use_best, dtype, device)
    return built


def passes(arch: str, batch: int, size: int, device: torch.device) -> dict:
    """Functions that run one pass of the plain network in channels_last format, by name."""
    torch.manual_seed(0)
    model = Classifier.build(arch, 10).to(device, memory_format=torch.channels_last)
    x = torch.rand(batch, 3, size, size).to(device, memory_format=torch.channels_last)
    folded = FoldedCopy(model)
    evaluated = copy.deepcopy(model).eval().requires_grad_(False)

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
