"""Training, evaluation and resuming of classifiers."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from classification import metrics
from robust_backbones import checkpoint
from robust_backbones.errors import UserError

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
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):  # torch asserts that it was built with CUDA
        raise UserError(
            f"device '{wanted}' cannot be used here; one of: {'cuda, ' if cuda else ''}cpu."
        ) from None
    return device


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The CPU generator of one epoch: a function of both numbers, so resuming needs no state."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def one_cycle(step: int, total: int, peak: float) -> float:
    """Learning rate of step 0..total-1: a quarter up to `peak`, then cosine to 0."""
    warmup = max(1, total // 4)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step + 1 - warmup) / (total + 1 - warmup))) / 2


def train_batches(images: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator,
                  augment: Callable[[Tensor], Tensor] | None = None,
                  ) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Full batches in random order; the incomplete last one is left out (BatchNorm needs company).

    Args:
        images: `(N, 3, H, W)` in [0, 1].
        labels: `(N,)`.
        batch_size: images per batch, at most N.
        generator: decides the order.
        augment: applied to each batch of images.

    Raises:
        UserError: the batch is larger than the data.
    """
    if batch_size > len(images):
        raise UserError(f"batch size {batch_size} exceeds the {len(images)} training images.")
    order = torch.randperm(len(images), generator=generator)
    for i in range(0, len(order) - batch_size + 1, batch_size):
        chosen = order[i : i + batch_size]
        x = images[chosen]
        yield (augment(x) if augment else x), labels[chosen]


def train_one_epoch(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]],
                    optimizer: torch.optim.Optimizer, lr: Callable[[int], float],
                    adversary: Adversary | None = None,
                    progress: Callable[[int], None] = lambda images: None) -> dict:  # fmt: skip
    """One pass. With an adversary the update sees adversarial images only, no clean ones.

    Args:
        model: the classifier; left in train mode. The adversary attacks it in eval mode.
        batches: `(x, y)` as in the attack contract, on any device.
        lr: step within the epoch, from 0 -> learning rate.
        progress: called with the number of images after each step.

    Returns:
        `loss` (mean), `top1` (percent, on what was trained on), `lr` (the last), `images`.

    Raises:
        UserError: the loss is not finite.
    """
    model.train()
    device = next(model.parameters()).device
    loss_sum = right = images = 0
    for step, (x, y) in enumerate(batches):
        x, y = x.to(device), y.to(device)
        if adversary:
            x = adversary(model, x, y)
        for group in optimizer.param_groups:
            group["lr"] = lr(step)
        logits = model(x)
        loss = cross_entropy(logits, y)
        if not math.isfinite(loss.item()):
            raise UserError(
                f"the loss became {loss.item()} at step {step + 1} with learning rate "
                f"{lr(step):g}; lower it."
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        images += len(y)
        loss_sum += loss.item() * len(y)
        right += (logits.argmax(1) == y).sum().item()
        progress(len(y))
    return {"loss": loss_sum / images, "top1": 100 * right / images, "lr": lr(step),
            "images": images}  # fmt: skip


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int,
             adversary: Adversary | None = None) -> float:  # fmt: skip
    """Top-1 accuracy in percent over all images: clean, or robust against the adversary.

    Args:
        model: the classifier; left in eval mode.
        images: `(N, 3, H, W)` in [0, 1].
        labels: `(N,)`.
        batch_size: images at once; does not change the clean figure.
    """
    model.eval()
    device = next(model.parameters()).device
    logits = []
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        x, y = x.to(device), y.to(device)
        if adversary:
            x = adversary(model, x, y)
        with torch.no_grad():
            logits.append(model(x).cpu())
    return metrics.top1(torch.cat(logits), labels)


def progress_line(epoch: int, per_epoch: int, epochs: int) -> Callable[[int], None]:
    """For `train_one_epoch`: keeps one line on a terminal (stderr) up to date, else does nothing.

    Args:
        epoch: epochs done before this one.
        per_epoch: images in an epoch.
        epochs: epochs in the run.
    """
    if not sys.stderr.isatty():
        return lambda images: None
    start, seen = time.perf_counter(), 0

    def show(images: int) -> None:
        nonlocal seen
        seen += images
        rate = seen / (time.perf_counter() - start)
        left = ((epochs - epoch) * per_epoch - seen) / rate
        line = f"epoch {epoch + 1}/{epochs}: {seen}/{per_epoch} images, {rate:.0f} images/s, "
        line += f"{left:.0f} s left"
        end = "\r" if seen < per_epoch else "\r" + " " * (len(line) + 4) + "\r"
        print(f"\r{line}    ", end=end, file=sys.stderr, flush=True)

    return show


def save_checkpoint(path, *, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int,
                    metadata: dict, settings: dict, history: list[dict]) -> None:  # fmt: skip
    """Write weights and all that resuming needs, atomically, readable with `weights_only=True`.

    Args:
        epoch: epochs done.
        metadata: what later users of the weights need to know; see docs/formats.md.
        settings: what a run must share to go on from here.
        history: one dictionary of numbers per epoch done.
    """
    contents = {
        "format": checkpoint.FORMAT,
        "version": checkpoint.FORMAT_VERSION,
        "model": model.state_dict(),
        "metadata": metadata,
        "optimizer": optimizer.state_dict(),
        "epoch": epoch,
        "settings": settings,
        "history": history,
    }
    checkpoint.save(contents, path)


def load_checkpoint(path, *, model: nn.Module, optimizer: torch.optim.Optimizer,
                    settings: dict) -> tuple[int, list[dict]]:  # fmt: skip
    """Fill `model` and `optimizer` from what `save_checkpoint` wrote; return epoch and history.

    Raises:
        UserError: unreadable, not made by `save_checkpoint`, or made with other settings.
    """
    contents = checkpoint.load_file(path)
    needed = ("model", "optimizer", "epoch", "settings", "history")
    if not isinstance(contents, dict) or any(key not in contents for key in needed):
        raise UserError(f"{path} is not an unfinished training run; choose another output folder.")
    if different := differences(contents["settings"], settings):
        raise UserError(f"{path} was made with other settings: {different}; give the same ones.")
    model.load_state_dict(contents["model"])
    optimizer.load_state_dict(contents["optimizer"])
    return contents["epoch"], contents["history"]


def differences(found: dict, wanted: dict) -> str:
    """Which of `wanted`'s entries `found` has otherwise, in words; empty if none."""
    return "; ".join(
        f"{key} is {found.get(key)} there, {value} here"
        for key, value in wanted.items()
        if found.get(key) != value
    )
