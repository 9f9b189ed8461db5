"""Evaluate one detector on one dataset under many conditions: clean, attacked, corrupted images.

The metrics of each condition are saved as soon as they are measured. An interrupted evaluation
resumes after the saved conditions. More conditions can be added to a finished evaluation.

The processes of a group share the batches. The rows do not depend on the number of processes.
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
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset
from tqdm import tqdm

from robust_backbones import __version__
from robust_backbones.core import results
from robust_backbones.core.detector_keys import EVALUATION
from robust_backbones.core.detector_tasks import TASKS
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic, sha256
from robust_backbones.core.results import flatten
from robust_backbones.detection import config, run_checks
from robust_backbones.detection.checkpointer import StrictCheckpointer
from robust_backbones.detection.data import registry, subset
from robust_backbones.detection.data.loader import CheckedLoader, CheckedMapper
from robust_backbones.detection.data.subset import Item
from robust_backbones.detection.evaluation import build_evaluator
from robust_backbones.detection.training.step import evaluation_note
from robust_backbones.detection.training.trainer import Trainer, evaluation_advice

ROWS_FILE = "cells.json"
CLEAN = "clean"  # name of the condition with unchanged images
LOG_SECONDS = 60  # seconds between two lines of progress if stderr is not a terminal


@dataclass(frozen=True)
class Target:
    """A trained detector and the images for its evaluation.

    Attributes:
        cfg: configuration of the detector.
        weights_sha256: SHA-256 of the detector's weight file.
        dataset: name of a registered dataset.
        items: chosen images, pairs of the index in the dataset and the dataset dictionary.
    """

    cfg: CfgNode
    weights_sha256: str
    dataset: str
    items: list[Item]

    def settings(self, **more: Any) -> dict:
        """Collect all settings that affect the metrics, as plain JSON types.

        Args:
            more: additional settings of the evaluation.
        """
        flat = flatten(yaml.safe_load(self.cfg.dump()))
        return {
            "weights_sha256": self.weights_sha256,
            "dataset": self.dataset,
            "fingerprint": registry.fingerprint(self.dataset)["fingerprint"],
            "images": len(self.items),
            "code_version": __version__,
            **more,
            "config": {key: v for key, v in flat.items() if not key.startswith(EVALUATION)},
        }

    def write_result(
        self,
        folder: Path,
        *,
        kind: str,
        metrics: dict,
        settings: dict,
        seed: int,
        seconds: float,
        warnings: list[dict] | None,
    ) -> None:
        """Write `result.json` and print the warnings. For the arguments, see `results.write`."""
        data = registry.fingerprint(self.dataset) | {"images": len(self.items)}
        results.write(
            Path(folder) / "result.json",
            kind=kind,
            metrics=metrics,
            warnings=warnings,
            seed=seed,
            settings=settings | {"weights": self.cfg.MODEL.WEIGHTS},
            seconds=seconds,
            device=self.cfg.MODEL.DEVICE,
            processes=comm.get_world_size(),
            weights_sha256=self.weights_sha256,
            data={self.dataset: data},
        )
        for warning in warnings or ():
            print(f"warning: {warning['message']}", file=sys.stderr)


def find_target(
    path: str | Path, overrides: list[str], dataset: str | None, images: int | None, seed: int
) -> Target:
    """Load the configuration, and check weights and dataset before the evaluation starts.

    Args:
        path: config file of the detector.
        overrides: changes to the config, `KEY VALUE` pairs in a flat list. `MODEL.WEIGHTS` must be
            a whole detector.
        dataset: registered or custom dataset; None for `DATASETS.TEST`.
        images: number of images to choose at random; None for all images.
        seed: seed for the choice of images.

    Raises:
        UserError: the configuration, weights, dataset or number of images is invalid.
    """
    cfg = config.load_config(path, overrides, datasets={"TEST": [dataset] if dataset else []})
    notice = run_checks.set_device(cfg, 1)
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(f"DATASETS.TEST is {cfg.DATASETS.TEST}. Give one dataset with --dataset.")
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS is empty. Give the checkpoint of a trained detector.")
    run_checks.check_inputs(cfg, train=False, overrides=overrides)
    for note in filter(None, (notice, evaluation_note(cfg))):
        print(note, file=sys.stderr)
    cfg.freeze()
    (name,) = cfg.DATASETS.TEST
    items = subset.choose(name, images, seed)
    return Target(cfg, sha256(PathManager.get_local_path(cfg.MODEL.WEIGHTS)), name, items)


def load_model(cfg: CfgNode) -> nn.Module:
    """Load the detector of `MODEL.WEIGHTS` in eval mode, without gradients for its parameters.

    Raises:
        UserError: a tensor of the detector was not loaded from the file, or the detector has other
            classes than the dataset.
    """
    model = Trainer.build_model(cfg)
    checkpointer = StrictCheckpointer(model, save_to_disk=False)
    checkpointer.use_input(cfg)
    checkpointer.classes = registry.classes_of(cfg.DATASETS.TEST)
    checkpointer.load(cfg.MODEL.WEIGHTS)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Condition:
    """A version of the images of a dataset: clean, attacked or corrupted.

    The metrics of a condition are a row, a dictionary that `measure_all` describes.

    Attributes:
        name: unique name, such as `clean`, `eps 4/255` or `fog 3`.
        load: function `(index in the dataset, dataset dictionary)` that returns a model input, like
            Detectron2's `DatasetMapper`. The function runs in worker processes.
        change: function `(model, batch of inputs)` that returns the changed batch and a record for
            `summary`; None to leave the batch unchanged.
        summary: function from the records of all batches to additional entries of the row.
        facts: entries of the row that describe the condition, such as its eps.
        cost: time per image, relative to inference on a clean image. It is used to estimate the
            remaining time.
    """

    name: str
    load: Callable[[int, dict], dict]
    change: Callable[[nn.Module, list[dict]], tuple[list[dict], dict]] | None = None
    summary: Callable[[list[dict]], dict] = lambda records: {}
    facts: dict = field(default_factory=dict)
    cost: float = 1.0


def measure_all(
    target: Target, conditions: list[Condition], settings: dict, folder: Path, batch_size: int = 1
) -> dict[str, dict]:
    """Measure all conditions that `folder` does not contain yet.

    Args:
        target: detector and images.
        conditions: conditions to measure.
        settings: output of `Target.settings`. The settings of saved rows must be the same.
        folder: folder of the saved rows.
        batch_size: number of images per forward pass.

    Returns:
        One row for each condition, `{name of the condition: row}`. A row contains the facts and the
        summary of the condition, the number of `detections` of a detector, `seconds`, and `{metric:
        percent}` for each task (`bbox`, `segm`, `sem_seg`). Metrics without ground truth are None.
        Only the main process has metrics, and writes files.

    Raises:
        UserError: the saved rows have different settings, or the weights do not fit the detector.
    """
    path, main = Path(folder) / ROWS_FILE, comm.is_main_process()
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = _read_rows(path, settings)
    pending = [condition for condition in conditions if condition.name not in rows]
    if (done := len(conditions) - len(pending)) and main:
        print(f"{done} of {len(conditions)} conditions are measured already.", flush=True)
    if pending:
        model = load_model(target.cfg)
        name = subset.register(target.dataset, target.items)
    share = len(target.items) / comm.get_world_size()
    costs = sum(c.cost for c in pending) * share if main else 0
    with _progress_bar(costs) as bar, evaluation_advice(target.cfg, batch_size):
        for condition in pending:
            bar.set_description_str(condition.name, refresh=False)
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                row = measure(
                    model,
                    target.items,
                    condition,
                    build_evaluator(target.cfg, name, scratch),
                    batch_size,
                    target.cfg.DATALOADER.NUM_WORKERS,
                    bar.update,
                    target.cfg.MODEL.DEVICE,
                )
            if row.get("detections") == 0:
                row |= _zero_scores(rows.get(CLEAN, {}))
            rows[condition.name] = row
            if not main:
                continue
            with atomic(path) as temporary:
                text = json.dumps({"settings": settings, "cells": rows}, allow_nan=False)
                temporary.write_text(text, encoding="utf-8")
            bar.write(f"{condition.name}: {describe_row(row)}", file=sys.stdout)
    return {condition.name: rows[condition.name] for condition in conditions}


def measure(
    model: nn.Module,
    items: list[Item],
    condition: Condition,
    evaluator: DatasetEvaluator,
    batch_size: int = 1,
    workers: int = 0,
    tick: Callable[[float], object] = lambda cost: None,
    device: str = "cpu",
) -> dict:
    """Measure one condition, and return its row. For the contents of a row, see `measure_all`.

    Args:
        model: detector in eval mode.
        items: images of a dataset, the same in all processes.
        condition: condition to measure.
        evaluator: Detectron2 evaluator of a dataset with exactly these images.
        batch_size: number of images per forward pass.
        workers: number of processes that load images.
        tick: function to call with the cost of each batch, to show the progress.
        device: name of the model's device.

    Raises:
        UserError: an image is missing, damaged, or has a different size than in its annotations.
    """
    started, records, detections = time.perf_counter(), [], 0
    evaluator.reset()
    # Processes share whole batches, in order, because an attack depends on the batch of an image.
    batches = list(BatchSampler(range(len(items)), batch_size, drop_last=False))
    loader = DataLoader(
        _ConditionDataset(items, condition.load),
        batch_sampler=[batches[index] for index in InferenceSampler(len(batches))],
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # the default would advance the global generator
    )
    for batch in CheckedLoader(loader, device):
        size = len(batch)
        if condition.change is not None:
            batch, record = condition.change(model, batch)
            records.append(record)
        with torch.no_grad():
            outputs = model(batch)
        evaluator.process(batch, outputs)
        detections += sum(len(output["instances"]) for output in outputs if "instances" in output)
        tick(size * condition.cost)
    found = comm.all_gather((records, detections))
    records = [record for part, _ in found for record in part]
    detections = sum(count for _, count in found)
    with contextlib.redirect_stdout(io.StringIO()):  # hides the table that pycocotools prints
        scores = evaluator.evaluate()
    # Exclude the metrics of single classes, such as "AP-person".
    tasks = {
        task: {metric: value for metric, value in metrics.items() if "-" not in metric}
        for task, metrics in scores.items()
    }
    row = condition.facts | tasks | condition.summary(records)
    if "sem_seg" not in row:
        row["detections"] = detections
    row["seconds"] = round(time.perf_counter() - started, 2)
    return results.finite(row)


def _zero_scores(clean: dict) -> dict:
    """Return the metrics of a condition without any detections: 0 for each metric.

    Without detections, Detectron2's evaluators return NaN for boxes and no mask AP.

    Args:
        clean: row of the clean condition. Metrics that are None in this row remain None.
    """
    return {
        task: {metric: None if value is None else 0.0 for metric, value in clean[task].items()}
        for task in TASKS
        if task in clean
    }


class _ConditionDataset(Dataset):
    def __init__(self, items: list[Item], load: Callable[[int, dict], dict]):
        # Serialized, because reading Python objects in a worker process copies their memory pages.
        self._items, self._load = DatasetFromList(items, serialize=True), load

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        number, item = self._items[index]
        return CheckedMapper(partial(self._load, number))(item)


def describe_row(row: dict) -> str:
    """Format the main metrics and the time of a row, such as `box AP 61.2, mask AP 55.0, 34 s`."""
    words = [
        f"{task.title} {format_ap(row[name][task.main])}"
        for name, task in TASKS.items()
        if name in row
    ]
    return ", ".join([*words, f"{row['seconds']:.0f} s"])


def format_ap(value: float | None) -> str:
    """Format a percentage with one decimal. None becomes `-`."""
    return "-" if value is None else f"{value:.1f}"


def common_tasks(rows: dict[str, dict]) -> list[str]:
    """Return the tasks, keys of `TASKS`, that all rows contain."""
    return [task for task in TASKS if all(task in row for row in rows.values())]


def _read_rows(path: Path, settings: dict) -> dict[str, dict]:
    """Read the saved rows. Return an empty dictionary if the file does not exist.

    Raises:
        UserError: the rows have different settings, or the file has a different format.
    """
    if not path.is_file():
        return {}
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        before, rows = contents["settings"], contents["cells"]
        nested = results.differences(before["config"], settings["config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{path} was not written by this program. Choose another --output."
        ) from None
    plain = {key: value for key, value in settings.items() if key != "config"}
    if different := "; ".join(filter(None, (results.differences(before, plain), nested))):
        raise UserError(
            f"{path.parent} contains results with different settings: {different}. Use the same "
            "settings, or choose another --output."
        )
    return rows


def _progress_bar(total: float) -> Any:
    """Create a progress bar that is live on a terminal and prints a line per minute to a log."""
    interval = 0.1 if sys.stderr.isatty() else LOG_SECONDS
    return tqdm(
        total=total,
        mininterval=interval,
        maxinterval=max(interval, 10),
        file=sys.stderr,
        disable=total == 0,
        bar_format="{desc}: {percentage:3.0f} % of all, {elapsed} elapsed, {remaining} left",
    )
