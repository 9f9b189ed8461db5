"""Train or evaluate in one process: check the output folder, run, write the result file."""

import contextlib
import json
import logging
import os
import time
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from robust_backbones.core import results
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic, claimed
from robust_backbones.detection.checkpointer import StrictCheckpointer
from robust_backbones.detection.compat import silence_detectron2
from robust_backbones.detection.data import custom as own_data
from robust_backbones.detection.data.registry import classes_of, fingerprint
from robust_backbones.detection.training.trainer import Trainer, flatten

RESULT, CONFIG = "result.json", "config.yaml"
# Keys that may differ between a run and its continuation without a word.
# What decides the learning rate, momentum and weight decay at an iteration, and the last one.
SCHEDULE = tuple(
    f"SOLVER.{key}"
    for key in (
        "BASE_LR",
        "BIAS_LR",
        "LR_SCHEDULER",
        "GAMMA",
        "STEPS",
        "NUM_DECAYS",
        "RESCALE",
        "MAX_ITER",
        "WARMUP",
        "MOMENTUM",
        "NESTEROV",
        "WEIGHT_DECAY",
        "REFERENCE_WORLD",
    )
)
_FREE = (
    "OUTPUT_DIR",
    "TEST",
    "DATASETS.TEST",
    "DATALOADER.NUM_WORKERS",
    "MODEL.DEVICE",
    "SOLVER.CHECKPOINT_PERIOD",
)


@dataclass(frozen=True)
class Mode:
    """What to do with the output folder.

    Attributes:
        resume: Continue from the last checkpoint, if there is one.
        restart_schedule: With `resume`, use the schedule of the config instead of the run's own.
        eval_only: Evaluate without training.
    """

    resume: bool = False
    restart_schedule: bool = False
    eval_only: bool = False


def run(cfg: CfgNode, mode: Mode) -> None:
    """Train, or evaluate if `mode.eval_only`.

    Raises:
        UserError: the weights do not fit, the folder is another run's, another process trains
            there, or training diverged.
        Stopped: a signal came; all is saved.
    """
    silence_detectron2()
    own_data.register(cfg)  # this may be a process of its own, which knows none of them
    if mode.eval_only:
        _setup(cfg, mode)
        evaluate(cfg, mode.resume)
        return
    with claimed(cfg.OUTPUT_DIR) if comm.is_main_process() else contextlib.nullcontext():
        cfg = continued(cfg, mode.resume, mode.restart_schedule)
        _setup(cfg, mode)
        train(cfg, mode.resume, mode.restart_schedule)


def _setup(cfg: CfgNode, mode: Mode) -> None:
    """Detectron2's `default_setup`, but `config.yaml` is replaced in one step: a kill while it is
    written would leave half of what a resumed run is compared with. An evaluation leaves a run's
    alone."""
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="fvcore")
    log = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank())
    log.info(
        "Process %d of %d. Environment:\n%s",
        comm.get_rank(),
        comm.get_world_size(),
        collect_env_info(),
    )
    log.info("%s", mode)
    log.info("Running with full config:\n%s", cfg.dump())
    path = os.path.join(cfg.OUTPUT_DIR, CONFIG)
    if comm.is_main_process() and not (mode.eval_only and os.path.exists(path)):
        with atomic(path) as temporary:
            temporary.write_text(cfg.dump(), encoding="utf-8")
    seed_all_rng(cfg.SEED + comm.get_rank())
    if not mode.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def train(cfg: CfgNode, resume: bool, restart_schedule: bool = False) -> None:
    """Train to the end and write `result.json`; a finished run is left as it is.

    Raises:
        UserError, Stopped: see `Trainer`.
    """
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume, restart_schedule)
    if trainer.start_iter >= trainer.max_iter and _has_result(trainer.cfg):
        logging.getLogger("detectron2").info("%s is finished already.", cfg.OUTPUT_DIR)
        return
    trainer.train()
    if comm.is_main_process() and cfg.DATASETS.TEST:
        write_result(
            trainer.cfg,
            trainer.metrics,
            trainer.weights_sha256,
            trainer.seconds,
            RESULT,
            best=trainer.best,
        )


