"""Detectron2's `DefaultTrainer` with strict loading and exact resuming."""

import time

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from robust_backbones.detection.checkpointer import StrictCheckpointer
from robust_backbones.detection.evaluation import build_evaluator
from robust_backbones.detection.loader import build_train_loader, seed_from
from robust_backbones.errors import UserError


class Trainer(DefaultTrainer):
    """Train a detector on a robust backbone.

    What differs from `DefaultTrainer`: the backbone must come from the weights; every step's
    randomness is a function of (seed, iteration, rank) and the data stream continues where it was,
    so on the CPU a resumed run ends with the very weights of an uninterrupted one.

    Attributes:
        weights_sha256: digest of the file that the run started from, interruptions or not; None
            for random weights.
    """

    weights_sha256: str | None = None

    def __init__(self, cfg: CfgNode):
        self._started, self._seconds_before = time.time(), 0.0
        super().__init__(cfg)

    def build_hooks(self) -> list:
        """Detectron2's hooks; the one that saves does it through a `StrictCheckpointer`."""
        plain = self.checkpointer
        self.checkpointer = StrictCheckpointer(plain.model, plain.save_dir, **plain.checkpointables)
        return super().build_hooks()

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint if `resume` and there is one, else load the weights.

        Raises:
            UserError: see `StrictCheckpointer.load`.
        """
        super().resume_or_load(resume)
        self._trainer.data_loader.start_iter = self.start_iter
        if self.start_iter == 0:
            self.weights_sha256 = self.checkpointer.sha256

    def run_step(self) -> None:
        """One step, its sampling of anchors and RoIs seeded by where it stands in the run.

        Raises:
            UserError: the loss is not finite.
        """
        torch.manual_seed(seed_from(self.cfg.SEED, self.iter, comm.get_rank()))
        try:
            super().run_step()
        except FloatingPointError:
            raise UserError(
                f"training diverged at iteration {self.iter}: the loss is not finite; lower "
                f"SOLVER.BASE_LR ({self.cfg.SOLVER.BASE_LR:g}) or clip gradients with "
                "SOLVER.CLIP_GRADIENTS.ENABLED True."
            ) from None

    @property
    def metrics(self) -> dict:
        """The last evaluation, `{task: {metric: percent}}`."""
        return self._last_eval_results

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, before interruptions included."""
        return self._seconds_before + time.time() - self._started

    def state_dict(self) -> dict:
        """Iteration, hooks and optimizer (which the 0.6 release forgets), and the run's origin."""
        return super().state_dict() | {
            "_trainer": self._trainer.state_dict(),
            "weights_sha256": self.weights_sha256,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])
        self.weights_sha256 = state_dict["weights_sha256"]
        self._seconds_before = state_dict["seconds"]

    @classmethod
    def build_model(cls, cfg: CfgNode):
        """As Detectron2's.

        Raises:
            UserError: the config names something that does not exist or does not fit together.
        """
        try:
            return super().build_model(cfg)
        except UserError:
            raise
        except (KeyError, ValueError, AssertionError, RuntimeError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"the configured model cannot be built: {text}") from error

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """See `loader.build_train_loader`."""
        return build_train_loader(cfg)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str):
        """See `evaluation.build_evaluator`."""
        return build_evaluator(cfg, dataset_name)
