"""Summarize the trials of a transfer run, and write its result files."""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from classification import metrics
from classification.models import save_classifier
from classification.training import distributed
from classification.transfer.conditions import Condition, spread
from classification.transfer.task import Task, Trial, summarize_calibration
from robust_backbones.checkpoint.io import Checkpoint
from robust_backbones.core import results
from robust_backbones.core.files import atomic


def write(
    task: Task,
    trials: list[Trial],
    conditions: list[Condition],
    seconds: float,
    warnings: list[dict],
) -> str:
    """Write all files of a finished run. result.json is last, because it marks the run as finished.

    Args:
        task: network, data and settings of the run.
        trials: outcomes of the trials.
        conditions: outcomes of the further tests.
        seconds: duration of the run in seconds.
        warnings: reasons to doubt the numbers, each as `{"check", "message"}`.

    Returns:
        A one-line description of the result.
    """
    folder, labels, classes = task.folder, task.test.labels, task.train.classes
    predictions = torch.stack([trial.predictions for trial in trials])
    matrices = [metrics.confusion(row, labels, classes) for row in predictions]
    confusion = torch.stack(matrices).sum(0)
    _csv(folder / "per_class.csv", _per_class(task, confusion))
    _csv(folder / "confusion.csv", _confusion(task, confusion))
    _csv(folder / "per_image.csv", _per_image(trials, labels))
    for k, trial in enumerate(trials):
        if trial.model and task.settings.save_classifier:
            save_classifier(folder / f"classifier_trial{k}.pt", trial.model, task.metadata(k))
    for condition in conditions:
        _csv(folder / condition.file, condition.table())
    found = summary(task, trials)
    if conditions:
        found["conditions"] = [each.summary(task.settings.metric) for each in conditions]
    results.write(
        folder / "result.json",
        kind="transfer",
        metrics=found,
        settings=task.recorded
        | {"weights": task.network.name, "source": describe_source(task.network.file)},
        weights_sha256=task.settings.network.sha256,
        data=task.data,
        seed=task.settings.seed,
        seconds=seconds,
        device=task.device,
        precision=task.settings.precision,
        processes=distributed.world(),
        warnings=warnings,
    )
    return line(found, len(trials))


def describe_source(weights: Checkpoint) -> dict:
    """Describe how the network was pretrained. Entries that its file does not have are None."""
    names = ("dataset", "method", "constraint", "eps", "epochs", "seed")
    source = weights.metadata.get("source_metadata")  # converted files contain this entry
    known = (source if isinstance(source, dict) else {}) | weights.metadata
    return {"arch": weights.arch} | {name: known.get(name) for name in names}


def summary(task: Task, trials: list[Trial]) -> dict:
    """Compute the metrics for result.json; docs/reference/formats.md describes them."""
    rows = [_row(task, trial) for trial in trials]
    predictions = torch.stack([trial.predictions for trial in trials])
    low, high = metrics.interval(predictions, task.test.labels, task.settings.metric)
    found = {"metric": task.settings.metric, **_spread("accuracy", rows), "interval": [low, high]}
    for name in ("top1", "mean_per_class"):
        if all(row.get(name) is not None for row in rows):
            found[name] = fmean(row[name] for row in rows)
    if task.selects_on_test:
        found["last_epoch_accuracy"] = _mean(rows, "last")
    calibrations = [trial.calibration for trial in trials if trial.calibration]
    if calibrations:
        found["calibration"] = summarize_calibration(calibrations)
    images = {"images": len(task.test), "images_per_class": task.images_per_class}
    return found | images | {"trials": rows}


def _row(task: Task, trial: Trial) -> dict:
    labels, classes = task.test.labels, task.train.classes
    every_class = (torch.bincount(labels, minlength=classes) > 0).all()
    return {
        "seed": trial.seed,
        "accuracy": task.metric(trial.predictions, labels, classes),
        "top1": metrics.top1(trial.predictions, labels),
        "mean_per_class": (
            metrics.mean_per_class(trial.predictions, labels, classes) if every_class else None
        ),
        "chosen": trial.chosen,
        "candidates": trial.candidates,
        **trial.more,
    }


def _mean(rows: list[dict], name: str) -> float | None:
    """Return the mean of the entry `name` over the rows that contain it. None: no such row."""
    values = [row[name] for row in rows if name in row]
    return fmean(values) if values else None


def _spread(name: str, rows: list[dict]) -> dict:
    """Compute mean, sample standard deviation, minimum and maximum of an entry over the trials.

    The standard deviation of one trial is None.
    """
    values = [row[name] for row in rows]
    return {name: fmean(values), **spread(values)}


def line(found: dict, trials: int) -> str:
    """Describe the result in one line."""
    words = f"{found['metric'].replace('_', ' ')} {found['accuracy']:.2f} %"
    if trials > 1:
        words += f" +- {found['sd']:.2f} over {trials} trials"
    low, high = found["interval"]
    words += f" (95 % interval over images {low:.2f} to {high:.2f})"
    more = (f"; {row['name']} {row['accuracy']:.2f} %" for row in found.get("conditions", ()))
    return words + "".join(more)


def _per_class(task: Task, confusion: Tensor) -> Iterator[tuple]:
    """Yield the rows of per_class.csv, with counts summed over the trials."""
    yield "class", "images", "right", "recall_percent"
    for name, row, i in zip(task.train.class_names, confusion, range(len(confusion)), strict=True):
        images, right = int(row.sum()), int(row[i])
        yield name, images, right, round(100 * right / images, 4) if images else ""


def _confusion(task: Task, confusion: Tensor) -> Iterator[tuple]:
    """Yield the rows of confusion.csv, with counts summed over the trials."""
    yield "class", *task.train.class_names
    for name, row in zip(task.train.class_names, confusion, strict=True):
        yield name, *row.tolist()


def _per_image(trials: list[Trial], labels: Tensor) -> Iterator[tuple]:
    """Yield the rows of per_image.csv.

    `index` is the index of the image in the test split, which is the same for every network.
    """
    yield "index", "label", *(f"trial{k}" for k in range(len(trials)))
    columns = [trial.predictions.tolist() for trial in trials]
    for i, row in enumerate(zip(labels.tolist(), *columns, strict=True)):
        yield i, *row


def _csv(path: Path, rows: Iterable[tuple]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
