"""Small detectors with random weights for the tests of attacks and corruptions."""

from pathlib import Path

import torch

import robust_backbones.detection  # noqa: F401  (before Detectron2, which it makes run)
from tests.support import ROOT

# isort: split
from detectron2.data import DatasetCatalog, DatasetMapper, detection_utils

from robust_backbones.detection import config
from robust_backbones.detection.training import trainer

DIGITS = ROOT / "configs/digits_mask_rcnn_robust.yaml"
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.FPN.OUT_CHANNELS": "16",
    "MODEL.RPN.CONV_DIMS": "[16]",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "16",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "8",
    "TEST.DETECTIONS_PER_IMAGE": "8",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",  # untrained detectors are to detect, too
}
RETINANET = {
    "MODEL.META_ARCHITECTURE": "RetinaNet",
    "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH": "18",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "64",
    "MODEL.RESNETS.OUT_FEATURES": "['res3', 'res4', 'res5']",
    "MODEL.FPN.IN_FEATURES": "['res3', 'res4', 'res5']",
    "MODEL.RETINANET.NUM_CLASSES": "10",
    "MODEL.RETINANET.NUM_CONVS": "1",
    "MODEL.MASK_ON": "False",
}


def overrides(**more) -> list[str]:
    """`KEY VALUE` pairs of a tiny detector; `more` in place of or besides `TINY`."""
    return [part for pair in (TINY | {"MODEL.WEIGHTS": ""} | more).items() for part in pair]


def tiny_config(**more):
    return config.load_config(DIGITS, overrides(**more))


def tiny_detector(cfg):
    """The configured detector with random weights whose BatchNorm and scores do something."""
    torch.manual_seed(0)
    model = trainer.Trainer.build_model(cfg)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(std=0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    return model


def tiny_file(path, cfg) -> Path:
    """A checkpoint of such a detector."""
    torch.save({"model": tiny_detector(cfg).state_dict()}, path)
    return path


def batch(cfg, numbers=(0, 1), sizes=None) -> list[dict]:
    """Validation scenes with their truth, as a test would resize them.

    Args:
        sizes: shorter side of each, pixels; None: as configured.
    """
    dicts = DatasetCatalog.get("digit_scenes_val")
    found = []
    for i, number in enumerate(numbers):
        own = cfg.clone()
        own.defrost()
        own.INPUT.MIN_SIZE_TEST = sizes[i] if sizes else cfg.INPUT.MIN_SIZE_TEST
        resize = detection_utils.build_augmentation(own, is_train=False)
        mapper = DatasetMapper(own, is_train=True, augmentations=resize)
        found.append(mapper(dicts[number]))
    return found
