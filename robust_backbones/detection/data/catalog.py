"""Read the annotations of registered datasets, for the check and for evaluation."""

from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode, PolygonMasks
from detectron2.utils.file_io import PathManager
from pycocotools import mask as coco_mask

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data.annotations import (
    HUGE,
    Annotations,
    Image,
    Object,
    Problem,
    unique,
)
from robust_backbones.detection.data.coco_annotations import read_coco
from robust_backbones.detection.data.custom import CustomDataset
from robust_backbones.detection.data.registry import check_dataset
from robust_backbones.detection.data.semantic_masks import mask_of, read_masks
from robust_backbones.detection.data.voc_annotations import read_voc


def annotations_of(name: str) -> Annotations:
    """Read the annotation files of a registered dataset, including invalid annotations.

    Without files, the annotations are read from Detectron2's dictionaries.

    Raises:
        UserError: the dataset is unknown, or a file is missing or not in its format.
    """
    check_dataset(name)
    return _read_files(name) or from_catalog(name)


def has_annotation_files(name: str) -> bool:
    """Return whether a registered dataset has files in COCO's or VOC's format, or semantic masks.

    Datasets with other evaluators, such as LVIS and panoptic data, have other formats.
    """
    meta = MetadataCatalog.get(name)
    files = (meta.get(key) for key in ("source", "json_file", "dirname", "sem_seg_root"))
    return meta.get("evaluator_type") in ("coco", "pascal_voc", "sem_seg") and any(files)


def scored_annotations(name: str) -> Annotations:
    """Return the annotations of a registered dataset that predictions are compared with.

    They are the annotations of the files, or the dictionaries of a repaired dataset. The registered
    class names replace the names in a COCO file.

    Raises:
        UserError: a file cannot be read, or `from_catalog` cannot convert the dataset.
    """
    if subset := MetadataCatalog.get(name).get("subset"):
        found = scored_annotations(subset.whole)
        found.images = [image for image in found.images if image.id in subset.ids]
        found.source = name
        return found
    repaired = MetadataCatalog.get(name).get("repaired", False)
    found = (not repaired and _read_files(name)) or from_catalog(name)
    if _dataset_ids(name):
        names, own = _class_names(name), dict(zip(found.ids, found.classes, strict=True))
        found.classes = list(unique({key: str(names.get(key, own[key])) for key in own}).values())
    return found


def _read_files(name: str) -> Annotations | None:
    """Read the files of a registered dataset. Return None if the metadata have no files."""
    meta = MetadataCatalog.get(name)
    source: CustomDataset | None = meta.get("source")
    if source is not None:
        found = source.read(list(meta.thing_classes) or None)
    elif meta.get("evaluator_type") == "sem_seg" and meta.get("sem_seg_root"):
        roots = (meta.image_root, meta.sem_seg_root)
        images, masks = (Path(PathManager.get_local_path(root)) for root in roots)
        zero = meta.get("reduce_zero_label", False)
        found = read_masks(images, masks, list(meta.stuff_classes), zero)
    elif meta.get("json_file"):
        folder = meta.get("image_root")
        file = Path(PathManager.get_local_path(meta.json_file))
        found = read_coco(None if folder is None else Path(folder), file)
    elif meta.get("dirname"):
        # Detectron2's reader drops the flag `difficult`.
        root = Path(PathManager.get_local_path(meta.dirname))
        found = read_voc(root, meta.split, list(meta.thing_classes))
    else:
        return None
    found.source = name
    return found


