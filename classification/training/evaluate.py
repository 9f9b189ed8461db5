"""Devices and evaluation."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from classification import metrics
from classification.training import distributed
from robust_backbones.core.errors import UserError
from robust_backbones.core.signals import Stopped, StopSignals

Adversary = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x, y) -> x_adv


def choose_device(wanted: str | None) -> torch.device:
    """The device named; without a name a GPU if there is one, else the CPU, which it says.

    Raises:
        UserError: torch cannot use that device here.
    """
    cuda = torch.cuda.is_available()
    if wanted is None:
        if not cuda:
            print("no GPU found: running on the CPU", flush=True)
        return torch.device("cuda" if cuda else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device).item()  # the device 'meta' has no values
    except (RuntimeError, AssertionError):  # torch asserts that it was built with CUDA
        raise UserError(
            f"device '{wanted}' cannot be used here; one of: {'cuda, ' if cuda else ''}cpu."
        ) from None
    return device


@dataclass(frozen=True)
class Outcome:
    """What a classifier made of images.

    Attributes:
        predictions, labels: `(N,)` int64, on the CPU, in the order of the images.
        loss: mean cross entropy.
    """

    predictions: Tensor
    labels: Tensor
    loss: float

    @property
    def images(self) -> int:
        return len(self.labels)

    @property
    def top1(self) -> float:
        """Percent."""
        return metrics.top1(self.predictions, self.labels)


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    adversary: Adversary | None = None,
    stop: StopSignals | None = None,
) -> Outcome:
    """Clean, or with an adversary robust, over the batches of all processes.

    Args:
        model: the classifier; left in eval mode.
        batches: `(x, y)`: images `(N, 3, H, W)` in [0, 1] and labels `(N,)`, of this process.
        stop: looked at after each batch.

    Returns:
        Of all images, those of process 0 first.

    Raises:
        UserError: there are no images.
        Stopped: `stop` was asked, in any process.
    """
    model.eval()
    device = next(model.parameters()).device
    pairs, loss = [torch.zeros(2, 0, dtype=torch.int64)], 0.0
    for x, y in batches:
        x, y = x.to(device), y.to(device)
        if adversary:
            x = adversary(model, x, y)
        with torch.no_grad():
            logits = model(x)
        loss += cross_entropy(logits, y, reduction="sum").item()
        pairs.append(torch.stack([logits.argmax(1), y]).cpu())
        if stop and stop.requested:
            break
    stopped = float(bool(stop and stop.requested))
    loss, stopped = distributed.total([loss, stopped], device)
    if stopped:
        raise Stopped
    predictions, labels = distributed.gathered(torch.cat(pairs, 1))
    if not len(labels):
        raise UserError("accuracy of 0 images asked for; give at least one.")
    return Outcome(predictions, labels, loss / len(labels))
