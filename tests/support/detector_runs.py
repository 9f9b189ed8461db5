"""Training runs of a tiny detector through the command."""

from pathlib import Path

import torch

from robust_backbones.detection import config
from robust_backbones.detection.training import trainer
from tests.support import ROOT, processes

# isort: split
from detectron2.utils.events import get_event_storage

DIGITS = ROOT / "configs/digits_mask_rcnn_robust.yaml"


TINY = {
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "6",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "MODEL.FPN.OUT_CHANNELS": "16",
    "MODEL.RPN.CONV_DIMS": "[16]",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "16",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "5",
    "TEST.DETECTIONS_PER_IMAGE": "5",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",  # untrained detectors are to detect, too
    "MODEL.DEVICE": "cpu",
    "INPUT.RANDOM_FLIP": "horizontal",  # augmentation, so that its randomness is tested too
}


def overrides(folder, weights, **more) -> list[str]:
    settings = TINY | {"OUTPUT_DIR": str(folder), "MODEL.WEIGHTS": str(weights)} | more
    return [part for pair in settings.items() for part in pair]


def one_thread() -> None:
    torch.set_num_threads(1)


def start(log: Path, *args) -> list:
    """Start `train_net` in its own process, with one thread; see `processes.start`."""
    words = ["--config", DIGITS, *args]
    return processes.start(log, 1, "robust_backbones.commands.train", *words, prepare=one_thread)


def train_net(log: Path, *args) -> None:
    """Run `train_net` in its own process. It must succeed."""
    (done,) = processes.finish(log, start(log, *args))
    assert done.code == 0, done


def small(folder, weights, **more):
    return config.load_config(DIGITS, overrides(folder, weights, **more))


def ready_trainer(folder, weights, resume=False, restart=False, **more) -> trainer.Trainer:
    """A trainer before its first iteration, inside an event storage.

    Args:
        more: keys of the config, with `__` in place of each dot.
    """
    keys = {"SOLVER.CHECKPOINT_PERIOD": "100", "DATASETS.TEST": "()"} | {
        key.replace("__", "."): value for key, value in more.items()
    }
    torch.manual_seed(0)  # the same new heads each time
    found = trainer.Trainer(small(folder, weights, **keys))
    found.resume_or_load(resume, restart)
    found.iter, found.storage = found.start_iter, get_event_storage()
    return found
