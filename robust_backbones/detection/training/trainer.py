"""Detectron2's `DefaultTrainer` with strict loading and exact resuming."""

import contextlib
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

from robust_backbones.core.errors import UserError, choose_from, memory_advice, out_of_gpu_memory
from robust_backbones.core.results import flatten
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
from robust_backbones.detection.training.adversarial import whole_replays
from robust_backbones.detection.training.optimizer import build_optimizer
from robust_backbones.detection.training.step import Step

FIRST_WRITTEN = (1, 2, 5, 10)  # iterations of a new or resumed run whose metrics are printed
WRITE_EVERY = 20  # iterations between two lines of metrics, as in Detectron2
FINAL = "model_final"  # name that Detectron2 gives to the last checkpoint


class _ProgressWriter(hooks.PeriodicWriter):
    """Write metrics regularly, and in the first iterations, to show the time left."""

    _early = False  # whether the last step was written in between

    def after_step(self) -> None:
        done = self.trainer.iter + 1 - self.trainer.start_iter
        last = self.trainer.iter == self.trainer.max_iter - 1
        regular = last or (self.trainer.iter + 1) % self._period == 0
        self._early = done in FIRST_WRITTEN and not regular
        if self._early:
            for writer in self._writers:
                writer.write()
        super().after_step()

    def after_train(self) -> None:
        if not self._early:
            super().after_train()
            return
        # The run was stopped right after an early write. Detectron2 would write the iteration again
        # and divide by the zero iterations in between to estimate the time left.
        for writer in self._writers:
            writer.close()


