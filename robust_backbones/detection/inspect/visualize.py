"""Pictures of truth, of predictions and of what is wrong with them, by Detectron2's Visualizer."""

import colorsys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import GenericMask, Visualizer
from matplotlib.colors import to_rgb

from robust_backbones.detection.inspect.error_types import KINDS
from robust_backbones.detection.inspect.predictor import as_array, load

# Longer side of a drawing, pixels: small images are enlarged, so that names can be read on them.
SIDE = (640, 1280)
FONT = 10  # size of names on it, points


@dataclass
class Truth:
    """The objects of one image of a registered data set.

    Attributes:
        boxes: `(M, 4)` float, x0, y0, x1, y1 in pixels.
        classes: `(M,)` int.
        ignored: `(M,)` bool: crowds, and objects that are marked as difficult.
        masks: one polygon list or RLE for each object; None if any has none.
    """

    boxes: np.ndarray
    classes: np.ndarray
    ignored: np.ndarray
    masks: list | None


def truth(item: dict) -> Truth:
    """The annotations of one of a data set's dictionaries; no objects if it has none."""
    rows = item.get("annotations", [])
    boxes = [BoxMode.convert(r["bbox"], r["bbox_mode"], BoxMode.XYXY_ABS) for r in rows]
    masks = [row.get("segmentation") for row in rows]
    return Truth(
        boxes=np.array(boxes, float).reshape(-1, 4),
        classes=np.array([row["category_id"] for row in rows], int),
        ignored=np.array([bool(r.get("iscrowd") or r.get("difficult")) for r in rows], bool),
        masks=masks if all(masks) else None,
    )


def draw_truth(
    image: np.ndarray, found: Truth, names: Sequence[str] | None, scale: float | None = None
) -> np.ndarray:
    """The image with its objects, their colours those of their classes.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        names: of the classes; None shows their numbers.
        scale: size of the drawing relative to the image; None chooses one within `SIDE`.

    Returns:
        `(scale H, scale W, 3)` uint8 RGB.
    """
    labels = [
        _name(names, index) + (" (ignored)" if ignored else "")
        for index, ignored in zip(found.classes, found.ignored, strict=True)
    ]
    colours = [class_colour(index) for index in found.classes]
    return _draw(image, found.boxes, labels, colours, found.masks, scale)


def draw_predictions(
    image: np.ndarray, found: Instances, names: Sequence[str] | None, scale: float | None = None
) -> np.ndarray:
    """The image with predictions, a Detectron2 `Instances` on the CPU; see `draw_truth`."""
    classes = found.pred_classes.tolist()
    labels = [
        f"{_name(names, index)} {score:.0%}"
        for index, score in zip(classes, found.scores.tolist(), strict=True)
    ]
    colours = [class_colour(index) for index in classes]
    return _draw(image, _boxes(found), labels, colours, _masks(found), scale)


def draw_errors(
    image: np.ndarray,
    found: Instances,
    kinds: list[str],
    missed: Truth,
    names: Sequence[str] | None,
    scale: float | None = None,
) -> np.ndarray:
    """The image with the boxes of predictions in the colours of their kinds, and dashed the missed
    objects. Masks are left out: the kinds are about boxes, and theirs may overlap much.

    Args:
        kinds: of the predictions, keys of `KINDS`; all but right ones are named on the picture.
        missed: the objects to draw dashed.
    """
    classes, scores = found.pred_classes.tolist(), found.scores.tolist()
    labels = [
        f"{_name(names, index)} {score:.0%}" + (f": {kind}" if kind != "right" else "")
        for index, score, kind in zip(classes, scores, kinds, strict=True)
    ]
    colours = [KINDS[kind].colour for kind in kinds]
    dashed = [(box, _name(names, k)) for box, k in zip(missed.boxes, missed.classes, strict=True)]
    return _draw(image, _boxes(found), labels, colours, None, scale, dashed)


