"""Masks of COCO files, looked at before pycocotools sees them, which crashes on huge numbers."""

import math
from typing import Any

# Largest distance within a polygon times its numbers. pycocotools takes 20 bytes for each pixel of
# the outline, however far out of the image.
OUTLINE = 5e7
PIXELS = 1 << 28  # of a mask


def fault(part: object) -> str | None:
    """Why a segmentation is none: neither `[[x, y, ...], ...]` nor `{"size", "counts"}`, or without
    bounds; None for a sound one. How many corners a polygon has is not looked at."""
    if isinstance(part, dict):
        return _fault_of_runs(part.get("size"), part.get("counts"))
    if not isinstance(part, list):
        return f"its segmentation is a {type(part).__name__}, neither polygons nor run lengths"
    for points in part:
        try:
            known = isinstance(points, list) and all(map(math.isfinite, points))
        except (TypeError, OverflowError):
            known = False
        if not known:
            return "a polygon of its segmentation is no list of finite numbers"
        if points and (max(points) - min(points)) * len(points) > OUTLINE:
            return f"a polygon of its segmentation reaches from {min(points)} to {max(points)}"
    return None


def _fault_of_runs(size: Any, counts: Any) -> str | None:
    sides = size if isinstance(size, (list, tuple)) and len(size) == 2 else ()
    if not sides or not all(type(side) is int and side > 0 for side in sides):
        return f"its run lengths have size {size}; [height, width] are needed"
    if math.prod(sides) > PIXELS:
        return f"its run lengths claim {sides[0]} x {sides[1]} pixels, more than {PIXELS}"
    if isinstance(counts, list):
        whole = all(type(run) is int and run >= 0 for run in counts)
        if not whole or sum(counts) != math.prod(sides):
            return "its run lengths do not fill its size"
    elif not isinstance(counts, (str, bytes)) or (isinstance(counts, str) and not counts.isascii()):
        return f"its run lengths have counts of type {type(counts).__name__}"
    return None