def evaluate(cfg: CfgNode, resume: bool) -> None:
    """Evaluate `MODEL.WEIGHTS`, or the last checkpoint if `resume`; write `eval_result.json`.

    Raises:
        UserError: nothing to evaluate, or any tensor of the model did not come from the file.
    """
    started = time.perf_counter()
    model = Trainer.build_model(cfg)
    checkpointer = StrictCheckpointer(model, cfg.OUTPUT_DIR)
    last = resume and checkpointer.has_checkpoint()
    path = checkpointer.get_checkpoint_file() if last else cfg.MODEL.WEIGHTS
    if not path or not cfg.DATASETS.TEST:
        key = "DATASETS.TEST" if path else "MODEL.WEIGHTS"
        raise UserError(f"--eval-only needs {key}, which is empty.")
    checkpointer.classes = classes_of(cfg.DATASETS.TEST)
    checkpointer.load(path)
    metrics = Trainer.test(cfg, model)
    if comm.is_main_process():
        seconds = time.perf_counter() - started
        write_result(cfg, metrics, checkpointer.sha256, seconds, "eval_result.json")


def continued(cfg: CfgNode, resume: bool, restart_schedule: bool) -> CfgNode:
    """The config that a run in `OUTPUT_DIR` is begun or continued with; says what differs.

    A run goes on by the schedule that it began with, from weights of its own: so it ends as it
    would have without the interruption. With `restart_schedule` it goes on by the one given now.

    Raises:
        UserError: `OUTPUT_DIR` holds a run and `resume` is not asked for.
    """
    if not os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        return cfg
    if not resume:
        raise UserError(
            f"{cfg.OUTPUT_DIR} holds a run already; pass --resume to go on with it, or choose "
            "another OUTPUT_DIR."
        )
    path = os.path.join(cfg.OUTPUT_DIR, CONFIG)
    if not os.path.isfile(path):
        return cfg
    with open(path, encoding="utf-8") as file:
        before = flatten(yaml.safe_load(file), ".")
    kept = {}
    log = logging.getLogger("detectron2")
    for key, (now, then) in _changes(flatten(yaml.safe_load(cfg.dump()), "."), before).items():
        text = f"{key} is {now}; the run began with {then}, "
        if key == "MODEL.WEIGHTS":
            kept[key] = then
            text += "and goes on with weights of its own. Other weights need another OUTPUT_DIR."
        elif key.startswith(SCHEDULE) and not restart_schedule:
            kept[key] = then
            text += "and goes on with that. --restart-schedule takes the new one."
        else:
            text += "and goes on with the new one."
        if comm.is_main_process():
            log.warning(text)
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in kept.items():
        cfg.merge_from_list([key, value])
    cfg.freeze()
    return cfg


def _changes(now: dict, before: dict) -> dict[str, tuple]:
    """Keys that decide a run's numbers and differ."""
    return {
        key: (value, before.get(key))
        for key, value in now.items()
        if value != before.get(key) and not key.startswith(_FREE)
    }


def _has_result(cfg: CfgNode) -> bool:
    """Whether `OUTPUT_DIR` holds the result of this very run."""
    try:
        with open(os.path.join(cfg.OUTPUT_DIR, RESULT), encoding="utf-8") as file:
            before = json.load(file)["settings"]
        return not _changes(flatten(_plain(cfg), "."), flatten(before, "."))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def write_result(
    cfg: CfgNode,
    metrics: dict,
    weights_sha256: str | None,
    seconds: float,
    name: str,
    best: dict | None = None,
) -> None:
    """Write a result file into `OUTPUT_DIR`.

    Args:
        metrics: what Detectron2's `test` gives: `{task: {metric: percent}}`, below the data set's
            name where there is more than one.
        weights_sha256: digest of the file that was started from, or evaluated.
        best: the best evaluation by `TEST.BEST`, which stands beside the last one.
    """
    if len(cfg.DATASETS.TEST) == 1:
        metrics = {cfg.DATASETS.TEST[0]: metrics}
    if best:
        metrics = metrics | {"best": best}
    results.write(
        os.path.join(cfg.OUTPUT_DIR, name),
        kind="detection",
        metrics=metrics,
        settings=_plain(cfg),
        weights_sha256=weights_sha256,
        data={name: fingerprint(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)},
        seed=cfg.SEED,
        seconds=seconds,
    )
    logging.getLogger("detectron2").info("-> %s", os.path.join(cfg.OUTPUT_DIR, name))


def _plain(node: Any) -> Any:
    """A CfgNode as plain dictionaries and lists."""
    if isinstance(node, CfgNode):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(v) for v in node] if isinstance(node, (list, tuple)) else node
