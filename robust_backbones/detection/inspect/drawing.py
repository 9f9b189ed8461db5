"""Sizes, colors and names in drawings of annotations and predictions."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image

# Smallest and largest length of a drawing's longer side, pixels. Small images are enlarged so that
# their text is legible.
SIDE = (640, 1280)


def fitting_scale(height: int, width: int) -> float:
    """Return the scale that brings the longer side of an image into the range `SIDE`."""
    longer = max(height, width)
    return min(max(longer, SIDE[0]), SIDE[1]) / longer


def class_name(names: Sequence[str] | None, index: int) -> str:
    """Return the name of a class, or its index if there are no names."""
    return str(index) if names is None else names[index]


def class_color(index: int) -> tuple[float, float, float]:
    """Return the RGB color of a class, in [0, 1]. Neighboring indices have very different hues."""
    return colorsys.hsv_to_rgb(index * 0.618 % 1, 0.8, 1)


def resize(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize an image or mask, `(H, W)` or `(H, W, 3)` uint8, smoothly."""
    height, width = (max(round(scale * side), 1) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
