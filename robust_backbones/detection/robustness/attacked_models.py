"""Functions of an attack that differ between detectors and networks for semantic segmentation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_iou

from robust_backbones.core.errors import UserError
from robust_backbones.detection import attack, semantic_attack
from robust_backbones.detection.data.mapper import SEGMENTOR
from robust_backbones.detection.inspect import semantic_pictures

SHOWN_SCORE = 0.5  # lowest score of a prediction in pictures
SHOWN_SIZE = 320  # shortest side of an image in pictures, pixels; smaller images are enlarged
THRESHOLDS = tuple(0.5 + i / 20 for i in range(10))  # COCO's IoU thresholds


@dataclass(frozen=True)
class AttackedModel:
    """Functions of an attack on one kind of model.

    Attributes:
        losses: names of the losses that an attack can increase.
        default: losses that an attack increases by default.
        pgd: function `(model, batch, constraint, eps, steps, step_size, generator, loss)` that
            returns the attacked images.
        loss: function `(model, batch, loss, seed)` that returns the loss of a batch.
        scores: function `(model, batch)` that returns a score for each image. The attack with the
            lowest score on an image counts.
        selection: name of the score.
        draw: function `(metadata, pixels, output)` that draws an output on an image.
    """

    losses: tuple[str, ...]
    default: tuple[str, ...]
    pgd: Callable[..., list[Tensor]]
    loss: Callable[..., float]
    scores: Callable[[Any, list[dict]], list[float]]
    selection: str
    draw: Callable[[Any, np.ndarray, dict], np.ndarray]

    def check_losses(self, names: list[str]) -> None:
        """Reject losses that the model does not have.

        Raises:
            UserError: a loss is not in `losses`.
        """
        if unknown := [name for name in names if name not in self.losses]:
            raise UserError(
                f"--loss {unknown[0]}: the model does not have this loss. Choose from "
                f"{', '.join(self.losses)}."
            )


def attacked_model(cfg: CfgNode) -> AttackedModel:
    """Return the functions for the model of a configuration."""
    return SEGMENTERS if cfg.MODEL.META_ARCHITECTURE == SEGMENTOR else DETECTORS


def _detector_scores(model: nn.Module, batch: list[dict]) -> list[float]:
    with torch.no_grad():
        outputs = model(batch)
    return [
        image_ap(output["instances"].to("cpu"), item["instances"])
        for output, item in zip(outputs, batch, strict=True)
    ]


def image_ap(found: Instances, truth: Instances) -> float:
    """Compute the box AP of one image, in [0, 1].

    AP is the mean over the classes in the ground truth and over COCO's IoU thresholds.

    This value ranks attacks on the same image. AP is undefined for images without objects. For
    these images, the result is minus the sum of the scores, so that false detections make an attack
    stronger.

    Args:
        found: predictions, with boxes in the coordinates of `found.image_size`.
        truth: ground truth, with boxes in the coordinates of `truth.image_size`.
    """
    if not len(truth):
        return -float(found.scores.sum())
    heights, widths = zip(truth.image_size, found.image_size, strict=True)
    scale = torch.tensor([widths[0] / widths[1], heights[0] / heights[1]] * 2)
    values = []
    for label in truth.gt_classes.unique():
        mine = found[found.pred_classes == label]
        boxes = mine.pred_boxes.tensor[mine.scores.argsort(descending=True)] * scale
        overlaps = box_iou(boxes, truth.gt_boxes.tensor[truth.gt_classes == label])
        values += [_average_precision(overlaps, threshold) for threshold in THRESHOLDS]
    return float(np.mean(values))


def _average_precision(overlaps: Tensor, threshold: float) -> float:
    """Return the average precision.

    This is the precision at the rank of each object's matched detection, averaged over objects. The
    precision of an object without a detection is 0.

    Args:
        overlaps: IoU of each detection with each object, `(detections, objects)` float.
            Detections are in order of descending score.
        threshold: smallest IoU of a correct detection.
    """
    free, hits, total = overlaps.clone(), 0, 0.0
    for rank in range(len(free)):
        best = free[rank].argmax()
        if free[rank, best] >= threshold:
            hits += 1
            total += hits / (rank + 1)
            free[:, best] = -1  # an object is matched only once
    return total / free.shape[1]


def _draw_instances(meta: Any, pixels: np.ndarray, output: dict) -> np.ndarray:
    instances = output["instances"].to("cpu")
    height, width = instances.image_size
    pixels = np.asarray(Image.fromarray(pixels).resize((width, height)))
    scale = max(1.0, SHOWN_SIZE / min(height, width))
    confident = instances[instances.scores >= SHOWN_SCORE]
    return Visualizer(pixels, meta, scale).draw_instance_predictions(confident).get_image()


def _draw_masks(meta: Any, pixels: np.ndarray, output: dict) -> np.ndarray:
    labels = semantic_pictures.labels(output)
    height, width = labels.shape
    pixels = np.asarray(Image.fromarray(pixels).resize((width, height)))
    return semantic_pictures.draw(pixels, labels, max(1.0, SHOWN_SIZE / min(height, width)))


def _segmenter_loss(model: Any, batch: list[dict], *, loss: str, seed: int) -> float:
    return semantic_attack.mean_loss(model, batch, loss=loss)  # without random numbers


DETECTORS = AttackedModel(
    tuple(attack.LOSSES),
    ("all", "classification"),
    attack.pgd,
    attack.detection_loss,
    _detector_scores,
    "AP of the image",
    _draw_instances,
)
SEGMENTERS = AttackedModel(
    tuple(semantic_attack.LOSSES),
    tuple(semantic_attack.LOSSES),
    semantic_attack.pgd,
    _segmenter_loss,
    semantic_attack.pixel_accuracies,
    "pixel accuracy of the image",
    _draw_masks,
)
