"""Detectron2's `DefaultTrainer` with strict loading and exact resuming."""

import logging
import os
import time
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from robust_backbones.core.errors import UserError
from robust_backbones.core.signals import Stopped, StopSignals
from robust_backbones.detection.checkpointer import StrictCheckpointer
from robust_backbones.detection.data.loader import (
    CheckedLoader,
    TrainLoader,
    build_test_loader,
    build_train_loader,
    seed_from,
)
from robust_backbones.detection.data.registry import classes_of
from robust_backbones.detection.evaluation import build_evaluator
from robust_backbones.detection.training.step import Step

FINAL = "model_final"  # name of the last checkpoint, as Detectron2 has it


class Trainer(DefaultTrainer):
    """Train a detector on a robust backbone.

    What differs from `DefaultTrainer`: the backbone must come from the weights; every step's
    randomness is a function of (seed, iteration, rank) and the data stream continues where it was,
    so on the CPU a resumed run ends with the very weights of an uninterrupted one.

    Attributes:
        weights_sha256: digest of the file that the run started from, interruptions or not; None
            for random weights.
        best: `{"metric", "value", "iteration"}` of the best evaluation so far by `TEST.BEST`.
    """

    weights_sha256: str | None = None
    best: dict | None = None
    checkpointer: Any  # Detectron2's, until `build_hooks` puts ours in its place

    def __init__(self, cfg: CfgNode):
        self._started, self._seconds_before = time.perf_counter(), 0.0
        self.average: AveragedModel | None = None
        super().__init__(cfg)
        self._trainer = Step(self.cfg, self.model, self.data_loader, self.optimizer)
        if cfg.SOLVER.EMA:
            model: Any = getattr(self.model, "module", self.model)
            self.average = AveragedModel(
                model, multi_avg_fn=get_ema_multi_avg_fn(cfg.SOLVER.EMA), use_buffers=True
            )
            self.checkpointer.average = self.average

    def build_hooks(self) -> list:
        """Detectron2's hooks; the one that saves does it through a `StrictCheckpointer`, the one
        that evaluates takes the averaged weights, and the last ends a run that was asked to."""
        plain = self.checkpointer
        self.checkpointer = StrictCheckpointer(plain.model, plain.save_dir, **plain.checkpointables)
        self.checkpointer.classes = classes_of(self.cfg.DATASETS.TRAIN)
        found = super().build_hooks()
        for index, hook in enumerate(found):
            if isinstance(hook, hooks.EvalHook):
                found[index] = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate)
        return [_Average(), *found, _StopOnSignal()]

    def _evaluate(self) -> dict:
        model = self.average.module if self.average else self.model
        self._last_eval_results = self.test(self.cfg, model)
        if self.cfg.TEST.BEST and comm.is_main_process():
            self._keep_best(self._last_eval_results)
        return self._last_eval_results

    def _keep_best(self, results: dict) -> None:
        """Save the model as `model_best.pth` if it is the best so far.

        Raises:
            UserError: the evaluation has no such metric.
        """
        flat = flatten(results)
        if self.cfg.TEST.BEST not in flat:
            raise UserError(
                f"TEST.BEST is '{self.cfg.TEST.BEST}', which the evaluation does not give; one of: "
                f"{', '.join(flat)}."
            )
        value = flat[self.cfg.TEST.BEST]
        if value > (self.best["value"] if self.best else float("-inf")):  # NaN is not
            self.best = {"metric": self.cfg.TEST.BEST, "value": value, "iteration": self.iter + 1}
            self.checkpointer.save("model_best", tag=False, iteration=self.iter)

    def resume_or_load(self, resume: bool = True, restart_schedule: bool = False) -> None:
        """Continue from the last checkpoint if `resume` and there is one, else load the weights.

        Args:
            restart_schedule: after that, learning rates, momentum and weight decay are those of the
                config, not those of the checkpoint.

        Raises:
            UserError: see `StrictCheckpointer.load`; or the run is past `SOLVER.MAX_ITER`.
        """
        groups = [_without_weights(group) for group in self.optimizer.param_groups]
        rates = list(self.scheduler.base_lrs)
        super().resume_or_load(resume)
        if self.start_iter > self.max_iter:
            raise UserError(
                f"SOLVER.MAX_ITER is {self.max_iter}, but the run in {self.cfg.OUTPUT_DIR} has "
                f"made {self.start_iter} iterations already; give a larger one."
            )
        if restart_schedule:
            for group, fresh in zip(self.optimizer.param_groups, groups, strict=True):
                group.update(fresh)
            self.scheduler.base_lrs = rates
            for group, rate in zip(
                self.optimizer.param_groups, self.scheduler.get_lr(), strict=True
            ):
                group["lr"] = rate
        if self.start_iter == self.max_iter and self._last_checkpoint() != FINAL:
            self.checkpointer.save(FINAL, iteration=self.iter)  # it died before it came to that
        self._trainer.data_loader.start_iter = self._trainer.position(self.start_iter)
        if self.start_iter == 0:
            self.weights_sha256 = self.checkpointer.sha256

    def _last_checkpoint(self) -> str:
        return os.path.basename(self.checkpointer.get_checkpoint_file()).removesuffix(".pth")

    def train(self) -> None:
        """Train to the end.

        Raises:
            Stopped: a signal came; all is saved.
            UserError: see `run_step`.
        """
        self.signals = StopSignals()
        # It logs each exception with its traceback; these two are for users, who are told once.
        log = logging.getLogger("detectron2.engine.train_loop")
        log.addFilter(_no_traceback)
        try:
            with self.signals.watch():
                super().train()
        finally:
            log.removeFilter(_no_traceback)

    def run_step(self) -> None:
        """One step, its sampling of anchors and RoIs seeded by where it stands in the run.

        Raises:
            UserError: the loss is not finite, or the GPU is out of memory.
        """
        torch.manual_seed(seed_from(self.cfg.SEED, self.iter, comm.get_rank()))
        try:
            super().run_step()
        except torch.OutOfMemoryError:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH {self.cfg.SOLVER.IMS_PER_BATCH}, SOLVER.ACCUMULATE "
                f"{self.cfg.SOLVER.ACCUMULATE}: out of GPU memory. Use a larger SOLVER.ACCUMULATE, "
                "which splits a batch into parts, a smaller SOLVER.IMS_PER_BATCH, or "
                "SOLVER.AMP.ENABLED True."
            ) from None

    @property
    def metrics(self) -> dict:
        """The last evaluation, `{task: {metric: percent}}`."""
        return self._last_eval_results

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, before interruptions included."""
        return self._seconds_before + time.perf_counter() - self._started

    def state_dict(self) -> dict:
        """Iteration, hooks and optimizer (which the 0.6 release forgets), and the run's origin."""
        return super().state_dict() | {
            "_trainer": self._trainer.state_dict(),
            "weights_sha256": self.weights_sha256,
            "seconds": self.seconds,
            "best": self.best,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])
        self.weights_sha256 = state_dict["weights_sha256"]
        self._seconds_before = state_dict["seconds"]
        self.best = state_dict["best"]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
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
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """See `loader.build_train_loader`."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> CheckedLoader:
        """See `loader.build_test_loader`."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """See `evaluation.build_evaluator`."""
        return build_evaluator(cfg, dataset_name)


class _Average(HookBase):
    """Moves the averaged weights after each update."""

    def after_step(self) -> None:
        if self.trainer.average:
            self.trainer.average.update_parameters(self.trainer.checkpointer.model)


class _StopOnSignal(HookBase):
    """After a signal, saves and stops; all processes at the same iteration. The last hook."""

    def after_step(self) -> None:
        asked = self.trainer.signals.requested
        if comm.get_world_size() > 1:
            asked = any(comm.all_gather(asked))
        if not asked or self.trainer.iter + 1 >= self.trainer.max_iter:
            return
        if comm.is_main_process():
            self.trainer.checkpointer.save(
                f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter
            )
        logging.getLogger("detectron2").info(
            "Stopped by a signal after iteration %d; --resume goes on.", self.trainer.iter + 1
        )
        raise Stopped


def _no_traceback(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0] if record.exc_info else None
    return not (kind and issubclass(kind, (Stopped, UserError)))


def flatten(node: dict, separator: str = "/", prefix: str = "") -> dict:
    """Nested metrics as `bbox/AP`, nested configuration as `SOLVER.MAX_ITER`."""
    flat = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        inner = isinstance(value, dict)
        flat |= flatten(value, separator, name + separator) if inner else {name: value}
    return flat


def _without_weights(group: dict) -> dict:
    return {key: value for key, value in group.items() if key != "params"}
