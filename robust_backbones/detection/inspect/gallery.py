"""Compare predictions of several detectors on a dataset with pictures and error counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from PIL import Image
from tqdm import tqdm

from robust_backbones.core import results
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic, sha256
from robust_backbones.core.images import Decoding
from robust_backbones.detection.data import subset
from robust_backbones.detection.data.mapper import read_image
from robust_backbones.detection.data.registry import fingerprint
from robust_backbones.detection.evaluation import saved
from robust_backbones.detection.inspect import error_types, semantic_pictures, visualize
from robust_backbones.detection.inspect.drawing import class_name
from robust_backbones.detection.inspect.predictor import load

PICTURES = "pictures"  # folder of the drawings in the output folder


@dataclass(frozen=True)
class Column:
    """A source of predictions: a detector or a file. Its pictures are one column of the page.

    Attributes:
        name: heading of the column.
        predict: function from a dataset dictionary to `Instances` on the CPU, with all scores. For
            semantic segmentation, it returns class indices `(H, W)`.
        source: weights or predictions file, recorded in the result file.
        device: device of the detector; the CPU for a file.
    """

    name: str
    predict: Callable[[dict], Any]
    source: dict
    device: str = "cpu"


@dataclass
class Row:
    """An image of the dataset. Its pictures are one row of the page.

    Attributes:
        file: path of the image.
        item: dataset dictionary of the image.
        counts: number of predictions or objects of each error type, `{column: {error type:
            number}}`; empty if errors are not counted.
        pictures: drawings of the image, dictionaries with keys "file" (path relative to the output
            folder), "column", "text" and "alt".
    """

    file: str
    item: dict
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    pictures: list[dict] = field(default_factory=list)

    @property
    def name(self) -> str:
        return Path(self.file).name

    @property
    def errors(self) -> int:
        return sum(error_types.errors(counts) for counts in self.counts.values())


def from_model(name: str, cfg: CfgNode, dataset: str) -> Column:
    """Create a column of predictions by the detector of `MODEL.WEIGHTS`.

    Raises:
        UserError: the detector cannot be loaded, or has different classes than the dataset.
    """
    predictor = load(cfg)
    expected = MetadataCatalog.get(dataset).get("thing_classes")
    if expected is not None and list(predictor.classes) != list(expected):
        raise UserError(
            f"{cfg.MODEL.WEIGHTS} detects {_few(predictor.classes)}, but dataset '{dataset}' has "
            f"{_few(expected)}. Choose the dataset it was trained for with --dataset."
        )
    source = {"weights": cfg.MODEL.WEIGHTS, "weights_sha256": predictor.weights_sha256}
    return Column(
        name,
        lambda item: _prediction(predictor(item["file_name"])),
        source,
        str(predictor.model.device),
    )


def _prediction(output: dict) -> Any:
    """Return a model's output for one image as in `Column.predict`."""
    if "sem_seg" in output:
        return semantic_pictures.labels(output)
    return output["instances"].to("cpu")


def from_file(name: str, path: str | Path, dataset: str) -> Column:
    """Create a column of saved predictions. For errors, see `saved.read_predictions`."""
    rows = saved.read_predictions(path, dataset)

    def predict(item: dict) -> Instances:
        found = rows.get(item["image_id"], [])
        return saved.to_instances(found, item["height"], item["width"], str(path))

    return Column(name, predict, {"predictions": str(path), "predictions_sha256": sha256(path)})


def _few(names: Sequence) -> str:
    more = ", …" if len(names) > 4 else ""
    return f"{len(names)} classes ({', '.join(map(str, names[:4]))}{more})"


def choose(dataset: str, count: int, seed: int) -> list[Row]:
    """Choose `count` random images, or all if the dataset has fewer, in the dataset's order."""
    wanted = count if count < len(DatasetCatalog.get(dataset)) else None
    return [Row(item["file_name"], item) for _, item in subset.choose(dataset, wanted, seed)]


def count_errors(rows: list[Row], columns: list[Column], threshold: float) -> None:
    """Count the errors in each image, over predictions with a score of at least `threshold`.

    Raises:
        UserError: the images have no annotations.
    """
    if not any(row.item.get("annotations") for row in rows):
        raise UserError("--errors: the images have no annotations. Choose an annotated dataset.")
    for row in tqdm(rows, desc="errors", disable=None):
        for column in columns:
            row.counts[column.name] = error_types.count(*_classify(row.item, column, threshold)[1:])


def totals(rows: list[Row], columns: list[Column]) -> dict[str, dict[str, int]]:
    """Return the error counts summed over all images, `{column: {error type: number}}`."""
    return {
        column.name: {
            kind: sum(row.counts[column.name][kind] for row in rows) for kind in error_types.KINDS
        }
        for column in columns
    }


