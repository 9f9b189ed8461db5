"""Update a detector, with mixed precision, gradient accumulation and a check for NaN."""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from robust_backbones import arithmetic, finite
from robust_backbones.checkpoint.io import save_file
from robust_backbones.core.errors import UserError
from robust_backbones.core.precision import DEFAULT
from robust_backbones.detection.attack import watched_inputs
from robust_backbones.detection.training.adversarial import Adversary, updates_per_batch


def precision_of(cfg: CfgNode) -> str:
    """Return the precision of training. Detectron2's `SOLVER.AMP.ENABLED` means float16."""
    return cfg.SOLVER.PRECISION or ("float16" if cfg.SOLVER.AMP.ENABLED else DEFAULT)


class Diverged(UserError):
    """The loss or the gradients are not finite."""


class Step(SimpleTrainer):
    """A training step that replaces Detectron2's `SimpleTrainer` and `AMPTrainer`.

    Mixed precision also works on CPUs. With gradient accumulation, the gradient of an update is the
    mean over `SOLVER.ACCUMULATE` equal parts of the batch of `SOLVER.IMS_PER_BATCH` images. A
    detector's losses are means over sampled regions. Therefore, this gradient equals the gradient
    of the whole batch only up to sampling and rounding.
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
        self._batches: list[list[dict]] = []

    def position(self, iteration: int) -> int:
        """Return the index of an iteration's first batch in the stream of the data loader."""
        return iteration // self.replays * self.accumulate

    def run_step(self) -> None:
        """Update the weights once.

        Raises:
            Diverged: a loss or the gradients are not finite. The weights are not updated. The
                batch and the weights are saved in the output folder.
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
            self._raise_diverged(" ".join(str(error).split()), sums)
        self.scaler.unscale_(self.optimizer)
        norm = finite.gradient_norm(self.optimizer)
        numbers = [*(loss.float() for loss in sums.values()), norm]
        *losses, length = torch.stack(numbers).tolist()  # synchronizes with the GPU only once
        named = zip(sums, losses, strict=True)
        if bad := [f"{name} is {loss}" for name, loss in named if not math.isfinite(loss)]:
            self._raise_diverged(", ".join(bad), sums)
        if finite.overflowed(length, self.scaler):
            self._raise_diverged(f"the norm of the gradients is {length}", sums)
        self._write_metrics(sums, seconds)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _fetch_batches(self) -> None:
        """Fetch the batches of this update, unless the previous batches are replayed."""
        fresh = self.iter % self.replays == 0
        if fresh and self.adversary:
            self.adversary.images = None
        if fresh or not self._batches:  # a run can resume during a replay
            self._batches = [next(self._data_loader_iter) for _ in range(self.accumulate)]
            if self.adversary:  # which perturbs the images on the device, often more than once
                device = self._detector.device
                self._batches = [_on_device(batch, device) for batch in self._batches]

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

    def _raise_diverged(self, reason: str, losses: dict[str, Tensor]) -> None:
        path = self.folder / f"not_finite_iter{self.iter}_rank{comm.get_rank()}.pth"
        save_file(
            {
                "iteration": self.iter,
                "losses": {name: float(loss) for name, loss in losses.items()},
                "batch": [_plain(item) for batch in self._batches for item in batch],
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
            f"training diverged at iteration {self.iter}: {reason.rstrip('.')}. "
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
        if state_dict["scaler"]:  # the state is empty unless the dtype is float16
            self.scaler.load_state_dict(state_dict["scaler"])


def _on_device(batch: list[dict], device: torch.device) -> list[dict]:
    return [{**item, "image": item["image"].to(device, non_blocking=True)} for item in batch]


def _plain(item: dict) -> dict:
    """Convert an item of a batch to tensors and strings, which load without executing code."""
    plain = {key: item.get(key) for key in ("file_name", "image_id")}
    plain["image"] = item["image"].cpu()
    if "instances" in item:
        instances = item["instances"].to("cpu")
        plain |= {"boxes": instances.gt_boxes.tensor, "classes": instances.gt_classes}
    return plain
