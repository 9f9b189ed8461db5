"""What the trials of a transfer run add up to, and the files that say it."""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor

from classification import metrics
from classification.training import distributed
from classification.transfer.task import Task, Trial
from robust_backbones.checkpoint.formats import FORMAT, FORMAT_VERSION
from robust_backbones.checkpoint.io import Checkpoint, save_file
from robust_backbones.core import results
from robust_backbones.core.files import atomic


def write(task: Task, trials: list[Trial], names: dict, seconds: float) -> str:
    """Write all files of a finished run; result.json comes last and marks it as finished.

    Args:
        names: what the user called the things: goes into the settings beside them.

    Returns:
        The result in a line.
    """
    folder, labels, classes = task.folder, task.test.labels, task.train.classes
    predictions = torch.stack([trial.predictions for trial in trials])
    matrices = [metrics.confusion(row, labels, classes) for row in predictions]
    confusion = torch.stack(matrices).sum(0)
    _csv(folder / "per_class.csv", _per_class(task, confusion))
    _csv(folder / "confusion.csv", _confusion(task, confusion))
    _csv(folder / "per_image.csv", _per_image(trials, labels))
    for k, trial in enumerate(trials):
        if trial.model:
            contents = {
                "format": FORMAT,
                "version": FORMAT_VERSION,
                "metadata": task.metadata(k),
                "model": trial.model,
            }
            save_file(contents, folder / f"classifier_trial{k}.pt")
    found = summary(task, trials)
    results.write(
        folder / "result.json",
        kind="transfer",
        metrics=found,
        settings=task.recorded | names | {"source": source(task.weights)},
        weights_sha256=task.weights.sha256,
        data=task.data,
        seed=task.settings.seed,
        seconds=seconds,
        processes=distributed.world(),
    )
    return line(found, len(trials))


def source(found: Checkpoint) -> dict:
    """What is known of the network that transfers; None where its file does not say."""
    names = ("dataset", "method", "constraint", "eps", "epochs", "seed")
    before = found.metadata.get("source_metadata")  # of a converted file: what its source said
    known = (before if isinstance(before, dict) else {}) | found.metadata
    return {"arch": found.arch} | {name: known.get(name) for name in names}


def summary(task: Task, trials: list[Trial]) -> dict:
    """The numbers of a result; docs/formats.md explains each."""
    rows = [_row(task, trial) for trial in trials]
    predictions = torch.stack([trial.predictions for trial in trials])
    low, high = metrics.interval(predictions, task.test.labels, task.settings.metric)
    found = {"metric": task.settings.metric, **_spread("accuracy", rows), "interval": [low, high]}
    for name in ("top1", "mean_per_class", "robust_accuracy"):
        if all(row.get(name) is not None for row in rows):
            found[name] = fmean(row[name] for row in rows)
    if task.selects_on_test:
        found["last_epoch_accuracy"] = _mean(rows, "last")
    return found | {"images": len(task.test), "trials": rows}


def _row(task: Task, trial: Trial) -> dict:
    labels, classes = task.test.labels, task.train.classes
    whole = (torch.bincount(labels, minlength=classes) > 0).all()
    row = {
        "seed": trial.seed,
        "accuracy": task.metric(trial.predictions, labels, classes),
        "top1": metrics.top1(trial.predictions, labels),
        "mean_per_class": (
            metrics.mean_per_class(trial.predictions, labels, classes) if whole else None
        ),
    }
    if trial.adversarial is not None:
        row["robust_accuracy"] = task.metric(trial.adversarial, labels, classes)
    return row | {"chosen": trial.chosen, "candidates": trial.candidates, **trial.more}


def _mean(rows: list[dict], name: str) -> float | None:
    """None where nothing was chosen on the test images."""
    values = [row[name] for row in rows if name in row]
    return fmean(values) if values else None


def _spread(name: str, rows: list[dict]) -> dict:
    """Mean over the trials; standard deviation (of a sample; None of a single one), ends."""
    values = [row[name] for row in rows]
    return {
        name: fmean(values),
        "sd": stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
    }


def line(found: dict, trials: int) -> str:
    """The result in words."""
    words = f"{found['metric'].replace('_', ' ')} {found['accuracy']:.2f} %"
    if trials > 1:
        words += f" +- {found['sd']:.2f} over {trials} trials"
    low, high = found["interval"]
    words += f" (95 % interval over images {low:.2f} to {high:.2f})"
    if "robust_accuracy" in found:
        words += f", under attack {found['robust_accuracy']:.2f} %"
    return words


def _per_class(task: Task, confusion: Tensor) -> Iterator[tuple]:
    """Sums over the trials, as counts are."""
    yield "class", "images", "right", "recall_percent"
    for name, row, i in zip(task.train.class_names, confusion, range(len(confusion)), strict=True):
        images, right = int(row.sum()), int(row[i])
        yield name, images, right, round(100 * right / images, 4) if images else ""


def _confusion(task: Task, confusion: Tensor) -> Iterator[tuple]:
    yield "class", *task.train.class_names
    for name, row in zip(task.train.class_names, confusion, strict=True):
        yield name, *row.tolist()


def _per_image(trials: list[Trial], labels: Tensor) -> Iterator[tuple]:
    """`index`: place in the test split, so that two networks can be compared image by image."""
    yield "index", "label", *(f"trial{k}" for k in range(len(trials)))
    columns = [trial.predictions.tolist() for trial in trials]
    for i, row in enumerate(zip(labels.tolist(), *columns, strict=True)):
        yield i, *row


def _csv(path: Path, rows: Iterable[tuple]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
