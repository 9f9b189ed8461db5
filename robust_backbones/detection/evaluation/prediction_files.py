"""Saved predictions, the `coco_instances_results.json` of an evaluation, image by image."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data import coco_files


def read(path: str | Path, dataset: str) -> dict[int | str, list[dict]]:
    """The rows of a prediction file for each image of a registered data set.

    `category_id` is made the number of the class in the data set, from 0.

    Returns:
        `{image_id: rows}`, best score first; images without predictions are missing.

    Raises:
        UserError: not there, not of this format, or of another data set: images or classes that it
            does not have.
    """
    rows = coco_files.load_json(path)
    images = {item["image_id"]: item for item in DatasetCatalog.get(dataset)}
    meta = MetadataCatalog.get(dataset)
    names = meta.get("thing_classes", ())
    numbers = meta.get("thing_dataset_id_to_contiguous_id") or dict(enumerate(range(len(names))))
    known = {key: names[number] for key, number in numbers.items()}
    truth = coco_files.Truth(dataset, images, known, [])
    tasks = {"bbox", *coco_files.tasks_of(rows, truth)} - {"keypoints"}
    coco_files.check_predictions(rows, truth, tasks, str(path))
    found = defaultdict(list)
    for row in sorted(rows, key=lambda row: -row["score"]):
        found[row["image_id"]].append(row | {"category_id": numbers[row["category_id"]]})
    return dict(found)


def instances(
    rows: list[dict], height: int, width: int, source: str = "the predictions"
) -> Instances:
    """Rows of one image, as `read` gives them, in the form of a detector's output on the CPU.

    Args:
        source: what an error calls them.

    Raises:
        UserError: run lengths that do not fill the image.
    """
    boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    found = Instances(
        (height, width),
        pred_boxes=Boxes(torch.from_numpy(boxes)),
        scores=torch.tensor([float(row["score"]) for row in rows]),
        pred_classes=torch.tensor([row["category_id"] for row in rows], dtype=torch.int64),
    )
    if rows and all("segmentation" in row for row in rows):
        try:
            masks = [_mask(row["segmentation"], height, width) for row in rows]
        except ValueError as error:  # only decoding tells
            raise UserError(f"{source}, image {rows[0]['image_id']}: {error}.") from None
        found.pred_masks = torch.from_numpy(np.stack(masks))
    return found


def _mask(segmentation: dict | list, height: int, width: int) -> np.ndarray:
    """`(height, width)` bool of run lengths or polygons."""
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(segmentation)
    return coco_mask.decode(segmentation).astype(bool)
