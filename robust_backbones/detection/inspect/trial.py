"""A small detector that is attacked by one step and detects once, to check an installation."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from skimage import data
from torch import Tensor

from robust_backbones.detection.attack import detection_loss, pgd
from robust_backbones.detection.backbone import set_architecture
from robust_backbones.detection.checkpointer import StrictCheckpointer
from robust_backbones.detection.compat import silence_detectron2
from robust_backbones.detection.config import load_config
from robust_backbones.detection.run_checks import set_device
from robust_backbones.detection.training.trainer import Trainer

CONFIG = "digits_mask_rcnn_robust.yaml"  # the smallest detector
CAT = [100.0, 20.0, 350.0, 280.0]  # box of the cat in `picture`


def picture() -> Tensor:
    """Return scikit-image's photograph of a cat, `(3, 300, 451)` uint8 RGB."""
    return torch.from_numpy(data.chelsea()).permute(2, 0, 1).contiguous()


def small_detector(weights: Path, arch: str) -> Any:
    """Build a small Faster R-CNN in eval mode, and load the backbone strictly.

    The FPN and the heads have random weights.

    Args:
        weights: converted backbone.
        arch: architecture of the backbone.

    Raises:
        UserError: the file lacks tensors of the backbone, or contradicts the architecture.
    """
    silence_detectron2()
    values = {"MODEL.WEIGHTS": str(weights), "MODEL.ROBUST.ARCH": arch}
    values |= {"MODEL.MASK_ON": "False", "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0"}
    with _only_errors():  # loading reports the random heads
        cfg = load_config(CONFIG, [part for pair in values.items() for part in pair])
        set_device(cfg, 1)
        set_architecture(cfg, str(weights))
        torch.manual_seed(0)
        model = Trainer.build_model(cfg)
        checkpointer = StrictCheckpointer(model)
        checkpointer.use_input(cfg)
        checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
    return model.eval()


@contextlib.contextmanager
def _only_errors() -> Iterator[None]:
    """Hide the warnings of Detectron2 and of our detection package."""
    loggers = [logging.getLogger(n) for n in ("fvcore", "detectron2", "robust_backbones.detection")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def attack_once(model: Any, eps: float) -> tuple[float, float, float]:
    """Perturb the photograph by one PGD step from the clean image.

    Args:
        model: detector.
        eps: L2 norm of the step, for pixels in [0, 1].

    Returns:
        Loss before and after the step, and the L2 norm of the perturbation.
    """
    image = picture()
    truth = Instances((image.shape[1], image.shape[2]))
    truth.gt_boxes, truth.gt_classes = Boxes(torch.tensor([CAT])), torch.tensor([0])
    item = {"image": image, "instances": truth}
    [attacked] = pgd(
        model,
        [item],
        constraint="l2",
        eps=eps,
        steps=1,
        step_size=eps,
        generator=torch.Generator().manual_seed(0),
        random_start=False,
    )
    before, after = (
        detection_loss(model, [item | {"image": x}], loss="all", seed=0) for x in (image, attacked)
    )
    return before, after, (attacked.cpu() - image).norm().item() / 255


def detect_once(model: Any) -> tuple[Tensor, Tensor]:
    """Detect objects in the photograph.

    Returns:
        Boxes `(N, 4)` in pixels, and scores `(N,)`.
    """
    with torch.no_grad():
        found = model([{"image": picture()}])[0]["instances"]
    return found.pred_boxes.tensor, found.scores
