"""Evaluate a classifier on clean or adversarial images."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from classification import metrics
from classification.training import distributed
from classification.training.settings import AttackSettings
from robust_backbones.attacks import pgd
from robust_backbones.core.errors import UserError
from robust_backbones.core.signals import Stopped, StopSignals

Adversary = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x, y) -> x_adv


def adversary(attack: AttackSettings, seed: int, device: torch.device) -> Adversary:
    """Return `pgd` as a function of `(model, x, y)`, with fixed attack parameters.

    Args:
        attack: parameters of the attack.
        seed: seed for the random starts.
        device: device of the model and the images. The random starts are drawn on it, because
            drawing them on a CPU takes a fifth of the time of an evaluation (benchmarks/GPU.md).
    """
    generator = torch.Generator(device).manual_seed(seed)
    return partial(pgd, **asdict(attack), generator=generator, check_range=False)


@dataclass(frozen=True)
class Evaluation:
    """Predictions and loss of a classifier.

    Attributes:
        predictions, labels: class indices `(N,)`, int64, on the CPU, in the order of the images.
        loss: mean cross entropy.
    """

    predictions: Tensor
    labels: Tensor
    loss: float

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent."""
        return metrics.top1(self.predictions, self.labels)


def collect_logits(
    network: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    stop: StopSignals | None = None,
) -> Tensor:
    """Compute the logits of the batches of all processes.

    Args:
        network: function from images `(n, 3, H, W)` to logits `(..., n, classes)`, such as a
            classifier in eval mode.
        batches: batches of this process, as for `evaluate`.
        device: device of the network.
        stop: stop signals, checked after each batch.

    Returns:
        Logits `(..., N, classes)` float32 on the CPU, in the order of the processes.

    Raises:
        Stopped: a process received a stop signal.
    """
    found = []
    for x, _ in batches:
        with torch.no_grad():
            found.append(network(x.to(device, non_blocking=True)).float().cpu())
        if stop and stop.requested:
            break
    if distributed.total([float(bool(stop and stop.requested))], device)[0]:
        raise Stopped
    return torch.cat(distributed.collected(found), -2)


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    adversary: Adversary | None = None,
    stop: StopSignals | None = None,
) -> Evaluation:
    """Evaluate a classifier on the batches of all processes.

    Args:
        model: classifier. This function switches it to eval mode.
        batches: batches `(x, y)` of this process, with images `(N, 3, H, W)` in [0, 1] and labels
            `(N,)`, int64. A GPU is not waited for before the last batch.
        adversary: attack, a function `(model, x, y) -> x_adv`, such as `pgd` with bound parameters;
            None: clean images.
        stop: stop signals, checked after each batch.

    Returns:
        The evaluation of all images, in the order of the processes.

    Raises:
        UserError: there are no images.
        Stopped: a process received a stop signal.
    """
    model.eval()
    device = next(model.parameters()).device
    pairs, losses = [torch.zeros(2, 0, dtype=torch.int64, device=device)], []
    for x, y in batches:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        if adversary:
            x = adversary(model, x, y)
        with torch.no_grad():
            logits = model(x)
        losses.append(cross_entropy(logits, y, reduction="sum"))
        pairs.append(torch.stack([logits.argmax(1), y]))
        if stop and stop.requested:
            break
    stopped = float(bool(stop and stop.requested))
    loss = sum(torch.stack(losses).tolist()) if losses else 0.0
    loss, stopped = distributed.total([loss, stopped], device)
    if stopped:
        raise Stopped
    predictions, labels = torch.cat(distributed.collected([torch.cat(pairs, 1).cpu()]), 1)
    if not len(labels):
        raise UserError("there are no images to evaluate on. Give at least one.")
    return Evaluation(predictions, labels, loss / len(labels))
