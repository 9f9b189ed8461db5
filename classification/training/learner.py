"""What changes while training: weights, their average, optimizer, scaler; and one step of it."""

import hashlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from classification.training import distributed
from classification.training.cpu.convolutions import FastWeightGradients
from classification.training.cpu.folding import Twin
from classification.training.methods import METHODS, Objective
from robust_backbones.attacks import PARAMETERS
from robust_backbones.core.errors import UserError

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NotFinite(UserError):
    """The loss became NaN or infinite; `batch` has what it was computed on.

    Args:
        batch: `x`, `x_adv`, `y` of this process.
    """

    def __init__(self, loss: float, lr: float, batch: dict):
        super().__init__(f"the loss became {loss} with learning rate {lr:g}; lower it.")
        self.batch = batch


@dataclass
class Sums:
    """Of what was trained on: adversarial images, at their last update. Of this process."""

    loss: float = 0.0
    right: int = 0
    images: int = 0

    def add(self, other: "Sums") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def seed_of(*numbers: int) -> int:
    """A seed that is a function of all `numbers`; near ones give unrelated seeds."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # torch takes 63 bits


class Learner:
    """A classifier that learns by one method. Each process has one; they stay equal.

    Args:
        model: the classifier, on its device.
        settings: of the run; those of `pretrain` that concern learning.

    Attributes:
        model: the classifier.
        average: the model of exponentially averaged weights; None without `ema`.
        updates_per_batch: how often the weights change per mini-batch.
    """

    def __init__(self, model: nn.Module, settings: dict):
        self.settings = settings
        self.method = METHODS[settings["method"]]
        self.attack = {name: settings[name] for name in PARAMETERS}
        self.updates_per_batch = self.method.updates(self.attack)
        self.device = next(model.parameters()).device
        self.model = model
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            trained,
            settings["lr"],
            momentum=settings["momentum"],
            weight_decay=settings["weight_decay"],
            nesterov=settings["nesterov"],
        )
        self.dtype = PRECISIONS[settings["precision"]]
        # Only float16 underflows without: its smallest number is 6e-8.
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=settings["precision"] == "float16"
        )
        self.average = None
        if settings["ema"]:
            average = get_ema_multi_avg_fn(settings["ema"])
            self.average = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        # Measured on CPUs, in float32, only: docs/SPEED_TRAINING.md.
        self.fast = self.device.type == "cpu" and self.dtype is None and not settings["compile"]
        self.twin = Twin(model) if self.fast and self.method.attacks else None
        self.attacked = torch.compile(model) if settings["compile"] else model
        objective = Objective(model, settings["method"], settings["smoothing"], settings["beta"])
        self.objective: Any = torch.compile(objective) if settings["compile"] else objective
        if distributed.world() > 1:
            # It broadcasts process 0's buffers, too; `average_buffers` has made them equal.
            self.objective = DistributedDataParallel(
                self.objective, device_ids=[self.device] if self.device.type == "cuda" else None
            )

    @property
    def result(self) -> nn.Module:
        """The classifier to evaluate and to keep: the averaged one if there is one."""
        return self.average.module if self.average else self.model

    def step(self, x: Tensor, y: Tensor, rates: list[float], seed: int) -> Sums:
        """Learn from one mini-batch: as many updates as the method makes of it.

        Args:
            x: this process's images `(N, 3, H, W)` in [0, 1].
            y: labels `(N,)`.
            rates: learning rate of each update, `updates_per_batch` of them.
            seed: decides every random number of the step, dropout's too.

        Raises:
            NotFinite: before the weights change.
        """
        torch.manual_seed(seed)
        generator = torch.Generator(self.device).manual_seed(seed)
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        x = x.contiguous(memory_format=torch.channels_last)
        self.model.train()
        attacked = self.twin.refresh() if self.twin else self.attacked
        parts = [
            (part, labels, self.method.craft(attacked, part, labels, generator, **self.attack))
            for part, labels in zip(
                x.tensor_split(self.settings["accumulate"]),
                y.tensor_split(self.settings["accumulate"]),
                strict=True,
            )
        ]
        for lr in rates:
            sums = self._update(parts, len(y), lr)
        return sums

    def _update(self, parts: Sequence, images: int, lr: float) -> Sums:
        """One change of the weights, from the gradients of all parts of the mini-batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        sums = Sums()
        for i, (x, y, crafted) in enumerate(parts):
            # Two contexts: weights that autocast has cast under no_grad would have no gradient.
            with self._autocast():
                x_adv = next(crafted)
            last = i == len(parts) - 1
            alone = distributed.world() > 1 and not last
            with self.objective.no_sync() if alone else nullcontext():
                with self._autocast(), FastWeightGradients() if self.fast else nullcontext():
                    loss, logits = self.objective(x, x_adv, y)
                value = loss.item()
                if not math.isfinite(value):
                    raise NotFinite(value, lr, {"x": x, "x_adv": x_adv.detach(), "y": y})
                self.scaler.scale(loss * (len(y) / images)).backward()
            right = (logits.argmax(1) == y).sum().item()
            sums.add(Sums(value * len(y), right, len(y)))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        distributed.average_buffers(self.model)
        if self.average:
            self.average.update_parameters(self.model)
        return sums

    def _autocast(self) -> AbstractContextManager:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def state(self) -> dict:
        """All that changes, for `load`: tensors and plain types."""
        state: dict[str, Any] = {
            "model": self.result.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        if self.average:  # `model` is the averaged one; training goes on with these
            state["training_model"] = self.model.state_dict()
            state["averaged"] = int(self.average.n_averaged)
        return state

    def load(self, state: dict) -> None:
        """Go on from what `state` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.result.load_state_dict(state["model"])
        if self.average:
            self.model.load_state_dict(state["training_model"])
            self.average.n_averaged.fill_(state["averaged"])
