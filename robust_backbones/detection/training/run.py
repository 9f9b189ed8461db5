"""Train or evaluate a detector in one process, and write the result file."""

import contextlib
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from robust_backbones import arithmetic
from robust_backbones.core import results, run_log
from robust_backbones.core.detector_keys import CANDIDATES, CONTINUATION
from robust_backbones.core.detector_tasks import TASKS
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic, claimed
from robust_backbones.core.precision import DEFAULT
from robust_backbones.core.results import flatten
from robust_backbones.detection.checkpointer import StrictCheckpointer
from robust_backbones.detection.compat import silence_detectron2
from robust_backbones.detection.data import subset
from robust_backbones.detection.data.custom import register_custom
from robust_backbones.detection.data.mapper import SEGMENTOR
from robust_backbones.detection.data.registry import classes_of, fingerprint
from robust_backbones.detection.training.step import Diverged, evaluation_note, precision_of
from robust_backbones.detection.training.trainer import Trainer

RESULT, CONFIG = "result.json", "config.yaml"
DIVERGED = "diverged"  # `check` of the warning in the result of a candidate that diverged
# Prefixes of the keys that determine the last iteration, and the learning rate, momentum and weight
# decay at each iteration.
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


@dataclass(frozen=True)
class Mode:
    """Options that choose between training and evaluation, and between a new and a resumed run.

    Attributes:
        resume: whether to resume from the last checkpoint, if it exists.
        restart_schedule: whether a resumed run uses the schedule of the config. If false, it uses
            the schedule of the interrupted run.
        eval_only: whether to evaluate without training.
    """

    resume: bool = False
    restart_schedule: bool = False
    eval_only: bool = False


def run(cfg: CfgNode, mode: Mode) -> None:
    """Train a detector, or evaluate one if `mode.eval_only` is true.

    Args:
        cfg: configuration.
        mode: whether to train or evaluate, and whether to resume.

    Raises:
        UserError: the weights do not match the model, the output folder contains another run or is
            in use, or training diverged.
        Stopped: the process received a signal. The run is saved.
    """
    silence_detectron2()
    arithmetic.set_tf32(False)
    register_custom(cfg)  # spawned processes start without registered datasets
    with contextlib.ExitStack() as stack:
        if comm.is_main_process() and not mode.eval_only:
            stack.enter_context(claimed(cfg.OUTPUT_DIR))
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        if comm.is_main_process():
            stack.enter_context(run_log.log_to(Path(cfg.OUTPUT_DIR)))
        if mode.eval_only:
            _setup(cfg, mode)
            evaluate(cfg, mode.resume)
            return
        cfg, notes = continued(cfg, mode.resume, mode.restart_schedule)
        _setup(cfg, mode)
        for note in notes:  # in log.txt as well
            logging.getLogger("detectron2").warning(note)
        train(cfg, mode.resume, mode.restart_schedule)


def _setup(cfg: CfgNode, mode: Mode) -> None:
    """Set up logging and seeds, and write `config.yaml`, as Detectron2's `default_setup` does.

    `config.yaml` is written atomically, because a resumed run is compared with this file. An
    interrupted write would leave only half of it. An evaluation does not replace the file of a
    training run.
    """
    for name in ("fvcore", "detectron2"):
        log = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
        for handler in log.handlers:
            # Detectron2's handler of log.txt, and of log.txt.rank1, is not a FileHandler.
            if run_log.LOG not in str(getattr(handler.stream, "name", "")):
                handler.filters = [_is_for_console]
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # missing CUDA on a CPU
    run_log.note(f"Processes: {comm.get_world_size()}. Environment:\n{collect_env_info()}")
    run_log.note(f"{mode}\nRunning with full config:\n{cfg.dump()}")
    path = os.path.join(cfg.OUTPUT_DIR, CONFIG)
    if comm.is_main_process() and not (mode.eval_only and os.path.exists(path)):
        with atomic(path) as temporary:
            temporary.write_text(cfg.dump(), encoding="utf-8")
    seed_all_rng(cfg.SEED + comm.get_rank())
    if not mode.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


# Loggers whose messages are shown on the console, also if they are not warnings: results, the first
# iteration, progress of training and of evaluation. `log.txt` has the messages of all loggers.
_CONSOLE = (
    "detectron2",
    "detectron2.engine.train_loop",
    "detectron2.utils.events",
    "detectron2.evaluation.evaluator",
)


def _is_for_console(record: logging.LogRecord) -> bool:
    """Return whether a message is shown on the console.

    Detectron2 warns about each tensor that is not in the weights or has a different shape. Strict
    loading reports the errors among them.
    """
    if record.name.startswith(("fvcore", "detectron2.checkpoint")):
        return record.levelno >= logging.ERROR
    return record.levelno >= logging.WARNING or record.name in _CONSOLE


