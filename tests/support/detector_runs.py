"""Training runs of a tiny detector through the command."""

import os
import subprocess
import sys

from robust_backbones.detection import config
from tests.support import ROOT

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


def command(*args) -> subprocess.Popen:
    call = [sys.executable, str(ROOT / "tools/train_net.py"), "--config", str(DIGITS), *args]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process) -> tuple[int, str]:
    _, error = process.communicate(timeout=300)
    return process.returncode, error


def small(folder, weights, **more):
    return config.load_config(DIGITS, overrides(folder, weights, **more))
