"""COCO evaluation of a registered data set: Detectron2's metrics, by a faster engine."""

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
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BoxMode, PolygonMasks
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from pycocotools import mask as coco_mask

from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic
from robust_backbones.detection.data import coco_files
from robust_backbones.detection.evaluation import proposal_recall
from robust_backbones.detection.evaluation import tables as score_tables
from robust_backbones.detection.evaluation.coco_scores import score

PREDICTIONS = "coco_instances_results.json"
_FIELDS = {"pred_masks": "segm", "pred_keypoints": "keypoints"}


class CocoEvaluator(DatasetEvaluator):
    """What Detectron2's `COCOEvaluator` gives, with its keys, and AR; its predictions file, too.

    What differs: without any prediction the metrics are 0 and not NaN or absent; a data set that
    has no `json_file` is converted in memory, so no stale file of an earlier run is used and
    its metadata stay as they are; `instances_predictions.pth` is not written; boxes without masks
    in the truth give box metrics only, with a warning, where Detectron2 stops.

    Args:
        name: of the registered data set.
        folder: where `coco_instances_results.json` goes; None for nowhere.
        expected: tasks that are scored if no image was seen; else the predictions tell.
        edges, sigmas: see `coco_scores.score`.
        distributed: gather the predictions of all processes; only the main one has results.
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
        """Forget what was processed."""
        self._rows, self._proposals, self._seen = [], [], set()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take a model's outputs, `{"instances"}` or `{"proposals"}`, for `{"image_id"}`s."""
        for image, output in zip(inputs, outputs, strict=True):
            if "instances" in output:
                instances = output["instances"].to(torch.device("cpu"))
                self._seen |= {"bbox"} | {t for f, t in _FIELDS.items() if instances.has(f)}
                self._rows += instances_to_coco_json(instances, image["image_id"])
            if "proposals" in output:
                proposals = output["proposals"].to(torch.device("cpu"))
                self._proposals.append({"image_id": image["image_id"], "proposals": proposals})

    def evaluate(self, img_ids: Iterable[int] | None = None) -> dict:
        """`{task: {metric: percent}}`, see `coco_scores.score`; `{}` on other processes, and where
        the annotation file has no annotations (a test set).

        Args:
            img_ids: score these images only; None for all.
        """
        gathered = gather((self._rows, self._proposals, self._seen), self._distributed)
        if gathered is None:
            return {}
        rows = list(itertools.chain.from_iterable(part[0] for part in gathered))
        proposals = list(itertools.chain.from_iterable(part[1] for part in gathered))
        seen = set().union(*(part[2] for part in gathered))
        _to_dataset_ids(rows, self._name)
        if self._folder and (rows or not proposals):
            save(rows, self._folder)
        contents = annotations(self._name)
        if "annotations" not in contents:
            logging.getLogger("detectron2").info("%s has no annotations to score with", self._name)
            return {}
        results = {}
        if proposals:
            results["box_proposals"] = proposal_recall.score(proposals, contents)
        if seen or not proposals:
            truth = coco_files.truth(contents, self._name)
            tasks = [t for t in coco_files.TASKS if t in (seen or self._expected)]
            results |= score_tasks(truth, rows, tasks, self._edges, img_ids, self._sigmas)
        score_tables.log(results)
        return results


def gather(part: Any, distributed: bool = True) -> list | None:
    """`part` of every process, on the main one; None on others."""
    if not distributed:
        return [part]
    comm.synchronize()
    parts = comm.gather(part, dst=0)
    return parts if comm.is_main_process() else None


def save(rows: list[dict], folder: str | Path) -> None:
    """Write `coco_instances_results.json`, which `robust-backbones evaluate` reads."""
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
    """`{task: metrics}`; masks and keypoints only where the truth has any."""
    results = {}
    for task in tasks:
        if task != "bbox" and truth.annotations and not truth.has(coco_files.TASKS[task]):
            logging.getLogger(__name__).warning(
                "%s has no %s: task '%s' is not scored", truth.source, coco_files.TASKS[task], task
            )
            continue
        results[task] = score(truth, rows, task, edges, image_ids, sigmas, source)
    return results


def annotations(name: str) -> dict:
    """A registered data set in the form of a COCO annotation file: its `json_file`, if it has one,
    with the class names that it is registered with.

    Raises:
        UserError: see `coco_files.load_json`, `from_catalog`.
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
    """A registered data set's dictionaries in the form of a COCO annotation file. What is
    difficult (own VOC data say so) is a crowd.

    Detectron2's own conversion keeps a file, which it uses again when the data have changed, and
    moves keypoints by half a pixel whenever it is called.

    Raises:
        UserError: an image has no `image_id`, or a box is neither XYXY nor XYWH in pixels.
    """
    ids = _dataset_ids(name)
    images, rows = [], []
    for item in DatasetCatalog.get(name):
        if "image_id" not in item:
            raise UserError(f"an image of data set '{name}' has no image_id; give each its own.")
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
    """Detectron2's form of an annotation as COCO's, areas as Detectron2 counts them; no ids."""
    box = [float(v) for v in annotation["bbox"]]
    if annotation["bbox_mode"] == BoxMode.XYXY_ABS:
        box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    elif annotation["bbox_mode"] != BoxMode.XYWH_ABS:
        raise UserError(f"boxes of data set '{name}' must be XYXY_ABS or XYWH_ABS.")
    crowd = annotation.get("iscrowd", 0) or annotation.get("difficult", 0)
    row = {"bbox": box, "area": box[2] * box[3], "iscrowd": int(crowd)}
    part = annotation.get("segmentation")
    if part:
        polygons = isinstance(part, list)
        shape = PolygonMasks([part]).area()[0] if polygons else coco_mask.area(part)
        row |= {"segmentation": part, "area": float(shape)}
    if "keypoints" in annotation:
        # COCO's are indices of pixels; Detectron2's are places in the image.
        points = np.array(annotation["keypoints"], float).reshape(-1, 3) - [0.5, 0.5, 0]
        count = annotation.get("num_keypoints", int((points[:, 2] > 0).sum()))
        row |= {"keypoints": points.flatten().tolist(), "num_keypoints": count}
    return row


def _dataset_ids(name: str) -> dict:
    """`{place of a class in the model: its id in the data set}`; empty where they are the same."""
    mapping = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id") or {}
    return {place: key for key, place in mapping.items()}


def _class_names(name: str) -> dict:
    """`{id in the data set: class}`, in the model's order."""
    ids = _dataset_ids(name)
    names = MetadataCatalog.get(name).get("thing_classes") or []
    return {ids.get(place, place): text for place, text in enumerate(names)}


def _to_dataset_ids(rows: list[dict], name: str) -> None:
    ids = _dataset_ids(name)
    for row in rows if ids else ():
        if row["category_id"] not in ids:
            raise UserError(
                f"a prediction has class {row['category_id']}, but data set '{name}' has "
                f"{len(ids)} classes; set MODEL.ROI_HEADS.NUM_CLASSES to that."
            )
        row["category_id"] = ids[row["category_id"]]
