"""pycocotools' own evaluation, the independent reference."""

import contextlib
import copy
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NUMBERS = "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split()


EXACT = dict(rtol=0, atol=1e-10)  # ours are the same sums of the same numbers


def official(contents, rows, task, image_ids=None, **params):
    """pycocotools' evaluation; as Detectron2 does, masks are scored without the boxes."""
    contents, rows = copy.deepcopy((contents, rows))
    for row in rows if task == "segm" else ():
        row.pop("bbox", None)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = contents
        truth.createIndex()
        engine = COCOeval(truth, truth.loadRes(rows), task)
        for key, value in params.items():
            setattr(engine.params, key, value)
        if image_ids is not None:
            engine.params.imgIds = image_ids
        engine.evaluate()
        engine.accumulate()
        if "areaRng" not in params:
            engine.summarize()
    return engine


def percent(values):
    """Of pycocotools' numbers, whose -1 is our NaN."""
    values = np.asarray(values)
    return np.where(values < 0, np.nan, 100 * values)
