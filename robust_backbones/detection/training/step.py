"""Update a detector, with mixed precision, gradient accumulation and a check for NaN.

Reading a number from a GPU waits until the GPU has finished all of its work. An update therefore
keeps its losses on the device, and `Step.report` reads the losses of several updates at once.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from robust_backbones import arithmetic, finite
from robust_backbones.checkpoint.io import save_file
from robust_backbones.core.errors import UserError
from robust_backbones.core.precision import DEFAULT
from robust_backbones.detection.attack import watched_inputs
from robust_backbones.detection.training.adversarial import (
    Adversary,
    updates_per_batch,
    whole_replays,
)

# Smallest number of updates between two reports on a GPU. Stop signals are noticed in reports only.
# A CPU has nothing to wait for, so it reports after every update.
REPORT_EVERY = 10


def precision_of(cfg: CfgNode) -> str:
    """Return the precision of training. Detectron2's `SOLVER.AMP.ENABLED` means float16."""
    return cfg.SOLVER.PRECISION or ("float16" if cfg.SOLVER.AMP.ENABLED else DEFAULT)


def evaluation_note(cfg: CfgNode) -> str | None:
    """Return a message if the precision of training, which evaluations ignore, is not float32."""
    if precision_of(cfg) == DEFAULT:
        return None
    return f"Evaluating in float32. The precision {precision_of(cfg)} applies to training only."


class Diverged(UserError):
    """The loss or the gradients are not finite."""


@dataclass(frozen=True)
class _Update:
    """An update that was not reported yet.

    Attributes:
        iteration: iteration of the update.
        names: names of the losses.
        numbers: the losses, the norm of the gradients, and 1 if this or an earlier update has
            failed, else 0; `(len(names) + 2,)` on the device.
        seconds: time that this process waited for the batches.
        batches: parts of the batch.
    """

    iteration: int
    names: tuple[str, ...]
    numbers: Tensor
    seconds: float
    batches: list[list[dict]]


