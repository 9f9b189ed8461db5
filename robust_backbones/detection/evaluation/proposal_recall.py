"""Recall of region proposals, as Detectron2 measures it."""

import contextlib
import io

from detectron2.evaluation.coco_evaluation import _evaluate_box_proposals
from pycocotools.coco import COCO

AREAS = {"": "all", "s": "small", "m": "medium", "l": "large"}


def score(proposals: list[dict], contents: dict) -> dict[str, float]:
    """Average recall of the first 100 and 1000 proposals an image.

    Args:
        proposals: `{"image_id", "proposals": Instances}` of each image.
        contents: of an annotation file in COCO's form.

    Returns:
        Percent: `AR@100`, `ARs@100`, ..., `ARl@1000`.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = contents
        truth.createIndex()
    return {
        f"AR{suffix}@{limit}": 100
        * _evaluate_box_proposals(proposals, truth, area=area, limit=limit)["ar"].item()
        for limit in (100, 1000)
        for suffix, area in AREAS.items()
    }
