"""One update of a detector: mixed precision, accumulated gradients, and a guard against NaN."""

import contextlib
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

from robust_backbones.checkpoint.io import save_file
from robust_backbones.core.errors import UserError
from robust_backbones.detection.attack import watched_inputs
from robust_backbones.detection.training.adversarial import Adversary

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Step(SimpleTrainer):
    """What Detectron2's `SimpleTrainer` and `AMPTrainer` do, on CPUs too, and accumulation.

    The gradient of an update is the mean over `SOLVER.ACCUMULATE` mini-batches, each with
    1/ACCUMULATE of `SOLVER.IMS_PER_BATCH`. A detector's losses are means over sampled regions, so
    it is that of the whole batch up to the sampling, not bit for bit.
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
        self.accumulate = cfg.SOLVER.ACCUMULATE
        self.rate = cfg.SOLVER.BASE_LR
        self.device = next(model.parameters()).device.type
        self.dtype = DTYPES[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None
        # Only float16 underflows without: its smallest number is 6e-8.
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.dtype == torch.float16)
        self.adversary = Adversary(cfg) if cfg.SOLVER.ADVERSARIAL.METHOD else None
        self._batches: list[list[dict]] = []

    def position(self, iteration: int) -> int:
        """Where in the loader's stream the batches of an iteration begin."""
        replays = self.adversary.replays if self.adversary else 1
        return iteration // replays * self.accumulate

    def run_step(self) -> None:
        """Update the weights once.

        Raises:
            UserError: a loss is not finite; the weights are as before, and the batch is saved.
        """
        start = time.perf_counter()
        self._fetch()
        seconds = time.perf_counter() - start
        self.optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        try:
            for part, alone in self._parts():
                with alone:
                    for name, loss in self._backward(part).items():
                        sums[name] = sums.get(name, 0) + loss
        except FloatingPointError as error:  # Detectron2's proposals look for NaN themselves
            self._diverged(" ".join(str(error).split()), sums)
        if bad := [f"{k} is {float(v)}" for k, v in sums.items() if not torch.isfinite(v)]:
            self._diverged(", ".join(bad), sums)
        self._write_metrics(sums, seconds)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _fetch(self) -> None:
        """The mini-batches of this update: new ones, or those that are being replayed."""
        fresh = not self.adversary or self.iter % self.adversary.replays == 0
        if fresh and self.adversary:
            self.adversary.images = None
        if fresh or not self._batches:  # or a run was resumed in the middle of a replay
            self._batches = [next(self._data_loader_iter) for _ in range(self.accumulate)]

    def _parts(self) -> Iterator[tuple]:
        """Numbers of the mini-batches, each with the context to learn in: gradients are exchanged
        after the last."""
        for part in range(self.accumulate):
            waits = part < self.accumulate - 1 and isinstance(self.model, DistributedDataParallel)
            yield part, self.model.no_sync() if waits else contextlib.nullcontext()

    def _backward(self, part: int) -> dict[str, Tensor]:
        """Add a mini-batch's gradient; returns its share of the losses, detached."""
        if not self.adversary:
            return self._learn(self._batches[part])
        model: Any = getattr(self.model, "module", self.model)
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        batch = self.adversary.attacked(model, self._batches, part, generator)
        with watched_inputs(model) as inputs:
            losses = self._learn(batch)
        if self.adversary.replays > 1:
            self.adversary.learn(model, self._batches[part], part, inputs.pop())
        return losses

    def _learn(self, batch: list[dict]) -> dict[str, Tensor]:
        with torch.autocast(self.device, self.dtype, enabled=self.dtype is not None):
            losses = {name: loss / self.accumulate for name, loss in self.model(batch).items()}
        self.scaler.scale(sum(losses.values())).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _diverged(self, what: str, losses: dict[str, Tensor]) -> None:
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
        raise UserError(
            f"training diverged at iteration {self.iter}: {what.rstrip('.')}; lower SOLVER.BASE_LR "
            f"({self.rate:g}) or clip gradients with SOLVER.CLIP_GRADIENTS.ENABLED True. The "
            f"images and the weights of that moment are in {path}."
        )

    def state_dict(self) -> dict:
        """Optimizer and loss scale."""
        return {
            "iteration": self.iter,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "attacked": self.adversary.images if self.adversary and self._replaying() else None,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore what `state_dict` gave."""
        self.iter = state_dict["iteration"]
        self.optimizer.load_state_dict(state_dict["optimizer"])
        if state_dict["scaler"]:  # empty unless the run was in float16
            self.scaler.load_state_dict(state_dict["scaler"])
        if self.adversary:
            self.adversary.images = state_dict["attacked"]

    def _replaying(self) -> bool:
        """Whether the next update is of the same images."""
        return self.adversary is not None and (self.iter + 1) % self.adversary.replays > 0


def _plain(item: dict) -> dict:
    """An image of a batch as tensors and text, which load without executing code."""
    plain = {key: item.get(key) for key in ("file_name", "image_id", "image")}
    if "instances" in item:
        instances = item["instances"].to("cpu")
        plain |= {"boxes": instances.gt_boxes.tensor, "classes": instances.gt_classes}
    return plain
