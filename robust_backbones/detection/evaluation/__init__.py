"""Which evaluator scores which data set."""

import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from robust_backbones.core.errors import UserError
from robust_backbones.detection.evaluation import coco as coco_evaluation
from robust_backbones.detection.evaluation import voc as voc_evaluation


def _coco(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    keys = {"segm": cfg.MODEL.MASK_ON, "keypoints": cfg.MODEL.KEYPOINT_ON}
    expected = ["bbox", *(task for task, on in keys.items() if on)]
    sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
    return coco_evaluation.CocoEvaluator(name, folder, expected, sigmas=sigmas)


def _voc(_cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return voc_evaluation.VocEvaluator(name, folder)


# By `evaluator_type` of the data set's metadata.
EVALUATORS = {"coco": _coco, "pascal_voc": _voc}


def build_evaluator(cfg: CfgNode, name: str, folder: str | None = None) -> DatasetEvaluator:
    """The evaluator of a registered data set; predictions go to `folder`.

    Raises:
        UserError: the data set's `evaluator_type` has no evaluator here.
    """
    folder = folder or os.path.join(cfg.OUTPUT_DIR, "inference", name)
    return EVALUATORS[kind_of(name)](cfg, name, folder)


def kind_of(name: str) -> str:
    """A registered data set's `evaluator_type`, a key of `EVALUATORS`.

    Raises:
        UserError: it has another, or none.
    """
    DatasetCatalog.get(name)  # fills in the metadata that evaluators need
    kind = MetadataCatalog.get(name).get("evaluator_type")
    if kind not in EVALUATORS:
        raise UserError(
            f"data set '{name}' has evaluator_type '{kind}'; one of: {', '.join(EVALUATORS)}. "
            "Set it on MetadataCatalog.get(name)."
        )
    return kind
