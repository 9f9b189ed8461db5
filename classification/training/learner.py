"""Perform a training step: craft adversarial images, and update the weights on these images."""

import hashlib
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from classification.training import distributed
from classification.training.folding import FoldedCopy
from classification.training.methods import METHODS, Objective, replay
from classification.training.settings import METHOD_DEFAULTS, TrainSettings
from robust_backbones import arithmetic, finite
from robust_backbones.core.errors import UserError


class NotFinite(UserError):
    """The loss or the gradients became NaN or infinite.

    Args:
        reason: quantity that is not finite, with its value.
        lr: learning rate of the update.
        settings: training settings, for the fix in the message.
        batch: tensors `x`, `x_adv` and `y` of this process, available as `.batch`.
    """

    def __init__(self, reason: str, lr: float, settings: TrainSettings, batch: dict):
        fixes = ["Lower --lr"]
        if settings.method == "trades":
            fixes.append("lower --beta")
        if settings.precision == "float16":
            fixes.append("use --precision bfloat16")
        super().__init__(f"{reason} at learning rate {lr:g}. {' or '.join(fixes)}.")
        self.batch = batch


@dataclass
class TrainSums:
    """Sums over the adversarial images of this process. Each image counts at its last update.

    Attributes:
        loss: sum of the losses.
        correct: number of correct predictions.
        images: number of images.
    """

    loss: float = 0.0
    correct: int = 0
    images: int = 0

    def add(self, other: "TrainSums") -> None:
        """Add the sums of `other` to these sums."""
        self.loss += other.loss
        self.correct += other.correct
        self.images += other.images


