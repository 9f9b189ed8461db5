"""Images of a data set beside what detectors make of them: pictures, and counts of errors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from PIL import Image
from tqdm import tqdm

from robust_backbones.core import results
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic, sha256
from robust_backbones.detection.data import subset
from robust_backbones.detection.data.registry import fingerprint
from robust_backbones.detection.evaluation import prediction_files
from robust_backbones.detection.inspect import error_types, visualize
from robust_backbones.detection.inspect.predictor import as_array, load

PICTURES = "pictures"  # folder of the drawings, below the output


@dataclass(frozen=True)
class Column:
    """A source of predictions.

    Attributes:
        name: heading of its pictures.
        predict: a data set's dictionary -> `Instances` on the CPU, all scores.
        source: where they come from, for the record.
    """

    name: str
    predict: Callable[[dict], Instances]
    source: dict


@dataclass
class Row:
    """One image.

    Attributes:
        file: the image's path.
        counts: for each column, `{kind: number}`; empty where errors are not looked for.
        pictures: `{"file" (relative to the output), "column", "text", "alt"}` each.
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
    """Predictions of `MODEL.WEIGHTS`.

    Raises:
        UserError: it cannot be loaded, or its classes are not those of the data set.
    """
    predictor = load(cfg)
    expected = MetadataCatalog.get(dataset).get("thing_classes")
    if expected is not None and list(predictor.classes) != list(expected):
        raise UserError(
            f"{cfg.MODEL.WEIGHTS} detects {_few(predictor.classes)}, but data set '{dataset}' has "
            f"{_few(expected)}; choose the data set that it was trained for with --dataset."
        )
    source = {"weights": cfg.MODEL.WEIGHTS, "weights_sha256": predictor.weights_sha256}
    return Column(name, lambda item: predictor(item["file_name"])["instances"].to("cpu"), source)


def from_file(name: str, path: str | Path, dataset: str) -> Column:
    """Predictions of a file; see `prediction_files.read`, which raises `UserError`."""
    rows = prediction_files.read(path, dataset)

    def predict(item: dict) -> Instances:
        found = rows.get(item["image_id"], [])
        return prediction_files.instances(found, item["height"], item["width"], str(path))

    return Column(name, predict, {"predictions": str(path), "predictions_sha256": sha256(path)})


def _few(names: Sequence) -> str:
    more = ", …" if len(names) > 4 else ""
    return f"{len(names)} classes ({', '.join(map(str, names[:4]))}{more})"


def choose(dataset: str, count: int, seed: int) -> list[Row]:
    """`count` random images of a registered data set, in its order; all if it has no more."""
    wanted = count if count < len(DatasetCatalog.get(dataset)) else None
    return [Row(item["file_name"], item) for _, item in subset.choose(dataset, wanted, seed)]


def count_errors(rows: list[Row], columns: list[Column], threshold: float) -> None:
    """Fill in the counts of each row, over predictions with a score of at least `threshold`.

    Raises:
        UserError: the data set has no annotations.
    """
    if not any(row.item.get("annotations") for row in rows):
        raise UserError("the images have no annotations; errors can only be told where there are.")
    for row in tqdm(rows, desc="errors", disable=None):
        for column in columns:
            row.counts[column.name] = error_types.count(*_mark(row.item, column, threshold)[1:])


def totals(rows: list[Row], columns: list[Column]) -> dict[str, dict[str, int]]:
    """`{column: {kind: number}}` over all rows."""
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
    """Write the counts, of all rows and of each, as a result file."""
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
    )


def draw(
    rows: list[Row], columns: list[Column], dataset: str, output: str | Path, threshold: float
) -> None:
    """Write the pictures of each row as PNG files: the truth, then one for each column.

    They go to `<output>/pictures/<number>_<name of the image>_<column>.png`. Predictions are in the
    colours of their classes, or of their kinds where errors were counted.

    Raises:
        UserError: an image or a file cannot be read or written.
    """
    names = MetadataCatalog.get(dataset).get("thing_classes")
    for number, row in enumerate(tqdm(rows, desc="pictures", disable=None)):
        image = as_array(row.file)
        objects = visualize.truth(row.item)
        pixels = visualize.draw_truth(image, objects, names)
        shown = _listed([_name(names, index) for index in objects.classes])
        _save(row, output, number, 0, "truth", pixels, shown)
        for place, column in enumerate(columns, 1):
            if row.counts:
                found, kinds, marks = _mark(row.item, column, threshold)
                missed = _only(objects, np.array([mark == "missed" for mark in marks], bool))
                pixels = visualize.draw_errors(image, found, kinds, missed, names)
                shown = _listed([k for k in kinds] + ["missed"] * len(missed.classes))
            else:
                found = _confident(column, row.item, threshold)
                pixels = visualize.draw_predictions(image, found, names)
                shown = _listed([_name(names, index) for index in found.pred_classes.tolist()])
            _save(row, output, number, place, column.name, pixels, shown)


def _confident(column: Column, item: dict, threshold: float) -> Instances:
    found = column.predict(item)
    return found[found.scores >= threshold]


def _mark(item: dict, column: Column, threshold: float) -> tuple[Instances, list[str], list[str]]:
    """Predictions of an image, their kinds, and those of its objects."""
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


def _only(objects: visualize.Truth, chosen: np.ndarray) -> visualize.Truth:
    return visualize.Truth(
        objects.boxes[chosen], objects.classes[chosen], objects.ignored[chosen], None
    )


def _save(
    row: Row,
    output: str | Path,
    number: int,
    place: int,
    column: str,
    pixels: np.ndarray,
    text: str,
) -> None:
    file = f"{PICTURES}/{number:03d}_{Path(row.file).stem}_{place}.png"
    with atomic(Path(output, file)) as temporary:
        Image.fromarray(pixels).save(temporary, format="png")
    alt = f"{row.name}, {column}: {text}"
    row.pictures.append({"file": file, "column": column, "text": text, "alt": alt})


def _name(names: Sequence[str] | None, index: int) -> str:
    return str(index) if names is None else names[index]


def _listed(names: list[str]) -> str:
    """`2 right, 1 missed`; `nothing` for none."""
    numbers = {name: names.count(name) for name in names}
    return ", ".join(f"{number} {name}" for name, number in numbers.items()) or "nothing"
