"""One detector, one data set, many conditions: AP on images as they are and as they are changed.

What a condition found is kept on disk as soon as it is measured, so that an evaluation that was
stopped, or is given further conditions, goes on from there.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from torch import nn
from torch.utils.data import DataLoader, Dataset

from robust_backbones.core import results
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic
from robust_backbones.detection.data import subset
from robust_backbones.detection.data.loader import CheckedLoader, CheckedMapper
from robust_backbones.detection.data.subset import Item
from robust_backbones.detection.evaluation import build_evaluator
from robust_backbones.detection.robustness.subject import Subject, load_model

CELLS = "cells.json"
CLEAN = "clean"  # name of the condition that changes nothing
LOG_SECONDS = 60  # between two lines of progress where stderr is no terminal
TASKS = {"bbox": "box", "segm": "mask"}  # Detectron2's name -> what people call it


@dataclass(frozen=True)
class Condition:
    """One way of changing the images of a data set.

    Attributes:
        name: tells it from all others, e.g. `clean`, `eps 4/255`, `fog 3`.
        load: `(number of the image, dataset dict)` -> the dict that Detectron2's models take, as a
            `DatasetMapper` makes it. It runs in worker processes.
        change: `(model, batch of such dicts)` -> `(changed batch, record)`; None: nothing changes.
            A record is what `summary` will need to know.
        summary: records of all batches -> entries for the condition's row.
        facts: of the row, too: what the condition is.
        cost: time per image relative to a prediction, for the estimate of the time left.
    """

    name: str
    load: Callable[[int, dict], dict]
    change: Callable[[nn.Module, list[dict]], tuple[list[dict], dict]] | None = None
    summary: Callable[[list[dict]], dict] = lambda records: {}
    facts: dict = field(default_factory=dict)
    cost: float = 1.0


def measure_all(
    subject: Subject, conditions: list[Condition], settings: dict, folder: Path, batch_size: int = 1
) -> dict[str, dict]:
    """Rows of all conditions; those that `folder` has already are not measured again.

    Args:
        settings: as `Subject.settings` gives them: what rows in `folder` must have been made with.
        folder: where rows are kept.
        batch_size: images that the detector gets at once.

    Returns:
        `{condition: row}`; a row has the condition's facts and summary, `seconds`, and for each
        task (`bbox`, `segm`) `{metric: percent}`; None where a metric has no ground truth.

    Raises:
        UserError: the folder's rows were made with other settings, or the weights do not fit.
    """
    path = Path(folder) / CELLS
    rows = _read(path, settings)
    left = [condition for condition in conditions if condition.name not in rows]
    if done := len(conditions) - len(left):
        print(f"{done} of {len(conditions)} conditions were measured before.", flush=True)
    if left:
        model = load_model(subject.cfg)
        name = subset.register(subject.dataset, subject.items, path.parent / "subset")
    with _bar(sum(condition.cost for condition in left) * len(subject.items)) as bar:
        for condition in left:
            bar.set_description_str(condition.name, refresh=False)
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                evaluator = build_evaluator(subject.cfg, name, scratch)
                row = measure(
                    model,
                    subject.items,
                    condition,
                    evaluator,
                    batch_size,
                    subject.cfg.DATALOADER.NUM_WORKERS,
                    bar.update,
                )
            if not row["detections"]:
                row |= _nothing(rows.get(CLEAN, {}))
            rows[condition.name] = row
            with atomic(path) as temporary:
                text = json.dumps({"settings": settings, "cells": rows}, allow_nan=False)
                temporary.write_text(text, encoding="utf-8")
            bar.write(f"{condition.name}: {in_words(row)}", file=sys.stdout)
    return {condition.name: rows[condition.name] for condition in conditions}


def measure(
    model: nn.Module,
    items: list[Item],
    condition: Condition,
    evaluator: DatasetEvaluator,
    batch_size: int = 1,
    workers: int = 0,
    tick: Callable[[float], object] = lambda cost: None,
) -> dict:
    """One row: predict on the changed images, and score. The rest is as for `measure_all`.

    Args:
        evaluator: a Detectron2 `DatasetEvaluator` of a data set with just these items.
        workers: processes that load images.
        tick: is told of each batch's cost.

    Raises:
        UserError: an image is gone, damaged, or of another size than its annotations say.
    """
    started, records, detections = time.perf_counter(), [], 0
    evaluator.reset()
    loader = DataLoader(
        _Loaded(items, condition.load),
        batch_size,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),
    )  # else it draws from the global one
    for batch in CheckedLoader(loader):
        size = len(batch)
        if condition.change is not None:
            batch, record = condition.change(model, batch)
            records.append(record)
        with torch.no_grad():
            outputs = model(batch)
        evaluator.process(batch, outputs)
        detections += sum(len(output["instances"]) for output in outputs)
        tick(size * condition.cost)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints a table for each
        scores = evaluator.evaluate()
    # Metrics of single classes, "AP-person", would drown the others.
    tasks = {
        task: {metric: value for metric, value in metrics.items() if "-" not in metric}
        for task, metrics in scores.items()
    }
    row = condition.facts | tasks | condition.summary(records)
    row |= {"detections": detections, "seconds": round(time.perf_counter() - started, 2)}
    return results.finite(row)


def _nothing(clean: dict) -> dict:
    """The scores of a detector that detects nothing at all, which are 0: Detectron2's evaluator
    gives NaN then, and no mask AP. What has no ground truth stays None."""
    return {
        task: {metric: None if value is None else 0.0 for metric, value in clean[task].items()}
        for task in TASKS
        if task in clean
    }


class _Loaded(Dataset):
    def __init__(self, items: list[Item], load: Callable[[int, dict], dict]):
        self._items, self._load = items, load

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        number, item = self._items[index]
        return CheckedMapper(partial(self._load, number))(item)


def in_words(row: dict) -> str:
    """`box AP 61.2, mask AP 55.0, 34 s`."""
    words = [f"{title} AP {show(row[task]['AP'])}" for task, title in TASKS.items() if task in row]
    return ", ".join([*words, f"{row['seconds']:.0f} s"])


def show(value: float | None) -> str:
    """A figure with one decimal, or `-` for none."""
    return "-" if value is None else f"{value:.1f}"


def tasks_of(rows: dict[str, dict]) -> list[str]:
    """Which of `TASKS` all rows have."""
    return [task for task in TASKS if all(task in row for row in rows.values())]


def _read(path: Path, settings: dict) -> dict[str, dict]:
    """The rows that a folder has.

    Raises:
        UserError: they were made with other settings, or the file is not ours.
    """
    if not path.is_file():
        return {}
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        before, rows = contents["settings"], contents["cells"]
        nested = results.differences(before["config"], settings["config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is not a file of this program; choose another --output.") from None
    plain = {key: value for key, value in settings.items() if key != "config"}
    if different := "; ".join(filter(None, (results.differences(before, plain), nested))):
        raise UserError(
            f"{path.parent} holds figures made with other settings: {different}; give the same "
            "ones, or choose another --output."
        )
    return rows


def _bar(total: float) -> Any:
    """A bar on a terminal, a line now and then in a log."""
    from tqdm import tqdm

    every = 0.1 if sys.stderr.isatty() else LOG_SECONDS
    return tqdm(
        total=total,
        mininterval=every,
        maxinterval=max(every, 10),
        file=sys.stderr,
        disable=total == 0,
        bar_format="{desc}: {percentage:3.0f} % of all, {elapsed} gone, {remaining} left",
    )
