"""Choose the evaluator of a dataset."""

import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from robust_backbones.core.errors import UserError
from robust_backbones.detection.evaluation.coco import CocoEvaluator
from robust_backbones.detection.evaluation.coco_scores import LIMITS
from robust_backbones.detection.evaluation.semantic import SemanticEvaluator
from robust_backbones.detection.evaluation.voc import VocEvaluator


def _coco(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    keys = {"segm": cfg.MODEL.MASK_ON, "keypoints": cfg.MODEL.KEYPOINT_ON}
    expected = ["bbox", *(task for task, on in keys.items() if on)]
    sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
    return CocoEvaluator(name, folder, expected, sigmas=sigmas, limit=_limit(cfg))


def _voc(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return VocEvaluator(name, folder, limit=_limit(cfg))


def _semantic(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return SemanticEvaluator(name)


def _limit(cfg: CfgNode) -> int | None:
    """Return the number of scored detections per image and class; None for COCO's 100.

    If the detector returns more than 100 detections per image, all of them are scored.
    """
    most = cfg.TEST.DETECTIONS_PER_IMAGE
    return most if most > LIMITS["bbox"][-1] else None


# Functions that create an evaluator, by `evaluator_type` of the dataset's metadata.
EVALUATORS = {"coco": _coco, "pascal_voc": _voc, "sem_seg": _semantic}


def build_evaluator(cfg: CfgNode, name: str, folder: str | None = None) -> DatasetEvaluator:
    """Create the evaluator of a registered dataset.

    Args:
        cfg: configuration of the detector.
        name: name of the dataset.
        folder: folder for the predictions; None for `OUTPUT_DIR/inference/<name>`.

    Raises:
        UserError: there is no evaluator for the dataset's `evaluator_type`.
    """
    folder = folder or os.path.join(cfg.OUTPUT_DIR, "inference", name)
    return EVALUATORS[evaluator_type(name)](cfg, name, folder)


def evaluator_type(name: str) -> str:
    """Return a registered dataset's `evaluator_type`, a key of `EVALUATORS`.

    Raises:
        UserError: `evaluator_type` is missing, or it is not a key of `EVALUATORS`.
    """
    DatasetCatalog.get(name)  # loading the data adds metadata that evaluators need
    kind = MetadataCatalog.get(name).get("evaluator_type")
    if kind not in EVALUATORS:
        raise UserError(
            f"dataset '{name}': evaluator_type is '{kind}'. Set it with MetadataCatalog.get(name) "
            f"to one of {', '.join(EVALUATORS)}."
        )
    return kind
