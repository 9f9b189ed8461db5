"""Model outputs made from a data set's own annotations: moved boxes and masks, wrong classes."""

import robust_backbones.detection  # isort: skip  # noqa: F401  (before Detectron2)
import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as coco_mask


def outputs(dicts, classes, masks=False, seed=0, decimals=None):
    """`(inputs, outputs)` of a model that finds each object twice, more or less.

    Args:
        dicts: of a registered data set.
        classes: number of them.
        decimals: `(of scores, of boxes)`, rounded; None for neither. Scores all differ.
    """
    rng = np.random.default_rng(seed)
    total = 2 * sum(len(item["annotations"]) for item in dicts)
    scores = iter(rng.permutation(total) / total * 0.9 + 0.05)
    inputs, found = [], []
    for item in dicts:
        size = (item["height"], item["width"])
        boxes, labels, pixels = [], [], []
        for row in 2 * item["annotations"]:
            box = np.array(BoxMode.convert(row["bbox"], row["bbox_mode"], BoxMode.XYXY_ABS))
            shift = rng.normal(0, 0.08, 4) * np.tile(box[2:] - box[:2], 2)
            boxes.append(box + shift)
            right = rng.random() < 0.85
            labels.append(row["category_id"] if right else int(rng.integers(classes)))
            if masks:
                whole = coco_mask.decode(row["segmentation"])
                pixels.append(np.roll(whole, tuple(shift[:2].astype(int)), (0, 1)))
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        values = np.array([next(scores) for _ in labels])
        if decimals:
            values, boxes = values.round(decimals[0]), boxes.round(decimals[1])
        instances = Instances(
            size,
            pred_boxes=Boxes(torch.as_tensor(boxes)),
            scores=torch.as_tensor(values),
            pred_classes=torch.as_tensor(labels, dtype=torch.int64),
        )
        if masks:
            empty = np.zeros((0, *size), np.uint8)
            instances.pred_masks = torch.as_tensor(np.array(pixels) if pixels else empty).bool()
        inputs.append({"image_id": item["image_id"], "file_name": item["file_name"]})
        found.append({"instances": instances})
    return inputs, found


def nothing(dicts, masks=False):
    """`(inputs, outputs)` of a model that finds nothing."""
    bare = [item | {"annotations": []} for item in dicts]
    return outputs(bare, 1, masks)


def evaluate(evaluator, inputs, found, **options):
    """An evaluator's answer."""
    evaluator.reset()
    evaluator.process(inputs, found)
    return evaluator.evaluate(**options)


def exact(dicts):
    """`(inputs, outputs)` of a model that finds each object once, exactly."""
    inputs, found = [], []
    for item in dicts:
        rows = item["annotations"]
        boxes = [BoxMode.convert(r["bbox"], r["bbox_mode"], BoxMode.XYXY_ABS) for r in rows]
        instances = Instances(
            (item["height"], item["width"]),
            pred_boxes=Boxes(torch.as_tensor(np.array(boxes, np.float32).reshape(-1, 4))),
            scores=torch.full((len(rows),), 0.9),
            pred_classes=torch.tensor([row["category_id"] for row in rows], dtype=torch.int64),
        )
        inputs.append({"image_id": item["image_id"], "file_name": item["file_name"]})
        found.append({"instances": instances})
    return inputs, found