def from_catalog(name: str) -> Annotations:
    """Convert a registered dataset's dictionaries.

    Detectron2's own conversion to COCO's format is not used for two reasons. It writes a file that
    it reuses after the data have changed, and it moves keypoints by half a pixel on each call.

    Raises:
        UserError: an image has no `image_id`, or a box is neither XYXY nor XYWH in pixels.
    """
    ids, names = _dataset_ids(name), _class_names(name)
    found = Annotations(name, list(unique(names).values()), list(names))
    indices = {key: index for index, key in enumerate(names)}
    seen = set()
    for item in DatasetCatalog.get(name):
        if "image_id" not in item:
            raise UserError(f"dataset '{name}': an image has no image_id. Give each image its own.")
        key, file = item["image_id"], Path(item.get("file_name", ""))
        if key in seen:
            found.problems.append(Problem("duplicate id", "", f"two images have id {key!r}"))
        seen.add(key)
        image = Image(key, file, item.get("width") or 0, item.get("height") or 0)
        if "sem_seg_file_name" in item and "annotations" not in item:
            image.mask = mask_of(item)
        found.images.append(image)
        for position, annotation in enumerate(item.get("annotations", ())):
            category = annotation["category_id"]
            thing = _object(annotation, indices.get(ids.get(category, category)), name)
            image.objects.append(thing)
            if thing.box is None:
                text = f"{thing.label(position, found.classes)}: bbox is {annotation['bbox']}"
                found.problems.append(Problem("no box", image.name, text))
    return found


def _object(annotation: dict, index: int | None, name: str) -> Object:
    """Convert a Detectron2 annotation. Its area equals the area in Detectron2's conversion."""
    mode = annotation["bbox_mode"]
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        raise UserError(f"dataset '{name}': boxes must be XYXY_ABS or XYWH_ABS.")
    x0, y0, x1, y1 = (float(v) for v in annotation["bbox"])
    given = [x0, y0, x1 - x0, y1 - y0]
    if mode == BoxMode.XYWH_ABS:
        given, x1, y1 = [x0, y0, x1, y1], x0 + x1, y0 + y1
    finite = abs(x0) + abs(y0) + abs(x1) + abs(y1) < HUGE
    thing = Object(
        index,
        (x0, y0, x1, y1) if finite else None,
        given if finite else [],
        finite and min(given[2:]) <= 0,
        area=given[2] * given[3],
        crowd=bool(annotation.get("iscrowd", 0)),
        difficult=bool(annotation.get("difficult", 0)),
        segmentation=annotation.get("segmentation") or None,
    )
    if isinstance(thing.segmentation, list):
        thing.area = float(PolygonMasks([thing.segmentation]).area()[0])
    elif thing.segmentation:
        thing.area = float(coco_mask.area(thing.segmentation))
    if "keypoints" in annotation:
        # COCO stores pixel indices. Detectron2 stores positions in the image, larger by 0.5.
        points = np.array(annotation["keypoints"], float).reshape(-1, 3) - [0.5, 0.5, 0]
        thing.keypoints = points.flatten().tolist()
        thing.num_keypoints = annotation.get("num_keypoints", int((points[:, 2] > 0).sum()))
    return thing


def _dataset_ids(name: str) -> dict:
    """Return `{class index of the model: id in the dataset}`; empty if index and id are equal."""
    mapping = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id") or {}
    return {index: key for key, index in mapping.items()}


def _class_names(name: str) -> dict:
    """Return `{id in the dataset: class name}`, in the order of the model."""
    ids = _dataset_ids(name)
    names = MetadataCatalog.get(name).get("thing_classes") or []
    return {ids.get(index, index): text for index, text in enumerate(names)}


def to_dataset_ids(rows: list[dict], name: str) -> None:
    """Replace the class indices of predictions by the ids in the dataset, in place.

    Raises:
        UserError: a prediction has a class that the dataset does not have.
    """
    ids = _dataset_ids(name)
    for row in rows if ids else ():
        if row["category_id"] not in ids:
            raise UserError(
                f"dataset '{name}': a prediction has class {row['category_id']}, but there are "
                f"{len(ids)} classes. Set MODEL.ROI_HEADS.NUM_CLASSES to {len(ids)}."
            )
        row["category_id"] = ids[row["category_id"]]
