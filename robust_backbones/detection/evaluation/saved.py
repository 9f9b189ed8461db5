"""Scores of a file of predictions, without a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robust_backbones.core.errors import UserError
from robust_backbones.core.files import sha256
from robust_backbones.detection.data import coco_files
from robust_backbones.detection.data.registry import check_dataset, fingerprint
from robust_backbones.detection.evaluation import coco as coco_evaluation
from robust_backbones.detection.evaluation import kind_of
from robust_backbones.detection.evaluation import voc as voc_evaluation


@dataclass(frozen=True)
class Scored:
    """What was found.

    Attributes:
        name: of the data set, or of the annotation file without ending.
        metrics: `{task: {metric: percent}}`.
        data: for a result file: images, detections, and fingerprints of both sides.
    """

    name: str
    metrics: dict[str, dict]
    data: dict


def score(
    path: str | Path,
    annotations: str | Path | None = None,
    dataset: str | None = None,
    tasks: Sequence[str] = (),
    edges: Sequence[float] = (),
) -> Scored:
    """Score a file of predictions in COCO's result format, as the evaluators here write it.

    Args:
        annotations: a COCO annotation file; or
        dataset: the name of a registered data set, COCO's or VOC's.
        tasks: keys of `coco_files.TASKS`; empty for those that the predictions are of (of an
            empty list: boxes, and masks if the annotations have any).
        edges: see `coco_scores.score`.

    Raises:
        UserError: a file or prediction is wrong, or the data set is not known or not on disk.
    """
    if (annotations is None) == (dataset is None):
        raise ValueError("give either annotations or dataset")
    rows = coco_files.load_json(path)
    if dataset is not None and _registered(dataset) == "pascal_voc":
        if set(tasks) - {"bbox"}:
            raise UserError(f"'{dataset}' is a VOC data set: only task 'bbox' can be scored.")
        metrics = {"bbox": voc_evaluation.score(dataset, rows, edges, str(path))}
    else:
        named = coco_evaluation.annotations(dataset) if dataset else None
        contents = named or coco_files.load_json(annotations or "")
        truth = coco_files.truth(contents, str(dataset or annotations))
        tasks = tasks or coco_files.tasks_of(rows, truth)
        metrics = coco_evaluation.score_tasks(truth, rows, tasks, edges, source=str(path))
    if dataset is not None:
        name, identity = dataset, fingerprint(dataset)
    elif annotations is not None:
        name = Path(annotations).stem
        identity = {"images": len(truth.images), "fingerprint": sha256(annotations)}
    predictions = {"detections": len(rows), "fingerprint": sha256(path)}
    return Scored(name, metrics, {name: identity, "predictions": predictions})


def _registered(name: str) -> str:
    """The kind of a data set that is known and on disk."""
    check_dataset(name)
    return kind_of(name)
