"""Perform a training step: craft adversarial images, and update the weights on these images.

Reading a number from a GPU waits until the GPU has finished all of its work. A step therefore only
queues work. `Learner.report` reads the numbers of all steps since the last report at once.
"""

import copy
import hashlib
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from classification.training import distributed
from classification.training.folding import FoldedCopy
from classification.training.methods import METHODS, Objective, replay
from classification.training.settings import METHOD_DEFAULTS, TrainSettings
from robust_backbones import arithmetic, finite, timm_networks
from robust_backbones.core.errors import UserError

# Steps between two reports on a GPU. A report waits for the GPU, and stop signals are noticed only
# in reports. A CPU has nothing to wait for, so it reports after every step.
REPORT_STEPS = 10


class NotFinite(UserError):
    """The loss or the gradients became NaN or infinite.

    Args:
        reason: quantity that is not finite, with its value.
        lr: learning rate of the update.
        settings: training settings, for the fix in the message.
        batch: tensors `x`, `x_adv` and `y` of this process, available as `.batch`.
        steps_ago: number of steps after the step that failed, available as `.steps_ago`.
    """

    def __init__(
        self, reason: str, lr: float, settings: TrainSettings, batch: dict, steps_ago: int
    ):
        fixes = ["Lower --lr"]
        if settings.method == "trades":
            fixes.append("lower --beta")
        if settings.precision == "float16":
            fixes.append("use --precision bfloat16")
        super().__init__(f"{reason} at learning rate {lr:g}. {' or '.join(fixes)}.")
        self.batch, self.steps_ago = batch, steps_ago


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


@dataclass(frozen=True)
class _Update:
    """One update since the last report.

    Attributes:
        numbers: sum of the losses, number of correct predictions, norm of the gradients, and
            whether this or an earlier update has failed; `(4,)` on the device.
        lr: learning rate.
        images: number of images of this process.
        step: index of the step since the last report.
        counts: whether the images count at this update, which is the last one on its batch.
    """

    numbers: Tensor
    lr: float
    images: int
    step: int
    counts: bool


def seed_of(*numbers: int) -> int:
    """Hash the numbers into a seed, so that similar numbers give unrelated seeds."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # torch accepts seeds of 63 bits


def _sgd(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    if settings.layer_decay != 1:
        raise UserError(f"--layer-decay {settings.layer_decay:g} needs --optimizer adamw. Add it.")
    return torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )


def _adamw(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Create AdamW with timm's parameter groups, as in the training of timm's networks."""
    timm_networks.library()
    from timm.optim import param_groups_layer_decay

    net: Any = getattr(model, "net", model)
    if settings.layer_decay != 1 and not hasattr(net, "group_matcher"):
        raise UserError(
            f"--layer-decay {settings.layer_decay:g}: {type(net).__name__} does not state the "
            "order of its layers, as most timm networks do. Use --layer-decay 1."
        )
    groups = param_groups_layer_decay(
        net,
        settings.weight_decay,
        getattr(net, "no_weight_decay", tuple)(),
        layer_decay=settings.layer_decay,
    )
    return torch.optim.AdamW(groups, settings.lr, (settings.momentum, settings.beta2))


OPTIMIZERS = {"sgd": _sgd, "adamw": _adamw}