def seed_of(*numbers: int) -> int:
    """Hash the numbers into a seed, so that similar numbers give unrelated seeds."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # torch accepts seeds of 63 bits


class Learner:
    """A classifier with its optimizer. The weights are equal in all processes.

    Args:
        model: classifier on its device.
        settings: training settings.

    Attributes:
        average: model with exponentially averaged weights; None if `settings.ema` is 0.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings):
        self.model, self.settings = model, settings
        self.method = METHODS[settings.method]
        self.device = next(model.parameters()).device
        self.optimizer = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad],
            settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
        self.dtype = arithmetic.autocast_dtype(settings.precision)
        self.scaler = arithmetic.loss_scaler(settings.precision, self.device.type)
        self.average = None
        if settings.ema:
            average = get_ema_multi_avg_fn(settings.ema)
            self.average = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        # Folding is used only where its speedup was measured: on CPUs in float32.
        plain = self.device.type == "cpu" and self.dtype is None and not settings.compile
        attacks = METHOD_DEFAULTS[settings.method].runs_attack
        self.folded = FoldedCopy(model) if plain and attacks else None
        self.attacked: Any = torch.compile(model) if settings.compile else model
        objective = Objective(model, settings)
        self.objective: Any = torch.compile(objective) if settings.compile else objective
        if distributed.world() > 1:
            # DDP also broadcasts the buffers of process 0. `average_buffers` has made them equal.
            self.objective = DistributedDataParallel(
                self.objective, device_ids=[self.device] if self.device.type == "cuda" else None
            )

    @property
    def result(self) -> nn.Module:
        """Classifier to evaluate and save: the averaged model if there is one, else the model."""
        return self.average.module if self.average else self.model

    def step(self, x: Tensor, y: Tensor, lrs: list[float], seed: int) -> TrainSums:
        """Train on one batch: craft `x_adv` from `x`, and update the weights on `x_adv`.

        Args:
            x: images of this process `(N, 3, H, W)`, in [0, 1].
            y: labels `(N,)`.
            lrs: learning rate of each update. Free training makes several updates per batch.
            seed: seed for all random numbers of the step, including dropout.

        Raises:
            NotFinite: the loss or the gradients are NaN or infinite. This update has not changed
                the weights.
        """
        with arithmetic.tf32(self.settings.precision):
            return self._step(x, y, lrs, seed)

    def _step(self, x: Tensor, y: Tensor, lrs: list[float], seed: int) -> TrainSums:
        torch.manual_seed(seed)
        generator = torch.Generator(self.device).manual_seed(seed)
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        x = x.contiguous(memory_format=torch.channels_last)
        self.model.train()
        attacked = self.folded.refresh() if self.folded else self.attacked
        count = self.settings.accumulate
        parts = list(zip(x.tensor_split(count), y.tensor_split(count), strict=True))
        x_adv: list[Any] = [None] * count
        for lr in lrs:
            self._begin_update(lr)
            losses, correct = [], []
            for i, (x_i, y_i) in enumerate(parts):
                x_adv[i] = self._craft(attacked, x_i, y_i, x_adv[i], generator)
                share, synchronize = len(y_i) / len(y), i == count - 1
                loss, right = self._backward(x_i, x_adv[i], y_i, share, synchronize)
                losses.append(loss * len(y_i))
                correct.append(right)
            self.scaler.unscale_(self.optimizer)
            norm = finite.gradient_norm(self.optimizer)
            # Synchronize with the GPU only once per update, after all of its kernels are queued.
            numbers = torch.stack([torch.stack(losses).sum(), torch.stack(correct).sum(), norm])
            total, hits, length = numbers.tolist()
            if reason := self._not_finite(total / len(y), length):
                images = {"x": x, "x_adv": torch.cat(x_adv).detach(), "y": y}
                raise NotFinite(reason, lr, self.settings, images)
            self._end_update()
        return TrainSums(total, int(hits), len(y))

    def _not_finite(self, loss: float, norm: float) -> str | None:
        """Describe a loss or gradient norm that must stop the run."""
        if not math.isfinite(loss):
            return f"the loss became {loss}"
        if finite.overflowed(norm, self.scaler):
            return f"the norm of the gradients became {norm} (loss {loss:.3g})"
        return None

    def _craft(
        self,
        attacked: Any,
        x: Tensor,
        y: Tensor,
        previous: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the adversarial images of an update.

        The method crafts the images of the first update on a batch. For further updates (Free
        training), the images move along the gradient of the last update.

        Args:
            attacked: model that attacks run on.
            previous: images of the last update on this batch; None for the first update.
        """
        attack = self.settings.attack
        # Attacks do not share the autocast context of the loss, because autocast caches weights.
        # Weights that were cast under no_grad have no gradient.
        with self._autocast():
            if previous is not None:
                return replay(previous, x, attack)
            return self.method.craft(attacked, x, y, attack, generator)

    def _begin_update(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()

    def _backward(
        self, x: Tensor, x_adv: Tensor, y: Tensor, share: float, synchronize: bool
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss of one part of the batch, and add its gradients.

        Args:
            share: fraction of the batch's images in this part.
            synchronize: whether the processes exchange their gradients now.

        Returns:
            The mean loss and the number of correct predictions, scalars on the device.
        """
        alone = distributed.world() > 1 and not synchronize
        with self.objective.no_sync() if alone else nullcontext():
            with self._autocast():
                loss, logits = self.objective(x, x_adv, y)
            self.scaler.scale(loss * share).backward()
        return loss.detach().float(), (logits.argmax(1) == y).sum()

    def _end_update(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        distributed.average_buffers(self.model)
        if self.average:
            self.average.update_parameters(self.model)

    def _autocast(self) -> AbstractContextManager:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def state(self) -> dict:
        """Return all state that training changes, as tensors and built-in types, for `load`."""
        state: dict[str, Any] = {
            "model": self.result.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        # With an average, "model" is the averaged weights; training resumes from "training_model".
        if self.average:
            state["training_model"] = self.model.state_dict()
            state["averaged"] = int(self.average.n_averaged)
        return state

    def load(self, state: dict) -> None:
        """Restore the state that an earlier call of `state` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.result.load_state_dict(state["model"])
        if self.average:
            self.model.load_state_dict(state["training_model"])
            self.average.n_averaged.fill_(state["averaged"])
