"""Detectron2's `DefaultTrainer` with strict loading, exact resuming and a result file."""

import hashlib
import json
import logging
import os
import time

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from robust_backbones import results
from robust_backbones.detection.checkpointer import StrictCheckpointer
from robust_backbones.detection.compat import silence_detectron2
from robust_backbones.detection.evaluation import build_evaluator
from robust_backbones.detection.loader import build_train_loader, seed_from
from robust_backbones.errors import UserError
from robust_backbones.files import sha256


class Trainer(DefaultTrainer):
    """Train a detector on a robust backbone.

    What differs from `DefaultTrainer`: the backbone must come from the weights; every step's
    randomness is a function of (seed, iteration, rank) and the data stream continues where it was,
    so on the CPU a resumed run ends with the very weights of an uninterrupted one.
    """

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

    def run_step(self) -> None:
        """One step, its sampling of anchors and RoIs seeded by where it stands in the run."""
        torch.manual_seed(seed_from(self.cfg.SEED, self.iter, comm.get_rank()))
        super().run_step()

    def train(self):
        """Train to the end; then write `result.json`. Returns the last evaluation."""
        started = time.time()
        outcome = super().train()
        if comm.is_main_process() and self.cfg.DATASETS.TEST:
            write_result(self.cfg, self._last_eval_results, time.time() - started)
        return outcome

    def state_dict(self) -> dict:
        """Iteration, hooks and optimizer (which the 0.6 release forgets)."""
        return super().state_dict() | {"_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

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
            raise UserError(
                f"the model that the config describes cannot be built: {text}"
            ) from error

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """See `loader.build_train_loader`."""
        return build_train_loader(cfg)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str):
        """See `evaluation.build_evaluator`."""
        return build_evaluator(cfg, dataset_name)


def evaluate(cfg: CfgNode, resume: bool = False) -> dict:
    """Evaluate `MODEL.WEIGHTS`, or the last checkpoint of `OUTPUT_DIR` if `resume`.

    Raises:
        UserError: any tensor of the model did not come from the file.
    """
    model = Trainer.build_model(cfg)
    checkpointer = StrictCheckpointer(model, cfg.OUTPUT_DIR)
    last = resume and checkpointer.has_checkpoint()
    checkpointer.load(checkpointer.get_checkpoint_file() if last else cfg.MODEL.WEIGHTS)
    return Trainer.test(cfg, model)


def write_result(cfg: CfgNode, metrics: dict, seconds: float, name: str = "result.json") -> None:
    """Write the run's result file into `OUTPUT_DIR`.

    Args:
        metrics: what Detectron2's `test` gives: `{task: {metric: percent}}`, below the data set's
            name where there is more than one.
    """
    weights = cfg.MODEL.WEIGHTS
    if len(cfg.DATASETS.TEST) == 1:
        metrics = {cfg.DATASETS.TEST[0]: metrics}
    results.write(
        os.path.join(cfg.OUTPUT_DIR, name),
        kind="detection",
        metrics=metrics,
        settings=_plain(cfg),
        weights_sha256=sha256(PathManager.get_local_path(weights)) if weights else None,
        data={name: fingerprint(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)},
        seed=cfg.SEED,
        seconds=seconds,
    )


def fingerprint(name: str) -> dict:
    """Images and annotations of a registered data set, as a count and a digest."""
    dicts = DatasetCatalog.get(name)
    rows = [[os.path.basename(d["file_name"]), d.get("annotations", [])] for d in dicts]
    text = json.dumps(rows, sort_keys=True, default=str)
    return {"images": len(dicts), "fingerprint": hashlib.sha256(text.encode()).hexdigest()}


def _plain(node):
    """A CfgNode as plain dictionaries and lists."""
    if isinstance(node, CfgNode):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(v) for v in node] if isinstance(node, (list, tuple)) else node


# Keys that may differ between a run and its continuation without a word.
_FREE = ("OUTPUT_DIR", "TEST", "DATASETS.TEST", "DATALOADER.NUM_WORKERS", "MODEL.DEVICE",
         "SOLVER.CHECKPOINT_PERIOD")  # fmt: skip


def _check_folder(cfg: CfgNode, resume: bool) -> None:
    """Refuse to write over a run, and say with which other settings one is continued."""
    if not os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        return
    if not resume:
        raise UserError(
            f"{cfg.OUTPUT_DIR} holds a run already; pass --resume to go on with it, or choose "
            "another OUTPUT_DIR."
        )
    path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if comm.is_main_process() and os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            before = _flat(yaml.safe_load(file))
        now = _flat(yaml.safe_load(cfg.dump()))
        changed = [key for key in now if now[key] != before.get(key) and not key.startswith(_FREE)]
        for key in changed:
            logging.getLogger("detectron2").warning(
                "resuming with %s %s; the run began with %s", key, now[key], before.get(key)
            )


def _flat(node: dict, prefix: str = "") -> dict:
    """Nested keys as `A.B.C`."""
    flat = {}
    for key, value in node.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat


def run(cfg: CfgNode, args) -> None:
    """One process's part of `tools/train_net.py`: train, or evaluate if `args.eval_only`.

    Raises:
        UserError: the weights do not fit; see `StrictCheckpointer.load`.
    """
    silence_detectron2()
    if not args.eval_only:
        _check_folder(cfg, args.resume)
    default_setup(cfg, args)
    if args.eval_only:
        started = time.time()
        metrics = evaluate(cfg, resume=args.resume)
        if comm.is_main_process():
            write_result(cfg, metrics, time.time() - started, "eval_result.json")
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    done = trainer.start_iter >= trainer.max_iter
    if done and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "result.json")):
        logging.getLogger("detectron2").info("%s is finished already.", cfg.OUTPUT_DIR)
        return
    trainer.train()
