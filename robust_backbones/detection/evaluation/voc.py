"""Pascal VOC evaluation of a registered data set, any classes and any year; COCO's metrics, too."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils.file_io import PathManager

from robust_backbones.detection.data import coco_files
from robust_backbones.detection.data.annotations import read_voc
from robust_backbones.detection.evaluation import coco_scores, voc_scores
from robust_backbones.detection.evaluation import tables as score_tables
from robust_backbones.detection.evaluation.coco import from_catalog, gather, save


class VocEvaluator(DatasetEvaluator):
    """What Detectron2's `PascalVOCDetectionEvaluator` gives, and more; see `score`.

    What differs: any list of classes and any year; scores and boxes are not rounded to 3 and 1
    decimals; classes without objects are left out of the mean instead of making it NaN.

    Args:
        name: of the registered data set; its metadata give `dirname`, `split`, `thing_classes`
            and `year` (2012 if it has none).
        folder: where `coco_instances_results.json` goes, `category_id` counting the classes
            from 0; None for nowhere.
        edges: see `coco_scores.score`.
    """

    def __init__(self, name: str, folder: str | Path | None = None, edges: Sequence[float] = ()):
        self._name, self._folder, self._edges = name, folder, edges
        self.reset()

    def reset(self) -> None:
        """Forget what was processed."""
        self._rows = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take a model's outputs, `{"instances"}`, for images with `image_id`."""
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to(torch.device("cpu"))
            for field in ("pred_masks", "pred_keypoints"):  # VOC's boxes are scored
                if instances.has(field):
                    instances.remove(field)
            self._rows += instances_to_coco_json(instances, image["image_id"])

    def evaluate(self) -> dict:
        """`{"bbox": {metric: percent}}`, see `score`; `{}` on other processes."""
        gathered = gather(self._rows)
        if gathered is None:
            return {}
        rows = [row for part in gathered for row in part]
        if self._folder:
            save(rows, self._folder)
        results = {"bbox": score(self._name, rows, self._edges)}
        score_tables.log(results)
        return results


def score(
    name: str, rows: list[dict], edges: Sequence[float] = (), source: str = "the predictions"
) -> dict:
    """VOC's and COCO's metrics of a registered VOC data set, percent.

    Args:
        rows: predictions in COCO's result format; `image_id` is the name of the image's file
            without ending, `category_id` counts the classes from 0.

    Returns:
        The metrics of `voc_scores.score`; and those of `coco_scores.score`, `AP_coco` and so on,
        classes apart. There, difficult objects are crowds: detections mostly inside one are
        neither right nor wrong.

    Raises:
        UserError: an annotation cannot be read, or a prediction is wrong.
    """
    truth = coco_files.truth(annotations(name), name)
    coco = coco_scores.score(truth, rows, "bbox", edges, source=source)
    objects = [
        (row["image_id"], row["category_id"] - 1, *row["bbox"], not row["iscrowd"])
        for row in truth.annotations
    ]
    detections = [
        (truth.images[row["image_id"]]["id"], row["category_id"], *row["bbox"], row["score"])
        for row in rows
    ]
    classes, year = list(truth.classes.values()), MetadataCatalog.get(name).get("year") or 2012
    metrics = voc_scores.score(_boxes(objects), _boxes(detections), classes, int(year))
    return metrics | {f"{key}_coco": value for key, value in coco.items() if "-" not in key}


def annotations(name: str) -> dict:
    """A registered VOC data set in the form of a COCO annotation file; what is difficult is a
    crowd. Objects of other classes than the data set's are left out, as VOC does.

    Raises:
        UserError: see `read_voc`.
    """
    meta = MetadataCatalog.get(name)
    if meta.get("source") is not None:  # own data: they may be repaired
        return from_catalog(name)
    # Detectron2's loader does not say what is difficult.
    root = Path(PathManager.get_local_path(meta.dirname))
    found = read_voc(root, meta.split, list(meta.thing_classes))
    places = {name: place for place, name in enumerate(found.classes)}
    rows = []
    for image in found.images:
        for thing in image.objects:
            if thing.name not in places:
                continue
            assert thing.box is not None  # VOC's objects have one
            left, top, right, bottom = thing.box
            size = (right - left, bottom - top)
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": image.id,
                    "category_id": places[thing.name],
                    "bbox": [left, top, *size],
                    "area": size[0] * size[1],
                    "iscrowd": int(thing.difficult),
                }
            )
    return {
        "images": [{"id": image.id} for image in found.images],
        "categories": [{"id": place, "name": name} for name, place in places.items()],
        "annotations": rows,
    }


def _boxes(rows: list[tuple]) -> voc_scores.Boxes:
    """From (image, label, x, y, width, height, weight), COCO's way of counting pixels."""
    table = np.array(rows, float).reshape(len(rows), 7)
    corner, size = table[:, 2:4], table[:, 4:6]
    return voc_scores.Boxes(
        image=table[:, 0].astype(int),
        label=table[:, 1].astype(int),
        box=np.concatenate([corner + 1, corner + size], axis=1),
        weight=table[:, 6],
    )