class Trainer(DefaultTrainer):
    """Train a detector on a robust backbone.

    Unlike `DefaultTrainer`, this class requires that the weights contain the whole backbone. It
    also resumes exactly: the random numbers of each step are a function of (seed, iteration, rank),
    and the data stream continues at its position. On the CPU, a resumed run therefore ends with
    exactly the same weights as a run without interruption.

    Attributes:
        weights_sha256: SHA-256 digest of the file that the run started from; None for random
            weights.
        best: best evaluation by the metric `TEST.BEST`, `{"metric", "value", "iteration"}`; None
            before the first evaluation with this metric.
    """

    weights_sha256: str | None = None
    best: dict | None = None
    checkpointer: Any  # `build_hooks` replaces Detectron2's checkpointer

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
        """Return Detectron2's hooks with four changes.

        The first iterations are printed as well. A `StrictCheckpointer` saves the checkpoints, but
        never while a batch is replayed (`SOLVER.ADVERSARIAL.METHOD free`). Averaged weights are
        updated and evaluated, if `SOLVER.EMA` is set. The last hook stops the run after a signal.
        """
        plain = self.checkpointer
        self.checkpointer = StrictCheckpointer(plain.model, plain.save_dir, **plain.checkpointables)
        self.checkpointer.use_input(self.cfg)
        self.checkpointer.classes = classes_of(self.cfg.DATASETS.TRAIN)
        self.checkpointer.statistics = self.cfg.MODEL.get("ROBUST", {}).get("STATISTICS")
        built = super().build_hooks()
        for index, hook in enumerate(built):
            if isinstance(hook, hooks.PeriodicWriter):
                built[index] = _ProgressWriter(hook._writers, WRITE_EVERY)
            if isinstance(hook, hooks.PeriodicCheckpointer):
                hook.period = whole_replays(self.cfg, hook.period)
            if isinstance(hook, hooks.EvalHook):
                built[index] = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate)
        return [_UpdateAverage(), *built, _StopOnSignal()]

    def _evaluate(self) -> dict:
        model = self.average.module if self.average else self.model
        self._last_eval_results = self.test(self.cfg, model)
        if self.cfg.TEST.BEST and comm.is_main_process():
            self._save_best(self._last_eval_results)
        return self._last_eval_results

    def _save_best(self, results: dict) -> None:
        """Save the model as `model_best.pth` if its metric is the highest so far.

        Raises:
            UserError: `TEST.BEST` is not a metric of the evaluation.
        """
        flat = flatten(results, "/")
        if self.cfg.TEST.BEST not in flat:
            raise UserError(
                f"TEST.BEST is '{self.cfg.TEST.BEST}', which is not a metric of the evaluation. "
                f"{choose_from(self.cfg.TEST.BEST, flat)}"
            )
        value = flat[self.cfg.TEST.BEST]
        if value > (self.best["value"] if self.best else float("-inf")):  # also false for NaN
            self.best = {"metric": self.cfg.TEST.BEST, "value": value, "iteration": self.iter + 1}
            self.checkpointer.save("model_best", tag=False, iteration=self.iter)

    def resume_or_load(self, resume: bool = True, restart_schedule: bool = False) -> None:
        """Resume from the last checkpoint, or load `MODEL.WEIGHTS` for a new run.

        Args:
            resume: whether to resume, if there is a checkpoint.
            restart_schedule: whether to take learning rate, momentum and weight decay from the
                configuration and not from the checkpoint.

        Raises:
            UserError: the checkpoint cannot be loaded (see `StrictCheckpointer.load`), or it has
                more iterations than `SOLVER.MAX_ITER`.
        """
        groups = [_without_weights(group) for group in self.optimizer.param_groups]
        base_lrs = list(self.scheduler.base_lrs)
        super().resume_or_load(resume)
        if self.start_iter > self.max_iter:
            raise UserError(
                f"SOLVER.MAX_ITER is {self.max_iter}, but the run in {self.cfg.OUTPUT_DIR} has "
                f"finished {self.start_iter} iterations already. Use a larger SOLVER.MAX_ITER."
            )
        if restart_schedule:
            for group, fresh in zip(self.optimizer.param_groups, groups, strict=True):
                group.update(fresh)
            self.scheduler.base_lrs = base_lrs
            # `get_lr` of PyTorch's schedulers continues from the previous learning rate.
            rates = getattr(self.scheduler, "_get_closed_form_lr", self.scheduler.get_lr)()
            for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = lr
        if self.start_iter == self.max_iter and self._last_checkpoint() != FINAL:
            # The run was killed before it saved its final checkpoint.
            self.checkpointer.save(FINAL, iteration=self.iter)
        self._trainer.data_loader.start_iter = self._trainer.position(self.start_iter)
        if self.start_iter == 0:
            self.weights_sha256 = self.checkpointer.sha256

    def _last_checkpoint(self) -> str:
        return os.path.basename(self.checkpointer.get_checkpoint_file()).removesuffix(".pth")

    def train(self) -> None:
        """Train until `SOLVER.MAX_ITER`.

        Raises:
            Stopped: the process received a signal. The run is saved.
            UserError: see `run_step`.
        """
        self.signals = StopSignals()
        # Detectron2 logs exceptions with tracebacks. The program handles Stopped and UserError
        # itself, without a traceback.
        log = logging.getLogger("detectron2.engine.train_loop")
        log.addFilter(_no_traceback)
        try:
            with self.signals.watch():
                super().train()
        finally:
            log.removeFilter(_no_traceback)

    def run_step(self) -> None:
        """Run one training step. Seed, iteration and rank determine the sampling of regions.

        Raises:
            UserError: the loss is not finite, or the GPU is out of memory.
        """
        torch.manual_seed(seed_from(self.cfg.SEED, self.iter, comm.get_rank()))
        solver = self.cfg.SOLVER
        with memory_advice(
            "Use a larger SOLVER.ACCUMULATE, which splits a batch into parts, a smaller "
            "SOLVER.IMS_PER_BATCH, or SOLVER.PRECISION bfloat16.",
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH}, SOLVER.ACCUMULATE {solver.ACCUMULATE}",
        ):
            super().run_step()
            if self._needs_report():
                self._trainer.report()

    def _needs_report(self) -> bool:
        """Return whether this iteration's metrics are written, or its weights are used."""
        done = self.iter + 1
        saving = whole_replays(self.cfg, self.cfg.SOLVER.CHECKPOINT_PERIOD)
        periods = (WRITE_EVERY, saving, self.cfg.TEST.EVAL_PERIOD)
        return (
            done == self.max_iter
            or done - self.start_iter in FIRST_WRITTEN
            or any(period > 0 and done % period == 0 for period in periods)
        )

    @property
    def metrics(self) -> dict:
        """The metrics of the last evaluation, `{task: {metric: percent}}`."""
        return self._last_eval_results

    @property
    def seconds(self) -> float:
        """The wall time of the run in seconds, including the time before interruptions."""
        return self._seconds_before + time.perf_counter() - self._started

    def state_dict(self) -> dict:
        """Return the iteration, and the states of the hooks, the training step and this trainer.

        In Detectron2 0.6, `DefaultTrainer.state_dict` does not contain the training step, which
        includes the optimizer.
        """
        return super().state_dict() | {
            "_trainer": self._trainer.state_dict(),
            "weights_sha256": self.weights_sha256,
            "seconds": self.seconds,
            "best": self.best,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the output of `state_dict`."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])
        self.weights_sha256 = state_dict["weights_sha256"]
        self._seconds_before = state_dict["seconds"]
        self.best = state_dict["best"]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model that the configuration describes.

        Raises:
            UserError: a name in the configuration is unknown, or values contradict each other.
        """
        try:
            model = super().build_model(cfg)
            if cfg.SOLVER.CHANNELS_LAST:  # before DistributedDataParallel copies the layout
                model = model.to(memory_format=torch.channels_last)
            return model
        except UserError:
            raise
        except (KeyError, ValueError, AssertionError, RuntimeError) as error:
            if out_of_gpu_memory(error):
                raise
            text = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"the configured model cannot be built: {text}") from error

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict:
        """Evaluate a model on `DATASETS.TEST`.

        Raises:
            UserError: an image cannot be read, or the GPU is out of memory.
        """
        with evaluation_advice(cfg):
            return super().test(cfg, model, evaluators)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Call `optimizer.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """Build the schedule of `SOLVER`.

        Raises:
            UserError: its name is unknown, or it does not fit the number of iterations.
        """
        try:
            return super().build_lr_scheduler(cfg, optimizer)
        except ValueError as error:
            raise UserError(
                f"SOLVER.LR_SCHEDULER_NAME {cfg.SOLVER.LR_SCHEDULER_NAME} cannot be built: {error}."
            ) from error

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """Call `loader.build_train_loader`."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> CheckedLoader:
        """Call `loader.build_test_loader`."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Call `evaluation.build_evaluator`."""
        return build_evaluator(cfg, dataset_name)


class _UpdateAverage(HookBase):
    """A hook that updates the averaged weights after each step."""

    def after_step(self) -> None:
        if self.trainer.average:
            self.trainer.average.update_parameters(self.trainer.checkpointer.model)


class _StopOnSignal(HookBase):
    """A hook that saves the run and stops it after a signal.

    All processes stop at the same iteration. This hook must be the last, so that the other hooks of
    the iteration have run.
    """

    def after_step(self) -> None:
        done, step = self.trainer.iter + 1, self.trainer._trainer
        if done % whole_replays(self.trainer.cfg, step.report_every):
            return
        asked = self.trainer.signals.requested
        if comm.get_world_size() > 1:
            asked = any(comm.all_gather(asked))
        if not asked or done >= self.trainer.max_iter:
            return
        if comm.is_main_process():
            self.trainer.checkpointer.save(
                f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter
            )
        logging.getLogger("detectron2").info(
            "Stopped by a signal after iteration %d. To continue, use --resume.", done
        )
        raise Stopped


def evaluation_advice(cfg: CfgNode, batch: int = 1) -> contextlib.AbstractContextManager[None]:
    """Return a context that raises a `UserError` if an evaluation needs too much GPU memory.

    Args:
        cfg: configuration.
        batch: images per batch. Only commands with the option `--batch-size` have more than one.
    """
    several = batch > 1
    return memory_advice(
        f"Use {'a smaller --batch-size, ' * several}a smaller INPUT.MIN_SIZE_TEST and "
        "INPUT.MAX_SIZE_TEST, or MODEL.DEVICE cpu.",
        f"{f'--batch-size {batch}, ' * several}INPUT.MAX_SIZE_TEST {cfg.INPUT.MAX_SIZE_TEST}",
    )


def _no_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, (Stopped, UserError)) or (error and out_of_gpu_memory(error)))


def _without_weights(group: dict) -> dict:
    return {key: value for key, value in group.items() if key != "params"}