def _introduce(cfg: CfgNode, images: int | None = None) -> None:
    """Print the start of a run, in process 0.

    Args:
        cfg: configuration.
        images: number of training images; None for an evaluation.
    """
    if not comm.is_main_process():
        return
    network = f"{cfg.MODEL.META_ARCHITECTURE}, {cfg.MODEL.ROBUST.ARCH or cfg.MODEL.BACKBONE.NAME}"
    tests = ", ".join(cfg.DATASETS.TEST) or "no test data"
    gpus = comm.get_world_size()
    device = f"{gpus} x {torch.cuda.get_device_name()}" if cfg.MODEL.DEVICE != "cpu" else "cpu"
    rows = {"evaluation": network, "data": tests}
    if images is not None:
        solver = cfg.SOLVER
        rows = {
            "training": f"{network}, {solver.MAX_ITER} iterations, batch size "
            f"{solver.IMS_PER_BATCH}, learning rate {solver.BASE_LR:g}",
            "data": f"{', '.join(cfg.DATASETS.TRAIN)} ({images} images); {tests}",
        }
    run_log.introduce(
        rows
        | {
            "weights": cfg.MODEL.WEIGHTS or "random",
            "device": device,
            "precision": precision_of(cfg),
            "output": cfg.OUTPUT_DIR,
            "log": os.path.join(cfg.OUTPUT_DIR, run_log.LOG),
        }
    )


def train(cfg: CfgNode, resume: bool, restart_schedule: bool = False) -> None:
    """Train until `SOLVER.MAX_ITER` and write `result.json`. Skip a finished run.

    Args:
        cfg: configuration.
        resume: whether to resume from the last checkpoint, if it exists.
        restart_schedule: whether a resumed run uses the schedule of `cfg`.

    If `DATASETS.HELD_OUT` is set, the run is a candidate for `--choose-lr`. A candidate that
    diverges is a result, with an unknown AP and a warning.

    Raises:
        UserError, Stopped: see `Trainer`.
    """
    trainer = Trainer(subset.hold_out(cfg))
    _introduce(trainer.cfg, images=trainer.data_loader.images)
    trainer.resume_or_load(resume, restart_schedule)
    if trainer.start_iter >= trainer.max_iter and _has_result(trainer.cfg):
        logging.getLogger("detectron2").info(
            "%s already contains this run, and it is finished. Nothing to do.", cfg.OUTPUT_DIR
        )
        return
    try:
        trainer.train()
    except Diverged as error:
        if not cfg.DATASETS.HELD_OUT:
            raise
        logging.getLogger("detectron2").warning("%s This candidate counts as the worst.", error)
        _write_diverged(trainer, str(error))
        if comm.get_world_size() > 1:
            raise  # so that the other processes, which wait for this one, are stopped
        return
    if comm.is_main_process() and trainer.cfg.DATASETS.TEST:
        write_result(
            trainer.cfg,
            trainer.metrics,
            trainer.weights_sha256,
            trainer.seconds,
            RESULT,
            best=trainer.best,
        )


def _write_diverged(trainer: Trainer, message: str) -> None:
    """Write a result with an unknown AP. In contrast to `train`, any process may write it."""
    task = "sem_seg" if trainer.cfg.MODEL.META_ARCHITECTURE == SEGMENTOR else "bbox"
    unknown: dict = {name: {task: {TASKS[task].main: None}} for name in trainer.cfg.DATASETS.TEST}
    write_result(
        trainer.cfg,
        unknown if len(unknown) > 1 else next(iter(unknown.values())),
        trainer.weights_sha256,
        trainer.seconds,
        RESULT,
        warnings=[{"check": DIVERGED, "message": message}],
    )


def has_diverged(folder: str | Path) -> bool:
    """Return whether a folder contains the result of a candidate that diverged."""
    try:
        warnings = json.loads(Path(folder, RESULT).read_text(encoding="utf-8"))["warnings"]
        return any(warning["check"] == DIVERGED for warning in warnings)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def evaluate(cfg: CfgNode, resume: bool) -> None:
    """Evaluate a detector on `DATASETS.TEST` and write `eval_result.json`.

    Args:
        cfg: configuration.
        resume: whether to evaluate the last checkpoint in `OUTPUT_DIR`, if it exists. Otherwise,
            `MODEL.WEIGHTS` is evaluated.

    Raises:
        UserError: the weights or the dataset are missing, or the file lacks tensors of the model.
    """
    started = time.perf_counter()
    _introduce(cfg)
    model = Trainer.build_model(cfg)
    checkpointer = StrictCheckpointer(model, cfg.OUTPUT_DIR)
    last = resume and checkpointer.has_checkpoint()
    path = checkpointer.get_checkpoint_file() if last else cfg.MODEL.WEIGHTS
    if not path or not cfg.DATASETS.TEST:
        key = "DATASETS.TEST" if path else "MODEL.WEIGHTS"
        raise UserError(f"--eval-only: {key} is empty. Set it.")
    checkpointer.use_input(cfg)
    checkpointer.classes = classes_of(cfg.DATASETS.TEST)
    checkpointer.load(path)
    if note := evaluation_note(cfg):
        logging.getLogger("detectron2").info(note)
    metrics = Trainer.test(cfg, model)
    if comm.is_main_process():
        seconds = time.perf_counter() - started
        write_result(cfg, metrics, checkpointer.sha256, seconds, "eval_result.json", trained=False)


