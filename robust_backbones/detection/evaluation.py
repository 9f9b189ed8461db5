"""Which evaluator scores which data set."""

import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator

from robust_backbones.errors import UserError

# By `evaluator_type` of the data set's metadata.
EVALUATORS = {
    "coco": lambda name, folder: COCOEvaluator(name, output_dir=folder),
    "pascal_voc": lambda name, folder: PascalVOCDetectionEvaluator(name),
}


def build_evaluator(cfg: CfgNode, name: str, folder: str | None = None) -> DatasetEvaluator:
    """Detectron2's evaluator for a registered data set; predictions go to `folder`.

    Raises:
        UserError: the data set's `evaluator_type` has no evaluator here.
    """
    DatasetCatalog.get(name)  # fills in the metadata that evaluators need
    kind = MetadataCatalog.get(name).get("evaluator_type")
    if kind not in EVALUATORS:
        raise UserError(
            f"data set '{name}' has evaluator_type '{kind}'; one of: {', '.join(EVALUATORS)}. "
            "Set it on MetadataCatalog.get(name)."
        )
    return EVALUATORS[kind](name, folder or os.path.join(cfg.OUTPUT_DIR, "inference", name))
