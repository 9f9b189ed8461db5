"""A small network for semantic segmentation, and its configuration."""

from pathlib import Path

import torch

from robust_backbones.detection import config
from robust_backbones.detection.training import trainer
from tests.support import ROOT

# isort: split
from detectron2.data import DatasetCatalog, detection_utils

from robust_backbones.detection.data.mapper import ImageMapper

DIGITS = ROOT / "configs/digits_semantic_fpn_robust.yaml"
SCENES = "digit_scenes_semantic_val"
TINY = {
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "4",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "SOLVER.STEPS": "()",
    "MODEL.FPN.OUT_CHANNELS": "16",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": "32",  # GroupNorm has 32 groups
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": "64",
    "INPUT.RANDOM_FLIP": "horizontal",  # augmentation, so that its randomness is tested too
}


def overrides(**more: str) -> list[str]:
    """`KEY VALUE` pairs of a tiny network; `more` has `__` in place of each dot."""
    changes = {key.replace("__", "."): str(value) for key, value in more.items()}
    return [part for pair in (TINY | changes).items() for part in pair]


def tiny_config(**more: str):
    return config.load_config(DIGITS, overrides(**more))


def tiny_segmenter(cfg):
    """The configured network with random weights, and a last layer that tells classes apart."""
    torch.manual_seed(0)
    model = trainer.Trainer.build_model(cfg)
    torch.nn.init.normal_(model.sem_seg_head.predictor.weight, std=0.5)
    return model


def tiny_file(path: Path, cfg) -> Path:
    """A checkpoint of such a network."""
    torch.save({"model": tiny_segmenter(cfg).state_dict()}, path)
    return path


def batch(cfg, numbers=(0, 1)) -> list[dict]:
    """Validation scenes with their masks, as the evaluation resizes them."""
    resize = detection_utils.build_augmentation(cfg, is_train=False)
    mapper = ImageMapper(cfg, is_train=True, augmentations=resize)
    return [mapper(DatasetCatalog.get(SCENES)[number]) for number in numbers]