class Step(SimpleTrainer):
    """A training step that replaces Detectron2's `SimpleTrainer` and `AMPTrainer`.

    Mixed precision also works on CPUs. With gradient accumulation, the gradient of an update is the
    mean over `SOLVER.ACCUMULATE` equal parts of the batch of `SOLVER.IMS_PER_BATCH` images. A
    detector's losses are means over sampled regions. Therefore, this gradient equals the gradient
    of the whole batch only up to sampling and rounding.

    An update with losses or gradients that are not finite does not change the weights, nor do later
    updates. The next report raises the error.

    Attributes:
        report_every: number of updates between two reports. A trainer can report earlier.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
    ):
        super().__init__(model, data_loader, optimizer)
        self.folder = Path(cfg.OUTPUT_DIR)
        self.clips = cfg.SOLVER.CLIP_GRADIENTS.ENABLED
        self.accumulate = cfg.SOLVER.ACCUMULATE
        self.replays = updates_per_batch(cfg)
        self.lr = cfg.SOLVER.BASE_LR
        self.device = next(model.parameters()).device.type
        self.precision = precision_of(cfg)
        self.dtype = arithmetic.autocast_dtype(self.precision)
        self.scaler = arithmetic.loss_scaler(self.precision, self.device)
        self.adversary = Adversary(cfg) if cfg.SOLVER.ADVERSARIAL.METHOD else None
        if cfg.SOLVER.COMPILE:
            # Images have many sizes. Without `dynamic`, the second size would be compiled again.
            self._detector.backbone.compile(dynamic=True)
        self._batches: list[list[dict]] = []
        self._updates: list[_Update] = []
        self._failed = torch.zeros((), dtype=torch.bool, device=next(model.parameters()).device)
        # A fused optimizer can skip an update on the device, without waiting for it.
        fusible = isinstance(optimizer, (torch.optim.SGD, torch.optim.AdamW))
        self.use_fused(self.device != "cpu" and fusible)
        self.report_every = whole_replays(cfg, REPORT_EVERY) if self._fused else 1

    def use_fused(self, fused: bool) -> None:
        """Choose between the fused optimizer and PyTorch's default for the device."""
        self._fused = fused
        for group in self.optimizer.param_groups:
            group["fused"] = fused or None
            if fused and group.get("momentum"):
                # PyTorch would leave the momentum uninitialized if it skipped the first update.
                for p in group["params"]:
                    self.optimizer.state[p].setdefault("momentum_buffer", torch.zeros_like(p))

    def position(self, iteration: int) -> int:
        """Return the index of an iteration's first batch in the stream of the data loader."""
        return iteration // self.replays * self.accumulate

    def run_step(self) -> None:
        """Update the weights once. Report before every `report_every`-th update.

        Raises:
            Diverged: see `report`.
        """
        with arithmetic.tf32(self.precision):
            self._update()

    def _update(self) -> None:
        start = time.perf_counter()
        self._fetch_batches()
        seconds = time.perf_counter() - start
        self.optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        try:
            for part, context in self._parts():
                with context:
                    for name, loss in self._backward(part).items():
                        sums[name] = sums.get(name, 0) + loss
        except FloatingPointError as error:  # Detectron2 found NaN in proposals
            self._checked()  # an earlier update may have failed
            known = {name: float(loss) for name, loss in sums.items()}
            reason = " ".join(str(error).split())
            self._raise_diverged(self.iter, reason, known, self._batches)
        self.scaler.unscale_(self.optimizer)
        norm = finite.gradient_norm(self.optimizer)
        losses = torch.stack([loss.float() for loss in sums.values()])
        self._failed |= ~losses.isfinite().all() | finite.must_stop(norm, self.scaler)
        numbers = torch.cat([losses, torch.stack([norm, self._failed.float()])])
        self._updates.append(_Update(self.iter, tuple(sums), numbers, seconds, self._batches))
        if (self.iter + 1) % self.report_every == 0:
            self.report()
        skip = self._failed | ~norm.isfinite()  # float16 also skips updates that need not stop
        if self._fused:
            self.optimizer.found_inf = skip.float()
            self.optimizer.step()
        elif not skip:
            self.optimizer.step()
        self.scaler.update()

    def report(self) -> None:
        """Wait for the device, check all updates since the last report, and write their metrics.

        All processes must call this function after the same updates. Losses are means over the
        processes, and `data_time` is the longest time.

        Raises:
            Diverged: a loss or the gradients of an update are not finite. The weights are those
                before this update. The batch and the weights are saved in the output folder.
        """
        if not self._updates:
            return
        gathered = comm.gather(self._checked())
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        now = storage.iter
        for same in zip(*gathered, strict=True):  # one update in all processes
            iterations, losses, seconds = zip(*same, strict=True)
            storage.iter = iterations[0]
            means = {n: statistics.fmean(each[n] for each in losses) for n in losses[0]}
            summary = {"data_time": max(seconds), "total_loss": sum(means.values())}
            storage.put_scalars(**summary | means)
        storage.iter = now

    def _checked(self) -> list[tuple[int, dict[str, float], float]]:
        """Return iteration, losses and `seconds` of each update that was not reported yet.

        Raises:
            Diverged: see `report`.
        """
        updates, self._updates = self._updates, []
        if not updates:
            return []
        rows = []
        numbers = iter(torch.cat([update.numbers for update in updates]).tolist())
        for update in updates:
            losses = {name: next(numbers) for name in update.names}
            norm, failed = next(numbers), next(numbers)
            if failed:
                bad = [f"{name} is {x}" for name, x in losses.items() if not math.isfinite(x)]
                reason = ", ".join(bad) or f"the norm of the gradients is {norm}"
                self._raise_diverged(update.iteration, reason, losses, update.batches)
            rows.append((update.iteration, losses, update.seconds))
        return rows

    def _fetch_batches(self) -> None:
        """Fetch the batches of this update, unless the previous batches are replayed."""
        fresh = self.iter % self.replays == 0
        if fresh and self.adversary:
            self.adversary.images = None
        if fresh or not self._batches:  # a run can resume during a replay
            parts = (next(self._data_loader_iter) for _ in range(self.accumulate))
            self._batches = [_on_device(batch, self._detector.device) for batch in parts]

    def _parts(self) -> Iterator[tuple]:
        """Yield the index of each part of the batch, and a context for its backward pass.

        Processes exchange gradients only after the last part.
        """
        for part in range(self.accumulate):
            local = part < self.accumulate - 1 and isinstance(self.model, DistributedDataParallel)
            yield part, self.model.no_sync() if local else contextlib.nullcontext()

    def _backward(self, part: int) -> dict[str, Tensor]:
        """Compute the gradient of one part of the batch, and add it to the parameters' `.grad`.

        Args:
            part: index of the part.

        Returns:
            The losses of the part divided by `SOLVER.ACCUMULATE`, `{name: scalar}`, detached.
        """
        if not self.adversary:
            return self._accumulate_gradient(self._batches[part])
        model, seed = self._detector, int(torch.randint(2**62, ()))
        generator = torch.Generator(model.device).manual_seed(seed)
        with self._autocast():
            batch = self.adversary.attacked(model, self._batches, part, generator)
        if self.replays == 1:  # no gradient of the images, nor of frozen stages
            return self._accumulate_gradient(batch)
        with watched_inputs(model) as inputs:
            losses = self._accumulate_gradient(batch)
        self.adversary.perturb(model, self._batches[part], part, inputs.pop())
        return losses

    @property
    def _detector(self) -> Any:
        """The model without its DistributedDataParallel wrapper."""
        return getattr(self.model, "module", self.model)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, enabled=self.dtype is not None)

    def _accumulate_gradient(self, batch: list[dict]) -> dict[str, Tensor]:
        with self._autocast():
            losses = {name: loss / self.accumulate for name, loss in self.model(batch).items()}
        self.scaler.scale(sum(losses.values())).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _raise_diverged(
        self, iteration: int, reason: str, losses: dict[str, float], batches: list[list[dict]]
    ) -> NoReturn:
        path = self.folder / f"not_finite_iter{iteration}_rank{comm.get_rank()}.pth"
        save_file(
            {
                "iteration": iteration,
                "losses": losses,
                "batch": [_plain(item) for batch in batches for item in batch],
                "model": self.model.state_dict(),
            },
            path,
        )
        fixes = [f"Reduce SOLVER.BASE_LR ({self.lr:g})"]
        if not self.clips:
            fixes.append("set SOLVER.CLIP_GRADIENTS.ENABLED True")
        if self.dtype == torch.float16:
            fixes.append("set SOLVER.PRECISION bfloat16")
        raise Diverged(
            f"training diverged at iteration {iteration}: {reason.rstrip('.')}. "
            f"{', or '.join(fixes)}. {path} contains the images and the weights of this iteration."
        )

    def state_dict(self) -> dict:
        """Return the iteration, and the states of the optimizer and the loss scaler."""
        return {
            "iteration": self.iter,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the output of `state_dict`."""
        self.iter = state_dict["iteration"]
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.use_fused(self._fused)  # the state may be from another device
        if state_dict["scaler"]:  # the state is empty unless the dtype is float16
            self.scaler.load_state_dict(state_dict["scaler"])


def _on_device(batch: list[dict], device: torch.device) -> list[dict]:
    return [{**item, "image": item["image"].to(device, non_blocking=True)} for item in batch]


def _plain(item: dict) -> dict:
    """Convert an item of a batch to tensors and strings, which load without executing code."""
    plain = {key: item.get(key) for key in ("file_name", "image_id")}
    plain["image"] = item["image"].cpu()
    if "sem_seg" in item:
        plain["sem_seg"] = item["sem_seg"].cpu()
    if "instances" in item:
        instances = item["instances"].to("cpu")
        plain |= {"boxes": instances.gt_boxes.tensor, "classes": instances.gt_classes}
    return plain