def class_colour(index: int) -> tuple[float, float, float]:
    """RGB in [0, 1]; a class has the same one in every picture, and neighbours differ much."""
    return colorsys.hsv_to_rgb(index * 0.618 % 1, 0.8, 1)


def _draw(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Iterable[str],
    colours: Sequence,
    masks: Sequence | None,
    scale: float | None,
    dashed: Iterable = (),
) -> np.ndarray:
    height, width = image.shape[:2]
    scale = scale or fitting_scale(height, width)
    drawing = Visualizer(image, scale=scale)
    for mask, colour in zip(masks or (), colours, strict=masks is not None):
        # Not overlay_instances, which fills the holes of a mask.
        bits = GenericMask(mask, height, width).mask
        drawing.draw_binary_mask(bits, color=colour, alpha=0.5, area_threshold=0)
    blue = KINDS["missed"].colour
    things = [*zip(boxes, labels, colours, ["-"] * len(boxes), strict=True)]
    things += [(box, f"missed: {name}", blue, "--") for box, name in dashed]
    for box, _, colour, style in things:
        drawing.draw_box(box, alpha=1, edge_color=colour, line_style=style)
    taken: list[tuple] = []
    for box, text, colour, _ in things:
        x, y = _place(text, box, width, height, scale, taken)
        light = [(1 + part) / 2 for part in to_rgb(colour)]  # on black
        text = text.replace("$", r"\$")  # matplotlib's mathematics
        drawing.draw_text(
            text, (x, y), font_size=FONT / scale, color=light, horizontal_alignment="left"
        )
    return drawing.output.get_image()


def _place(
    text: str, box: Sequence[float], width: int, height: int, scale: float, taken: list[tuple]
) -> tuple[float, float]:
    """The left upper corner of a text: below its box, inside the image, and clear of those in
    `taken` (which it joins) as far as a few lines up or down allow it."""
    line = 1.8 * FONT / scale  # at Detectron2's 100 pixels per inch, some room included
    length = 0.9 * FONT / scale * len(text)
    x = max(min(box[0], width - length), 0)
    below = min(box[3], height - line)
    for step in (0, -1, 1, -2, 2, -3, 3):
        y = min(max(below + step * line, 0), height - line)
        if all(x > u + w or u > x + length or abs(y - v) >= line for u, v, w in taken):
            break
    taken.append((x, y, length))
    return x, y


def fitting_scale(height: int, width: int) -> float:
    """What brings the longer side into `SIDE`."""
    longer = max(height, width)
    return min(max(longer, SIDE[0]), SIDE[1]) / longer


def _name(names: Sequence[str] | None, index: int) -> str:
    return str(index) if names is None else names[index]


def _boxes(found: Instances) -> np.ndarray:
    return found.pred_boxes.tensor.numpy()


def _masks(found: Instances) -> list | None:
    return list(found.pred_masks.numpy()) if found.has("pred_masks") else None


def truth_and_prediction(
    cfg: CfgNode, dataset: str, count: int, scale: float = 3.0, threshold: float = 0.5
) -> Iterator[np.ndarray]:
    """Draw the first images of a registered data set, annotated and as `MODEL.WEIGHTS` sees them.

    Args:
        cfg: a detector's config; its weights must be those of a whole detector.
        count: images, at most.
        scale: size of the drawing relative to the image.
        threshold: lowest score of a drawn prediction, in [0, 1].

    Yields:
        `(H, 2 W, 3)` uint8 RGB: left the truth, right the predictions.

    Raises:
        UserError: the weights are not those of this whole detector.
    """
    predictor = load(cfg)
    items = DatasetCatalog.get(dataset)[:count]
    names = MetadataCatalog.get(dataset).get("thing_classes")
    for item in items:
        image = as_array(item["file_name"])
        found = predictor(image)["instances"].to("cpu")
        found = found[found.scores >= threshold]
        left = draw_truth(image, truth(item), names, scale)
        yield np.concatenate([left, draw_predictions(image, found, names, scale)], axis=1)
