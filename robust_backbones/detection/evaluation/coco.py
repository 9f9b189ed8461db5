"""Evaluate a registered dataset with COCO's metrics, faster than Detectron2 does."""

import contextlib
import io
import itertools
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import _evaluate_box_proposals, instances_to_coco_json
from detectron2.utils import comm
from pycocotools.coco import COCO

from robust_backbones.core.files import atomic
from robust_backbones.detection.data.annotations import Annotations
from robust_backbones.detection.data.catalog import scored_annotations, to_dataset_ids
from robust_backbones.detection.data.coco_predictions import TASKS
from robust_backbones.detection.evaluation.coco_scores import (
    UNLISTED,
    coco_contents,
    image_numbers,
    score,
)
from robust_backbones.detection.evaluation.tables import log_metrics

PREDICTIONS = "coco_instances_results.json"
_FIELDS = {"pred_masks": "segm", "pred_keypoints": "keypoints"}


class CocoEvaluator(DatasetEvaluator):
    """Evaluator with the metrics and predictions file of Detectron2's `COCOEvaluator`, and with AR.

    This class differs from Detectron2's class in four points:

    - Without any predictions, the metrics are 0 instead of NaN or absent.
    - A dataset without `json_file` is converted in memory. No outdated file of an earlier run is
      used, and the dataset's metadata do not change.
    - `instances_predictions.pth` is not written.
    - If the annotations have no masks, only boxes are scored, with a warning. Detectron2 fails.

    Args:
        name: name of the registered dataset.
        folder: folder for `coco_instances_results.json`; None to write nothing.
        expected: tasks to score if no image was processed, keys of `coco_predictions.TASKS`.
        edges, sigmas: size buckets and keypoint sigmas; see `coco_scores.score`.
        limit: largest number of detections per image and class that are scored; None for COCO's.
        distributed: whether to gather the predictions of all processes. Only the main process
            returns metrics.
    """

    def __init__(
        self,
        name: str,
        folder: str | Path | None = None,
        expected: Sequence[str] = ("bbox",),
        edges: Sequence[float] = (),
        sigmas: Sequence[float] = (),
        distributed: bool = True,
        limit: int | None = None,
    ):
        self._name, self._folder, self._distributed = name, folder, distributed
        self._expected, self._edges, self._sigmas = tuple(expected), edges, sigmas
        self._limit = limit
        self.reset()

    def reset(self) -> None:
        """Discard all predictions."""
        self._rows, self._proposals, self._seen = [], [], set()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Add a model's outputs, with key "instances" or "proposals". Inputs need `image_id`."""
        for image, output in zip(inputs, outputs, strict=True):
            if "instances" in output:
                instances = output["instances"].to(torch.device("cpu"))
                self._seen |= {"bbox"} | {t for f, t in _FIELDS.items() if instances.has(f)}
                self._rows += instances_to_coco_json(instances, image["image_id"])
            if "proposals" in output:
                proposals = output["proposals"].to(torch.device("cpu"))
                self._proposals.append({"image_id": image["image_id"], "proposals": proposals})

    def evaluate(self, img_ids: Iterable[int] | None = None) -> dict:
        """Score the predictions.

        Args:
            img_ids: ids of the images to score; None for all images.

        Returns:
            Metrics `{task: {metric: percent}}`; see `coco_scores.score`. The dictionary is empty
            outside the main process, and for datasets without annotations (test sets).
        """
        gathered = gather((self._rows, self._proposals, self._seen), self._distributed)
        if gathered is None:
            return {}
        rows = list(itertools.chain.from_iterable(part[0] for part in gathered))
        proposals = list(itertools.chain.from_iterable(part[1] for part in gathered))
        seen = set().union(*(part[2] for part in gathered))
        to_dataset_ids(rows, self._name)
        if self._folder and (rows or not proposals):
            save_predictions(rows, self._folder)
        truth = scored_annotations(self._name)
        if any(problem.kind == "no annotations" for problem in truth.problems):
            logging.getLogger("detectron2").info("%s has no annotations: not scored", self._name)
            return {}
        results = {}
        if proposals:
            results["box_proposals"] = proposal_recall(proposals, truth)
        if seen or not proposals:
            tasks = [t for t in TASKS if t in (seen or self._expected)]
            results |= score_tasks(
                truth, rows, tasks, self._edges, img_ids, self._sigmas, limit=self._limit
            )
        log_metrics(results)
        return results


_PROPOSAL_AREAS = {"": "all", "s": "small", "m": "medium", "l": "large"}


def proposal_recall(proposals: list[dict], truth: Annotations) -> dict[str, float]:
    """Compute the average recall of 100 and of 1000 region proposals per image.

    Args:
        proposals: one dictionary `{"image_id": id, "proposals": Instances}` for each image.
        truth: annotations of the dataset.

    Returns:
        Percentages `AR@100`, `ARs@100`, ..., `ARl@1000`.
    """
    numbers = image_numbers(truth)
    numbered = [row | {"image_id": numbers[row["image_id"]]} for row in proposals]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = coco_contents(truth, "bbox")
        coco.createIndex()
    return {
        f"AR{suffix}@{limit}": 100
        * _evaluate_box_proposals(numbered, coco, area=area, limit=limit)["ar"].item()
        for limit in (100, 1000)
        for suffix, area in _PROPOSAL_AREAS.items()
    }


def gather(part: Any, distributed: bool = True) -> list | None:
    """Gather `part` of all processes in the main process, and return None in other processes."""
    if not distributed:
        return [part]
    comm.synchronize()
    parts = comm.gather(part, dst=0)
    return parts if comm.is_main_process() else None


def save_predictions(rows: list[dict], folder: str | Path) -> None:
    """Write predictions to `coco_instances_results.json`, for `robust-backbones evaluate`."""
    with atomic(Path(folder) / PREDICTIONS) as temporary:
        temporary.write_text(json.dumps(rows), encoding="utf-8")


def score_tasks(
    truth: Annotations,
    rows: list[dict],
    tasks: Iterable[str],
    edges: Sequence[float] = (),
    image_ids: Iterable[int] | None = None,
    sigmas: Sequence[float] = (),
    source: str = "the predictions",
    limit: int | None = None,
) -> dict[str, dict]:
    """Score several tasks, and return `{task: metrics}`.

    A mask task is skipped with a warning if the annotations have no masks. A keypoint task is
    skipped if the annotations have no keypoints. For the arguments, see `coco_scores.score`.
    """
    results = {}
    if excluded := sum(problem.kind in UNLISTED for problem in truth.problems):
        logging.getLogger(__name__).warning(
            "%s: %d annotations of unlisted images or categories were excluded",
            *(truth.source, excluded),
        )
    for task in tasks:
        if task != "bbox" and truth.has("box") and not truth.has(TASKS[task]):
            logging.getLogger(__name__).warning(
                "%s has no %s: task '%s' was not scored", truth.source, TASKS[task], task
            )
            continue
        results[task] = score(truth, rows, task, edges, image_ids, sigmas, source, limit)
    return results
