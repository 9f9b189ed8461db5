"""Evaluate a registered dataset with COCO's metrics, faster than Detectron2 does."""

import contextlib
import io
import itertools
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import _evaluate_box_proposals, instances_to_coco_json
from detectron2.structures import BoxMode, PolygonMasks
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic
from robust_backbones.detection.data import coco_files
from robust_backbones.detection.evaluation.coco_scores import score
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
        expected: tasks to score if no image was processed, keys of `coco_files.TASKS`.
        edges, sigmas: size buckets and keypoint sigmas; see `coco_scores.score`.
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
    ):
        self._name, self._folder, self._distributed = name, folder, distributed
        self._expected, self._edges, self._sigmas = tuple(expected), edges, sigmas
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
        _to_dataset_ids(rows, self._name)
        if self._folder and (rows or not proposals):
            save_predictions(rows, self._folder)
        contents = coco_annotations(self._name)
        if "annotations" not in contents:
            logging.getLogger("detectron2").info("%s has no annotations: not scored", self._name)
            return {}
        results = {}
        if proposals:
            results["box_proposals"] = proposal_recall(proposals, contents)
        if seen or not proposals:
            truth = coco_files.truth(contents, self._name)
            tasks = [t for t in coco_files.TASKS if t in (seen or self._expected)]
            results |= score_tasks(truth, rows, tasks, self._edges, img_ids, self._sigmas)
        log_metrics(results)
        return results


_PROPOSAL_AREAS = {"": "all", "s": "small", "m": "medium", "l": "large"}


def proposal_recall(proposals: list[dict], contents: dict) -> dict[str, float]:
    """Compute the average recall of 100 and of 1000 region proposals per image.

    Args:
        proposals: one dictionary `{"image_id": id, "proposals": Instances}` for each image.
        contents: contents of a COCO annotation file.

    Returns:
        Percentages `AR@100`, `ARs@100`, ..., `ARl@1000`.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = contents
        truth.createIndex()
    return {
        f"AR{suffix}@{limit}": 100
        * _evaluate_box_proposals(proposals, truth, area=area, limit=limit)["ar"].item()
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
    truth: coco_files.Truth,
    rows: list[dict],
    tasks: Iterable[str],
    edges: Sequence[float] = (),
    image_ids: Iterable[int] | None = None,
    sigmas: Sequence[float] = (),
    source: str = "the predictions",
) -> dict[str, dict]:
    """Score several tasks, and return `{task: metrics}`.

    A mask task is skipped with a warning if the annotations have no masks. A keypoint task is
    skipped if the annotations have no keypoints. For the arguments, see `coco_scores.score`.
    """
    results = {}
    for task in tasks:
        if task != "bbox" and truth.annotations and not truth.has(coco_files.TASKS[task]):
            logging.getLogger(__name__).warning(
                "%s has no %s: task '%s' was not scored", truth.source, coco_files.TASKS[task], task
            )
            continue
        results[task] = score(truth, rows, task, edges, image_ids, sigmas, source)
    return results


def coco_annotations(name: str) -> dict:
    """Return a registered dataset in the format of a COCO annotation file.

    If the metadata has a `json_file`, read it. The registered class names replace the names in the
    file.

    Raises:
        UserError: `json_file` cannot be read, or `from_catalog` cannot convert the dataset.
    """
    meta = MetadataCatalog.get(name)
    if "json_file" not in meta.as_dict():
        return from_catalog(name)
    contents = coco_files.load_json(PathManager.get_local_path(meta.json_file))
    names = _class_names(name)
    if _dataset_ids(name) and isinstance(contents, dict):
        for row in contents.get("categories", ()):
            row["name"] = names.get(row["id"], row.get("name", row["id"]))
    return contents


def from_catalog(name: str) -> dict:
    """Convert a registered dataset's dictionaries to the format of a COCO annotation file.

    Objects marked as difficult (custom VOC datasets) become crowds. Detectron2's own conversion is
    not used for two reasons. It writes a file that it reuses after the data have changed, and it
    moves keypoints by half a pixel on each call.

    Raises:
        UserError: an image has no `image_id`, or a box is neither XYXY nor XYWH in pixels.
    """
    ids = _dataset_ids(name)
    images, rows = [], []
    for item in DatasetCatalog.get(name):
        if "image_id" not in item:
            raise UserError(f"dataset '{name}': an image has no image_id. Give each image its own.")
        image = {key: item[key] for key in ("height", "width") if key in item}
        images.append(image | {"id": item["image_id"]})
        for annotation in item.get("annotations", ()):
            row = _row(annotation, name)
            category = annotation["category_id"]
            rows.append(
                row
                | {"id": len(rows) + 1, "image_id": item["image_id"]}
                | {"category_id": ids.get(category, category)}
            )
    categories = [{"id": key, "name": text} for key, text in _class_names(name).items()]
    return {"images": images, "categories": categories, "annotations": rows}


def _row(annotation: dict, name: str) -> dict:
    """Convert a Detectron2 annotation to COCO's format, without ids, with Detectron2's area."""
    box = [float(v) for v in annotation["bbox"]]
    if annotation["bbox_mode"] == BoxMode.XYXY_ABS:
        box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    elif annotation["bbox_mode"] != BoxMode.XYWH_ABS:
        raise UserError(f"dataset '{name}': boxes must be XYXY_ABS or XYWH_ABS.")
    crowd = annotation.get("iscrowd", 0) or annotation.get("difficult", 0)
    row = {"bbox": box, "area": box[2] * box[3], "iscrowd": int(crowd)}
    part = annotation.get("segmentation")
    if part:
        polygons = isinstance(part, list)
        shape = PolygonMasks([part]).area()[0] if polygons else coco_mask.area(part)
        row |= {"segmentation": part, "area": float(shape)}
    if "keypoints" in annotation:
        # COCO stores pixel indices. Detectron2 stores positions in the image, larger by 0.5.
        points = np.array(annotation["keypoints"], float).reshape(-1, 3) - [0.5, 0.5, 0]
        count = annotation.get("num_keypoints", int((points[:, 2] > 0).sum()))
        row |= {"keypoints": points.flatten().tolist(), "num_keypoints": count}
    return row


def _dataset_ids(name: str) -> dict:
    """Return `{class index of the model: id in the dataset}`; empty if index and id are equal."""
    mapping = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id") or {}
    return {index: key for key, index in mapping.items()}


def _class_names(name: str) -> dict:
    """Return `{id in the dataset: class name}`, in the order of the model."""
    ids = _dataset_ids(name)
    names = MetadataCatalog.get(name).get("thing_classes") or []
    return {ids.get(index, index): text for index, text in enumerate(names)}


def _to_dataset_ids(rows: list[dict], name: str) -> None:
    ids = _dataset_ids(name)
    for row in rows if ids else ():
        if row["category_id"] not in ids:
            raise UserError(
                f"dataset '{name}': a prediction has class {row['category_id']}, but there are "
                f"{len(ids)} classes. Set MODEL.ROI_HEADS.NUM_CLASSES to {len(ids)}."
            )
        row["category_id"] = ids[row["category_id"]]