def write_errors(
    path: str | Path,
    rows: list[Row],
    columns: list[Column],
    dataset: str,
    *,
    threshold: float,
    seed: int,
    seconds: float,
) -> None:
    """Write a result file with the error counts, in total and for each image."""
    results.write(
        path,
        kind="errors",
        metrics={
            "total": totals(rows, columns),
            "images": [{"image": row.file, "counts": row.counts} for row in rows],
        },
        settings={
            "dataset": dataset,
            "images": len(rows),
            "threshold": threshold,
            "columns": {column.name: column.source for column in columns},
        },
        weights_sha256=columns[0].source.get("weights_sha256"),
        data={dataset: fingerprint(dataset)},
        seed=seed,
        seconds=seconds,
        device=columns[0].device,
    )


def draw(
    rows: list[Row],
    columns: list[Column],
    dataset: str,
    output: str | Path,
    threshold: float,
    decoding: Decoding,
) -> None:
    """Write the pictures of each image as PNG files: the ground truth, then the predictions.

    The files are `<output>/pictures/<index>_<name of the image>_<position>.png`. The position is 0
    for the ground truth, and counts the columns from 1. Predictions have the colors of their
    classes, or of their error types if errors were counted.

    Raises:
        UserError: an image cannot be read, or a file cannot be written.
    """
    names = MetadataCatalog.get(dataset).get("thing_classes")
    for index, row in enumerate(tqdm(rows, desc="pictures", disable=None)):
        image = read_image(row.file, decoding)
        if semantic_pictures.is_semantic(row.item):
            _draw_masks(row, image, index, columns, output, names)
            continue
        objects = visualize.truth(row.item)
        pixels = visualize.draw_truth(image, objects, names)
        shown = _count_names([class_name(names, label) for label in objects.classes])
        _save(row, output, index, 0, "truth", pixels, shown)
        for position, column in enumerate(columns, 1):
            if row.counts:
                found, kinds, marks = _classify(row.item, column, threshold)
                missed = _select(objects, np.array([mark == "missed" for mark in marks], bool))
                pixels = visualize.draw_errors(image, found, kinds, missed, names)
                shown = _count_names([k for k in kinds] + ["missed"] * len(missed.classes))
            else:
                found = _confident(column, row.item, threshold)
                pixels = visualize.draw_predictions(image, found, names)
                shown = _count_names(
                    [class_name(names, label) for label in found.pred_classes.tolist()]
                )
            _save(row, output, index, position, column.name, pixels, shown)


def _draw_masks(
    row: Row,
    image: np.ndarray,
    index: int,
    columns: list[Column],
    output: str | Path,
    names: Sequence[str] | None,
) -> None:
    wanted = semantic_pictures.truth(row.item, len(names) if names else None)
    text = semantic_pictures.describe(wanted, names)
    _save(row, output, index, 0, "truth", semantic_pictures.draw(image, wanted), text)
    for position, column in enumerate(columns, 1):
        found = column.predict(row.item)
        text = semantic_pictures.accuracy(found, wanted)
        text += f": {semantic_pictures.describe(found, names)}"
        pixels = semantic_pictures.draw(image, found)
        _save(row, output, index, position, column.name, pixels, text)


def _confident(column: Column, item: dict, threshold: float) -> Instances:
    found = column.predict(item)
    return found[found.scores >= threshold]


def _classify(
    item: dict, column: Column, threshold: float
) -> tuple[Instances, list[str], list[str]]:
    """Return an image's predictions, their error types, and the error types of its objects."""
    found, objects = _confident(column, item, threshold), visualize.truth(item)
    kinds, marks = error_types.mark(
        found.pred_boxes.tensor.numpy(),
        found.pred_classes.numpy(),
        found.scores.numpy(),
        objects.boxes,
        objects.classes,
        objects.ignored,
    )
    return found, kinds, marks


def _select(objects: visualize.Truth, chosen: np.ndarray) -> visualize.Truth:
    return visualize.Truth(
        objects.boxes[chosen], objects.classes[chosen], objects.ignored[chosen], None
    )


def _save(
    row: Row,
    output: str | Path,
    index: int,
    position: int,
    column: str,
    pixels: np.ndarray,
    text: str,
) -> None:
    file = f"{PICTURES}/{index:03d}_{Path(row.file).stem}_{position}.png"
    with atomic(Path(output, file)) as temporary:
        Image.fromarray(pixels).save(temporary, format="png")
    alt = f"{row.name}, {column}: {text}"
    row.pictures.append({"file": file, "column": column, "text": text, "alt": alt})


def _count_names(names: list[str]) -> str:
    """Format the count of each name, such as `2 right, 1 missed`; `nothing` if names are empty."""
    numbers = {name: names.count(name) for name in names}
    return ", ".join(f"{number} {name}" for name, number in numbers.items()) or "nothing"