def continued(cfg: CfgNode, resume: bool, restart_schedule: bool) -> tuple[CfgNode, list[str]]:
    """Return the configuration of a new or resumed run in `OUTPUT_DIR`, and notes on differences.

    By default, a resumed run keeps its schedule and its initial weights. Its result is then the
    same as without the interruption.

    Args:
        cfg: new configuration.
        resume: whether to resume the run in `OUTPUT_DIR`, if there is one.
        restart_schedule: whether the resumed run uses the schedule of `cfg`.

    Raises:
        UserError: `OUTPUT_DIR` contains a run, but `resume` is false, or the run has another
            precision.
    """
    if not os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        return cfg, []
    if not resume:
        raise UserError(
            f"{cfg.OUTPUT_DIR} contains a run already. Use --resume to continue it, or choose "
            "another OUTPUT_DIR."
        )
    path = os.path.join(cfg.OUTPUT_DIR, CONFIG)
    if not os.path.isfile(path):
        return cfg, []
    with open(path, encoding="utf-8") as file:
        saved = yaml.safe_load(file)
    before = flatten(saved)
    if "SOLVER.PRECISION" in before and (kind := precision_of(CfgNode(saved))) != precision_of(cfg):
        raise UserError(
            f"the run in {cfg.OUTPUT_DIR} trains in {kind}, not in {precision_of(cfg)}. Set "
            f"SOLVER.PRECISION {kind}, or choose another OUTPUT_DIR."
        )
    kept, notes = {}, []
    for key, (now, then) in _changes(flatten(yaml.safe_load(cfg.dump())), before).items():
        text = f"{key} is {now}, but the run started with {then}. "
        if key == "MODEL.WEIGHTS":
            kept[key] = then
            text += "It continues from its own weights. For others, use another OUTPUT_DIR."
        elif key.startswith(CANDIDATES) and not restart_schedule:
            kept[key] = then
            continue  # it follows SOLVER.BASE_LR
        elif key.startswith(SCHEDULE) and not restart_schedule:
            kept[key] = then
            text += "It continues with the old value. For the new one, use --restart-schedule."
        else:
            text += "It continues with the new value."
        notes.append(text)
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in kept.items():
        cfg.merge_from_list([key, value])
    cfg.freeze()
    return cfg, notes


def _changes(now: dict, before: dict) -> dict[str, tuple]:
    """Return the settings that differ and affect the results of a run, `{key: (now, before)}`."""
    return {
        key: (value, before.get(key))
        for key, value in now.items()
        if value != before.get(key) and not key.startswith(CONTINUATION)
    }


def _has_result(cfg: CfgNode) -> bool:
    """Return whether `OUTPUT_DIR` contains the result of a run with this configuration."""
    try:
        with open(os.path.join(cfg.OUTPUT_DIR, RESULT), encoding="utf-8") as file:
            before = json.load(file)["settings"]
        return not _changes(flatten(_plain(cfg)), flatten(before))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def write_result(
    cfg: CfgNode,
    metrics: dict,
    weights_sha256: str | None,
    seconds: float,
    name: str,
    best: dict | None = None,
    trained: bool = True,
    warnings: list[dict] | None = None,
) -> None:
    """Write a result file into `OUTPUT_DIR`.

    Args:
        cfg: configuration.
        metrics: output of Detectron2's `test`. For one test dataset, it is `{task: {metric:
            percent}}`. For several, it is `{dataset: {task: {metric: percent}}}`.
        weights_sha256: SHA-256 digest of the weights that the run started from, or that were
            evaluated; None for random weights.
        seconds: wall time of the run in seconds.
        name: name of the result file.
        best: best evaluation by the metric `TEST.BEST`; None if no best model was saved.
        trained: whether this run used `DATASETS.TRAIN`. An evaluation records its test data only.
            The data in `DATASETS.TRAIN` may be absent, and the weights may come from others.
        warnings: reasons to doubt the metrics; see `results.write`.
    """
    if len(cfg.DATASETS.TEST) == 1:
        metrics = {cfg.DATASETS.TEST[0]: metrics}
    if best:
        metrics = metrics | {"best": best}
    used = (*(cfg.DATASETS.TRAIN if trained else ()), *cfg.DATASETS.TEST)
    results.write(
        os.path.join(cfg.OUTPUT_DIR, name),
        kind="detection",
        metrics=metrics,
        settings=_plain(cfg),
        weights_sha256=weights_sha256,
        data={name: fingerprint(name) for name in used},
        seed=cfg.SEED,
        seconds=seconds,
        device=cfg.MODEL.DEVICE,
        precision=precision_of(cfg) if trained else DEFAULT,
        processes=comm.get_world_size(),
        warnings=warnings,
    )
    logging.getLogger("detectron2").info("-> %s", os.path.join(cfg.OUTPUT_DIR, name))


def _plain(node: Any) -> Any:
    """Convert a CfgNode to plain dictionaries and lists."""
    if isinstance(node, CfgNode):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(v) for v in node] if isinstance(node, (list, tuple)) else node
