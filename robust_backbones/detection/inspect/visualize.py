"""Draw ground truth, predictions and errors with Detectron2's Visualizer."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import GenericMask, Visualizer
from matplotlib.colors import to_rgb

from robust_backbones.core.picture_grid import arrange
from robust_backbones.detection.inspect import semantic_pictures
from robust_backbones.detection.inspect.drawing import (
    class_color,
    class_name,
    fitting_scale,
    resize,
)
from robust_backbones.detection.inspect.error_types import KINDS
from robust_backbones.detection.inspect.predictor import as_array, load

# Height of class names as a fraction of a drawing's longer side. Pages show drawings in columns of
# some 400 pixels.
TEXT = 1 / 28


@dataclass
class Truth:
    """The objects of one image of a registered dataset.

    Attributes:
        boxes: corners x0, y0, x1, y1 of the boxes, `(M, 4)` float, pixels.
        classes: class indices, `(M,)` int.
        ignored: whether an object is a crowd or difficult, `(M,)` bool.
        masks: list of polygons or RLE of each object; None if any object has no mask.
    """

    boxes: np.ndarray
    classes: np.ndarray
    ignored: np.ndarray
    masks: list | None


def truth(item: dict) -> Truth:
    """Return the annotated objects of a dataset dictionary."""
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
    """Draw the objects of an image in the colors of their classes.

    Args:
        image: image `(H, W, 3)`, uint8 RGB.
        found: objects to draw.
        names: class names; None to show class indices.
        scale: size of the drawing relative to the image; None for the output of `fitting_scale`.

    Returns:
        Drawing `(scale * H, scale * W, 3)`, uint8 RGB.
    """
    labels = [
        class_name(names, index) + (" (ignored)" if ignored else "")
        for index, ignored in zip(found.classes, found.ignored, strict=True)
    ]
    colors = [class_color(index) for index in found.classes]
    return _draw(image, found.boxes, labels, colors, found.masks, scale)


def draw_predictions(
    image: np.ndarray, found: Instances, names: Sequence[str] | None, scale: float | None = None
) -> np.ndarray:
    """Draw predictions, Detectron2 `Instances` on the CPU. For the arguments, see `draw_truth`."""
    classes = found.pred_classes.tolist()
    labels = [
        f"{class_name(names, index)} {score:.0%}"
        for index, score in zip(classes, found.scores.tolist(), strict=True)
    ]
    colors = [class_color(index) for index in classes]
    return _draw(image, _boxes(found), labels, colors, _masks(found), scale)


def draw_errors(
    image: np.ndarray,
    found: Instances,
    kinds: list[str],
    missed: Truth,
    names: Sequence[str] | None,
    scale: float | None = None,
) -> np.ndarray:
    """Draw predicted boxes in the colors of their error types, and missed objects in dashed lines.

    Masks are not drawn, because error types refer to boxes, and masks of duplicates overlap.

    Args:
        image, names, scale: image, class names and scale; see `draw_truth`.
        found: predictions on the CPU.
        kinds: error types of the predictions, keys of `KINDS`. The drawing names all types except
            "right".
        missed: objects to draw in dashed lines.
    """
    classes, scores = found.pred_classes.tolist(), found.scores.tolist()
    labels = [
        f"{class_name(names, index)} {score:.0%}" + (f": {kind}" if kind != "right" else "")
        for index, score, kind in zip(classes, scores, kinds, strict=True)
    ]
    colors = [KINDS[kind].color for kind in kinds]
    dashed = [
        (box, class_name(names, k)) for box, k in zip(missed.boxes, missed.classes, strict=True)
    ]
    return _draw(image, _boxes(found), labels, colors, None, scale, dashed)


def _draw(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Iterable[str],
    colors: Sequence,
    masks: Sequence | None,
    scale: float | None,
    dashed: Iterable = (),
) -> np.ndarray:
    scale = scale or fitting_scale(*image.shape[:2])
    masks = [GenericMask(mask, *image.shape[:2]).mask for mask in masks or ()]
    # Images are enlarged before anything is drawn, because Detectron2 would show square pixels.
    image = resize(image, scale)
    height, width = image.shape[:2]
    boxes = scale * np.asarray(boxes, float).reshape(-1, 4)
    text_height = TEXT * max(height, width)
    drawing = Visualizer(image)
    for mask, color in zip(masks, colors, strict=bool(masks)):
        # Draw masks one by one, because `overlay_instances` would fill their holes.
        bits = resize(255 * mask.astype(np.uint8), scale) > 127
        drawing.draw_binary_mask(bits, color=color, alpha=0.5, area_threshold=0)
    blue = KINDS["missed"].color
    things = [*zip(boxes, labels, colors, ["-"] * len(boxes), strict=True)]
    things += [(scale * np.asarray(box), f"missed: {name}", blue, "--") for box, name in dashed]
    for box, _, color, style in things:
        drawing.draw_box(box, alpha=1, edge_color=color, line_style=style)
    taken: list[tuple] = []
    for box, text, color, _ in things:
        position = _text_position(text, box, width, height, text_height, taken)
        light = [(1 + part) / 2 for part in to_rgb(color)]  # light text is legible on black
        text = text.replace("$", r"\$")  # matplotlib reads $ as a formula
        points = text_height * 72 / drawing.output.dpi
        drawing.draw_text(
            text, position, font_size=points, color=light, horizontal_alignment="left"
        )
    return drawing.output.get_image()


def _text_position(
    text: str, box: Sequence[float], width: int, height: int, size: float, taken: list[tuple]
) -> tuple[float, float]:
    """Find the upper left corner of a text.

    The text is below the box and inside the drawing. If the text would overlap a text in `taken`,
    it moves up or down by a few lines. The function appends the position to `taken`.

    Args:
        text: text to draw.
        box: corners x0, y0, x1, y1 of the box, pixels.
        width, height: size of the drawing, pixels.
        size: height of the text, pixels.
        taken: left end, upper end and length of each placed text, pixels.
    """
    line = 1.3 * size  # with a margin
    length = 0.65 * size * len(text)
    x = max(min(box[0], width - length), 0)
    below = min(box[3], height - line)
    for step in (0, -1, 1, -2, 2, -3, 3):
        y = min(max(below + step * line, 0), height - line)
        if all(x > u + w or u > x + length or abs(y - v) >= line for u, v, w in taken):
            break
    taken.append((x, y, length))
    return x, y


def _boxes(found: Instances) -> np.ndarray:
    return found.pred_boxes.tensor.numpy()


def _masks(found: Instances) -> list | None:
    return list(found.pred_masks.numpy()) if found.has("pred_masks") else None


def truth_and_prediction(
    cfg: CfgNode, dataset: str, count: int, scale: float = 3.0, threshold: float = 0.5
) -> Iterator[np.ndarray]:
    """Draw the first images of a registered dataset, with ground truth and with predictions.

    Args:
        cfg: configuration of a detector, with the weights of a whole detector.
        dataset: name of the dataset.
        count: maximum number of images.
        scale: size of the drawing relative to the image.
        threshold: lowest score of a drawn prediction, in [0, 1].

    Yields:
        Drawings, uint8 RGB: ground truth on the left, predictions on the right, with titles.

    Raises:
        UserError: the weights do not fit the whole detector.
    """
    predictor = load(cfg)
    items = DatasetCatalog.get(dataset)[:count]
    names = MetadataCatalog.get(dataset).get("thing_classes")
    for item in items:
        image = as_array(item["file_name"], predictor.decoding)
        output = predictor(image)
        if "sem_seg" in output:
            masks = semantic_pictures.truth(item), semantic_pictures.labels(output)
            pair = [semantic_pictures.draw(image, mask, scale) for mask in masks]
            yield arrange([pair], ("truth", "predictions"))
            continue
        found = output["instances"].to("cpu")
        found = found[found.scores >= threshold]
        left = draw_truth(image, truth(item), names, scale)
        right = draw_predictions(image, found, names, scale)
        yield arrange([[left, right]], ("truth", "predictions"))
