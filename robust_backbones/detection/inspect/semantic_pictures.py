"""Draw semantic masks, and describe them in words."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from robust_backbones.detection.data.semantic_masks import IGNORED, mask_of, read_mask
from robust_backbones.detection.inspect.drawing import (
    class_color,
    class_name,
    fitting_scale,
    resize,
)

OPACITY = 0.6  # opacity of the class colors
SHOWN = 5  # maximum number of classes in a description


def is_semantic(item: dict) -> bool:
    """Return whether an image of a registered dataset has a semantic mask instead of objects."""
    return "sem_seg_file_name" in item and "annotations" not in item


def truth(item: dict, classes: int | None = None) -> np.ndarray:
    """Return the class indices of a dataset dictionary; see `semantic_masks.read_mask`."""
    return read_mask(mask_of(item), classes)


def labels(output: dict[str, Tensor]) -> np.ndarray:
    """Return the class with the largest logit of each pixel, `(H, W)` uint8.

    Args:
        output: output of a model for one image, with logits `sem_seg` `(classes, H, W)`.
    """
    return output["sem_seg"].argmax(dim=0).cpu().numpy().astype(np.uint8)


def draw(image: np.ndarray, indices: np.ndarray, scale: float | None = None) -> np.ndarray:
    """Draw the color of each pixel's class over an image. Pixels without a label are unchanged.

    Args:
        image: image `(H, W, 3)`, uint8 RGB.
        indices: class indices `(H, W)`, uint8.
        scale: size of the drawing relative to the image; None for the output of `fitting_scale`.

    Returns:
        Drawing `(scale * H, scale * W, 3)`, uint8 RGB.
    """
    scale = scale or fitting_scale(*image.shape[:2])
    colors = np.array([class_color(index) for index in range(256)]) * 255
    mixed = (1 - OPACITY) * image + OPACITY * colors[indices]
    labeled = (indices != IGNORED)[..., None]
    return resize(np.where(labeled, mixed.round(), image).astype(np.uint8), scale)


def describe(indices: np.ndarray, names: Sequence[str] | None) -> str:
    """Describe the largest classes of a mask, such as `91 % background, 5 % seven`."""
    counts = np.bincount(indices[indices != IGNORED], minlength=1)
    total = counts.sum()
    largest = [k for k in np.argsort(-counts, kind="stable")[:SHOWN] if counts[k]]
    shown = [f"{counts[k] / total:.0%} {class_name(names, int(k))}" for k in largest]
    return ", ".join(shown).replace("%", " %") or "no labels"


def accuracy(found: np.ndarray, wanted: np.ndarray) -> str:
    """Describe the fraction of labeled pixels whose class is right."""
    labeled = wanted != IGNORED
    if not labeled.any():
        return "no labels"
    return f"{(found == wanted)[labeled].mean():.1%} of the pixels right".replace("%", " %")
