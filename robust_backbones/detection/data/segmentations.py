"""Check and measure segmentations in COCO's formats: polygons and run lengths."""

import math
from typing import Any

from pycocotools import mask as coco_mask

# Upper bound on the extent of a polygon in pixels, times its number of coordinates. pycocotools
# allocates 20 bytes for each pixel of the outline, even outside the image.
MAX_OUTLINE = 5e7
MAX_MASK_PIXELS = 1 << 28


def segmentation_fault(part: object) -> str | None:
    """Describe the error in a segmentation; return None if pycocotools can read it.

    A valid segmentation is a list of polygons, `[[x, y, ...], ...]`, or run lengths, `{"size",
    "counts"}`. Huge numbers are invalid, because they crash pycocotools. This function does not
    check the number of points of a polygon.
    """
    if isinstance(part, dict):
        return _run_length_fault(part.get("size"), part.get("counts"))
    if not isinstance(part, list):
        return f"the segmentation is {str(part)[:40]!r}, neither polygons nor run lengths"
    for points in part:
        try:
            known = isinstance(points, list) and all(map(math.isfinite, points))
        except (TypeError, OverflowError):
            known = False
        if not known:
            return "a polygon is not a list of finite numbers"
        if points and (max(points) - min(points)) * len(points) > MAX_OUTLINE:
            return f"a polygon extends from {min(points)} to {max(points)}"
    return None


def _run_length_fault(size: Any, counts: Any) -> str | None:
    sides = size if isinstance(size, (list, tuple)) and len(size) == 2 else ()
    if not sides or not all(type(side) is int and side > 0 for side in sides):
        return f"the run lengths have size {size}, not [height, width]"
    if math.prod(sides) > MAX_MASK_PIXELS:
        return f"the run lengths claim {sides[0]} x {sides[1]} pixels, more than {MAX_MASK_PIXELS}"
    if isinstance(counts, list):
        whole = all(type(run) is int and run >= 0 for run in counts)
        if not whole or sum(counts) != math.prod(sides):
            return "the run lengths do not sum to height x width"
    elif not isinstance(counts, (str, bytes)) or (isinstance(counts, str) and not counts.isascii()):
        return f"the run lengths have counts of type {type(counts).__name__}"
    return None


def polygons(segmentation: list) -> list[list[float]]:
    """Select the polygons `[x, y, x, y, ...]` of a mask that have at least three points."""
    return [part for part in segmentation if len(part) >= 6 and len(part) % 2 == 0]


def compressed(part: list | dict) -> list | dict:
    """Convert run lengths to pycocotools' compressed format. Polygons are returned unchanged."""
    if isinstance(part, dict) and isinstance(part["counts"], list):
        return coco_mask.frPyObjects(part, *part["size"])
    return part


def mask_area(part: list | dict, height: int, width: int) -> float:
    """Compute the area of a valid segmentation in an image of the given size, in pixels."""
    if isinstance(part, dict):
        return float(coco_mask.area(compressed(part)))
    return float(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(part, height, width))))
