"""Score saved predictions (`coco_instances_results.json`), or read them image by image."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask

from robust_backbones.core.errors import UserError
from robust_backbones.core.files import read_json, sha256
from robust_backbones.detection.data import validate
from robust_backbones.detection.data.catalog import from_catalog, scored_annotations
from robust_backbones.detection.data.coco_annotations import read_coco
from robust_backbones.detection.data.coco_predictions import check_predictions, tasks_of
from robust_backbones.detection.data.registry import check_dataset, fingerprint
from robust_backbones.detection.evaluation import evaluator_type, voc
from robust_backbones.detection.evaluation.coco import score_tasks
from robust_backbones.detection.evaluation.coco_scores import explain_nan


@dataclass(frozen=True)
class Scored:
    """Metrics of saved predictions.

    Attributes:
        name: name of the dataset, or name of the annotation file without its suffix.
        metrics: metrics of each task, `{task: {metric: percent}}`.
        data: numbers of images and detections, and fingerprints of the data and the predictions, as
            the result file records them.
    """

    name: str
    metrics: dict[str, dict]
    data: dict


def score_file(
    path: str | Path,
    annotations: str | Path | None = None,
    dataset: str | None = None,
    tasks: Sequence[str] = (),
    edges: Sequence[float] = (),
    limit: int | None = None,
) -> Scored:
    """Score a file of predictions in COCO's result format, which the evaluators write.

    Args:
        path: file of predictions.
        annotations: COCO annotation file; None if `dataset` is given.
        dataset: name of a registered COCO or VOC dataset; None if `annotations` is given.
        tasks: tasks to score, keys of `coco_predictions.TASKS`; empty for the tasks of the
            predictions. An empty list of predictions is scored for boxes, and for masks if the
            annotations have masks.
        edges, limit: size buckets and limit of detections; see `coco_scores.score`.

    Raises:
        UserError: a file or prediction is invalid, the dataset is unknown or not on disk, or no
            object can be detected, so that AP is undefined.
    """
    if (annotations is None) == (dataset is None):
        raise ValueError("give either annotations or dataset")
    rows = read_json(path)
    if dataset is None:
        kind, truth = "coco", read_coco(None, Path(annotations or ""))
        validate.warn_of_conversions(truth)
    else:
        kind, truth = _registered(dataset), scored_annotations(dataset)
    if dataset is not None and kind == "pascal_voc":
        if set(tasks) - {"bbox"}:
            raise UserError(f"'{dataset}' is a VOC dataset. Only task 'bbox' is supported.")
        metrics = {"bbox": voc.score(truth, rows, voc.year_of(dataset), edges, str(path), limit)}
    else:
        tasks = tasks or tasks_of(rows, truth)
        metrics = score_tasks(truth, rows, tasks, edges, source=str(path), limit=limit)
    if not metrics:
        raise UserError(f"{truth.source}: no task was scored. Choose --tasks bbox.")
    if all(math.isnan(of_task["AP"]) for of_task in metrics.values()):
        reason = explain_nan(truth, next(iter(metrics)))
        raise UserError(f"{truth.source}: {reason}. Give annotations with objects to detect.")
    if dataset is not None:
        name, identity = dataset, fingerprint(dataset)
    elif annotations is not None:
        name = Path(annotations).stem
        identity = {"images": len(truth.images), "fingerprint": sha256(annotations)}
    predictions = {"detections": len(rows), "fingerprint": sha256(path)}
    return Scored(name, metrics, {name: identity, "predictions": predictions})


def _registered(name: str) -> str:
    """Check that a dataset has objects and its files exist, and return its evaluator type."""
    check_dataset(name)
    _refuse_masks(name)
    return evaluator_type(name)


def _refuse_masks(name: str) -> None:
    if MetadataCatalog.get(name).get("evaluator_type") == "sem_seg":
        raise UserError(
            f"dataset '{name}' has semantic masks, but saved predictions are objects. Evaluate "
            "the model: robust-backbones train --eval-only."
        )


def read_predictions(path: str | Path, dataset: str) -> dict[int | str, list[dict]]:
    """Read a file of predictions for a registered dataset, grouped by image.

    The class index, which counts from 0, replaces the `category_id` of each prediction.

    Returns:
        Predictions of each image, `{image_id: predictions}`, in order of descending score. Images
        without predictions are not included.

    Raises:
        UserError: the file is missing, has a different format, or names images or classes that the
            dataset does not have.
    """
    _refuse_masks(dataset)
    rows, truth = read_json(path), from_catalog(dataset)
    indices = {key: index for index, key in enumerate(truth.ids)}
    tasks = {"bbox", *tasks_of(rows, truth)} - {"keypoints"}
    check_predictions(rows, truth, tasks, str(path))
    found = defaultdict(list)
    for row in sorted(rows, key=lambda row: -row["score"]):
        found[row["image_id"]].append(row | {"category_id": indices[row["category_id"]]})
    return dict(found)


def to_instances(
    rows: list[dict], height: int, width: int, source: str = "the predictions"
) -> Instances:
    """Convert the saved predictions of one image to a detector's output on the CPU.

    Args:
        rows: predictions of one image, as returned by `read_predictions`.
        height, width: size of the image, pixels.
        source: name of the predictions for error messages.

    Raises:
        UserError: the run lengths of a mask do not sum to height x width.
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
        except ValueError as error:  # an error that only decoding finds
            raise UserError(f"{source}, image {rows[0]['image_id']}: {error}.") from None
        found.pred_masks = torch.from_numpy(np.stack(masks))
    return found


def _mask(segmentation: dict | list, height: int, width: int) -> np.ndarray:
    """Decode run lengths or polygons to a `(height, width)` bool array."""
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(segmentation)
    return coco_mask.decode(segmentation).astype(bool)