class Learner:
    """A classifier with its optimizer. The weights are equal in all processes.

    The running statistics of BatchNorm are equal in all processes after each report. Between
    reports, each process attacks the statistics of its own images.

    Args:
        model: classifier on its device.
        settings: training settings.

    Raises:
        UserError: the network does not support the layer decay, or timm is not installed.

    Attributes:
        average: model with exponentially averaged weights; None if `settings.ema` is 0.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings):
        self.model, self.settings = model, settings
        self.method = METHODS[settings.method]
        self.device = next(model.parameters()).device
        # A fused optimizer skips updates on the device. CPUs keep the loop over all parameters.
        self.fused = self.device.type != "cpu"
        self.optimizer = OPTIMIZERS[settings.optimizer](model, settings)
        self._prepare_optimizer()
        self.dtype = arithmetic.autocast_dtype(settings.precision)
        self.scaler = arithmetic.loss_scaler(settings.precision, self.device.type)
        self.average = copy.deepcopy(model) if settings.ema else None
        self.averaged = 0  # number of updates in the average
        attacks = METHOD_DEFAULTS[settings.method].runs_attack
        self.folded = FoldedCopy(model, settings.compile) if attacks else None
        objective = Objective(model, settings)
        self.objective: Any = torch.compile(objective) if settings.compile else objective
        if distributed.world() > 1:
            # `report` averages the running statistics, so DDP need not broadcast buffers
            # in every step.
            self.objective = DistributedDataParallel(
                self.objective,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                broadcast_buffers=False,
            )
        self._start_window()

    def _prepare_optimizer(self) -> None:
        """Set the optimizer up for the device. Its state may come from another device."""
        for group in self.optimizer.param_groups:
            group["fused"] = self.fused or None
            if self.fused and group.get("momentum"):
                # PyTorch leaves SGD's momentum uninitialized if it skips the first update.
                for p in group["params"]:
                    self.optimizer.state[p].setdefault("momentum_buffer", torch.zeros_like(p))

    def _start_window(self) -> None:
        """Forget the steps before a report."""
        self._updates: list[_Update] = []
        self._steps = 0
        self._failed = torch.zeros((), dtype=torch.bool, device=self.device)
        self._images: list[Tensor] = []  # x, y and the parts of x_adv; see `_keep`

    @property
    def due(self) -> bool:
        """Whether it is time for a report."""
        return self._steps >= (1 if self.device.type == "cpu" else REPORT_STEPS)

    @property
    def result(self) -> nn.Module:
        """Classifier to evaluate and save: the averaged model if there is one, else the model."""
        return self.model if self.average is None else self.average

    def step(self, x: Tensor, y: Tensor, lrs: list[float], seed: int) -> None:
        """Train on one batch: craft `x_adv` from `x`, and update the weights on `x_adv`.

        An update whose loss or gradients are not finite does not change the weights, nor do later
        updates. The next report raises an error.

        Args:
            x: images of this process `(N, 3, H, W)`, in [0, 1]. N is the same in all steps between
                two reports.
            y: labels `(N,)`.
            lrs: learning rate of each update. Free training makes several updates per batch.
            seed: seed for all random numbers of the step, including dropout.
        """
        with arithmetic.tf32(self.settings.precision):
            self._step(x, y, lrs, seed)

    def _step(self, x: Tensor, y: Tensor, lrs: list[float], seed: int) -> None:
        torch.manual_seed(seed)
        generator = torch.Generator(self.device).manual_seed(seed)
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        x = x.contiguous(memory_format=torch.channels_last)
        self.model.train()
        attacked = self.folded.refresh() if self.folded else self.model
        count = self.settings.accumulate
        parts = list(zip(x.tensor_split(count), y.tensor_split(count), strict=True))
        x_adv: list[Any] = [None] * count
        for number, lr in enumerate(lrs, 1):
            self._begin_update(lr)
            losses, correct = [], []
            for i, (x_i, y_i) in enumerate(parts):
                x_adv[i] = self._craft(attacked, x_i, y_i, x_adv[i], generator)
                share, synchronize = len(y_i) / len(y), i == count - 1
                loss, right = self._backward(x_i, x_adv[i], y_i, share, synchronize)
                losses.append(loss * len(y_i))
                correct.append(right)
            self._keep([x, y, *(part.detach() for part in x_adv)])
            loss, hits = torch.stack(losses).sum(), torch.stack(correct).sum()
            norm = self._end_update(loss)
            numbers = torch.stack([loss, hits, norm, self._failed])
            self._updates.append(_Update(numbers, lr, len(y), self._steps, number == len(lrs)))
        self._steps += 1

    def report(self) -> TrainSums:
        """Wait for the device, and return the sums over the steps since the last report.

        Every process must call this function after the same steps. The function averages the
        running statistics of BatchNorm over the processes.

        Raises:
            NotFinite: the loss or the gradients of a step are NaN or infinite.
        """
        distributed.average_buffers(self.model)
        if self.average is not None:
            distributed.average_buffers(self.average)
        updates, images, steps = self._updates, self._images, self._steps
        self._start_window()
        sums = TrainSums()
        rows = torch.stack([update.numbers for update in updates]).tolist() if updates else []
        for update, (loss, hits, norm, failed) in zip(updates, rows, strict=True):
            if failed:
                mean = loss / update.images
                reason = f"the loss became {mean}"
                if math.isfinite(loss):
                    reason = f"the norm of the gradients became {norm} (loss {mean:.3g})"
                x, y, *x_adv = images
                batch = {"x": x, "x_adv": torch.cat(x_adv), "y": y}
                steps_ago = steps - 1 - update.step
                raise NotFinite(reason, update.lr, self.settings, batch, steps_ago)
            if update.counts:
                sums.add(TrainSums(loss, int(hits), update.images))
        return sums

    def _keep(self, images: list[Tensor]) -> None:
        """Keep the images of the first update that failed, or of the last update if none failed."""
        if self._images:
            pairs = zip(self._images, images, strict=True)
            images = [a if a is b else torch.where(self._failed, a, b) for a, b in pairs]
        self._images = images

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
            group["lr"] = lr * group.get("lr_scale", 1.0)  # layer decay
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

    def _end_update(self, loss: Tensor) -> Tensor:
        """Update the weights, unless an update has failed or the gradients are not finite.

        Args:
            loss: sum of the losses of this process.

        Returns:
            The norm of the gradients, a scalar on the device.
        """
        self.scaler.unscale_(self.optimizer)
        norm = finite.gradient_norm(self.optimizer)
        self._failed = self._failed | ~loss.isfinite() | finite.must_stop(norm, self.scaler)
        skip = self._failed | ~norm.isfinite()  # float16 also skips updates that need not stop
        if self.fused:
            self.optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not skip:
            self.optimizer.step()
        self.scaler.update()
        if self.average is not None:
            self._update_average(self.average)
        return norm

    @torch.no_grad()
    def _update_average(self, average: nn.Module) -> None:
        """Add the weights and statistics to the average.

        `torch.optim.swa_utils.AveragedModel` would wait for a GPU in every update, because it
        copies its number of updates to the GPU.
        """
        self.averaged += 1
        if self.averaged == 1:
            average.load_state_dict(self.model.state_dict())
            return
        olds, news = ([*m.parameters(), *m.buffers()] for m in (average, self.model))
        floats = [old.is_floating_point() for old in olds]
        get_ema_multi_avg_fn(self.settings.ema)(
            list(compress(olds, floats)), list(compress(news, floats)), self.averaged
        )
        for old, new, is_float in zip(olds, news, floats, strict=True):
            if not is_float:  # BatchNorm's number of batches
                old.copy_(new)

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
        if self.average is not None:
            state["training_model"] = self.model.state_dict()
            state["averaged"] = self.averaged
        return state

    def load(self, state: dict) -> None:
        """Restore the state that an earlier call of `state` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._prepare_optimizer()
        self.scaler.load_state_dict(state["scaler"])
        self.result.load_state_dict(state["model"])
        if self.average is not None:
            self.model.load_state_dict(state["training_model"])
            self.averaged = state["averaged"]
