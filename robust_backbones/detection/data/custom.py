"""Custom datasets, such as `NAME=voc:ROOT:SPLIT`; see `core.dataset_forms`.

The configuration lists them in `DATASETS.CUSTOM`. Therefore, every process of a run uses the same
data, and so does every repetition of the run.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from robust_backbones.core.dataset_forms import FORMS, SYNTAX
from robust_backbones.core.errors import UserError
from robust_backbones.core.paths import expand
from robust_backbones.detection.data.annotations import Annotations, Image, Object
from robust_backbones.detection.data.coco_annotations import read_coco, read_coco_classes
from robust_backbones.detection.data.segmentations import compressed
from robust_backbones.detection.data.semantic_masks import IGNORED, read_masks, to_dict
from robust_backbones.detection.data.voc_annotations import read_voc
from robust_backbones.detection.data.voc_layout import find_layout, read_split
from robust_backbones.detection.data.yolo_annotations import read_yolo


@dataclass(frozen=True)
class Kind:
    """A format of annotations.

    Attributes:
        read: function that reads a dataset, given its two paths, and the class names in order or
            None for the names in the files.
        read_classes: as `read`, but may return no images.
        lists_classes: whether the files list the classes in order.
        evaluator_type: Detectron2's name of the metrics.
    """

    read: Callable[[Path, str, list[str] | None], Annotations]
    read_classes: Callable[[Path, str, list[str] | None], Annotations]
    lists_classes: bool
    evaluator_type: str


def _yolo(file: Path, split: str, _: object) -> Annotations:
    return read_yolo(file, split)


def _mask(images: Path, masks: str, classes: list[str] | None) -> Annotations:
    return read_masks(images, Path(masks), classes)


KINDS = {
    "coco": Kind(
        lambda folder, file, _: read_coco(folder, Path(file)),
        lambda folder, file, _: read_coco_classes(Path(file)),
        True,
        "coco",
    ),
    "voc": Kind(read_voc, read_voc, False, "pascal_voc"),
    "yolo": Kind(_yolo, _yolo, True, "coco"),
    "mask": Kind(_mask, _mask, True, "sem_seg"),
}


@dataclass(frozen=True)
class CustomDataset:
    """A dataset that the user describes by its name, format and paths.

    Attributes:
        name: name under which the dataset is registered.
        kind: format of the annotations, a key of `KINDS`.
        folder: folder of the images (COCO, masks) or the dataset (VOC), or data.yaml (YOLO).
        listing: annotation file (COCO), split (VOC, YOLO), or folder of the masks.
    """

    name: str
    kind: str
    folder: str
    listing: str

    def __str__(self) -> str:
        return f"{self.name}={self.kind}:{self.folder}:{self.listing}"

    def split_rule(self) -> str:
        """Return how the images were chosen; empty if the files of the dataset list them."""
        if self.kind != "voc":
            return ""
        return read_split(find_layout(Path(self.folder)), self.listing).rule

    def read(self, classes: list[str] | None = None) -> Annotations:
        """Read the annotations, including invalid ones.

        Args:
            classes: class names in order, for VOC folders and for masks without `classes.txt`. None
                to use the names in the annotations, sorted, or the indices in the masks. Other
                kinds ignore this.

        Raises:
            UserError: see `read_coco`, `read_voc`, `read_yolo` and `read_masks`.
        """
        return KINDS[self.kind].read(Path(self.folder), self.listing, classes)

    def read_classes(self, classes: list[str] | None = None) -> Annotations:
        """Read class names and ids, with the arguments and errors of `read`. Images may be absent.

        A COCO file may have a million objects, and a run needs its classes several times.
        """
        return KINDS[self.kind].read_classes(Path(self.folder), self.listing, classes)


def is_path(text: str) -> bool:
    """Return whether the text describes a custom dataset and not a registered one.

    Names of registered datasets contain no `=`, `:` or `/`.
    """
    return bool(set(text) & set("=:/"))


def parse_dataset(text: str) -> CustomDataset:
    """Parse the description of a custom dataset.

    Raises:
        UserError: the text has none of the forms in `FORMS`, or the name contains `:` or `/`.
    """
    name, equals, path = text.partition("=")
    kind, _, rest = path.partition(":")
    folder, colon, listing = rest.rpartition(":")
    if not (name and equals and kind in FORMS and folder and colon and listing):
        raise UserError(f"dataset '{text}' is not a name and path. Give {SYNTAX}.")
    if set(name) & set(":/"):  # `is_path` would mistake the name for a path
        raise UserError(f"dataset '{text}': NAME must not contain ':' or '/'. Give {SYNTAX}.")
    return CustomDataset(name, kind, expand(folder), expand(listing))


def name_datasets(cfg: CfgNode) -> None:
    """Move custom datasets in `DATASETS.TRAIN` and `TEST` to `CUSTOM`, and replace them by name.

    Raises:
        UserError: two datasets have the same name. One would replace the other silently, such as
            the test data the training data.
    """
    for split in ("TRAIN", "TEST"):
        cfg.DATASETS.CUSTOM = [*cfg.DATASETS.CUSTOM, *filter(is_path, cfg.DATASETS[split])]
        cfg.DATASETS[split] = tuple(text.split("=")[0] for text in cfg.DATASETS[split])
    sources: dict[str, CustomDataset] = {}
    for source in map(parse_dataset, cfg.DATASETS.CUSTOM):
        other = sources.setdefault(source.name, source)
        if other != source:
            raise UserError(
                f"two datasets are named '{source.name}': {other} and {source}. Give each dataset "
                "its own name."
            )


def prepare_custom(cfg: CfgNode, train: bool, given: Sequence[str] = ()) -> None:
    """Register the datasets of `DATASETS.CUSTOM`, and adapt the model to their classes.

    If the run uses a custom dataset, set `DATASETS.CLASSES` and the heads' number of classes.
    Otherwise, change nothing.

    Args:
        cfg: configuration, changed in place.
        train: whether the run uses `DATASETS.TRAIN`.
        given: keys that the user gave on the command line.

    Raises:
        UserError: an entry of `DATASETS.CUSTOM` or a file of a dataset is invalid, the datasets
            have different classes, or the user gave another number of classes.
    """
    sources = {source.name: source for source in map(parse_dataset, cfg.DATASETS.CUSTOM)}
    used = [sources[name] for name in _used_names(cfg, train) if name in sources]
    if not used:
        return
    classes = list(cfg.DATASETS.CLASSES) or _find_classes(list(sources.values()))
    for source in used:
        if rule := source.split_rule():
            logging.getLogger(__name__).warning("dataset '%s': %s", source.name, rule)
        found = source.read_classes(classes).classes
        if found != classes:
            raise UserError(
                f"dataset '{source.name}' has different classes ({shown(found)}) than the run "
                f"({shown(classes)}). All datasets of a run must have the same, in the same order: "
                "of the category ids in COCO files, of 'names' in YOLO files, of classes.txt."
            )
    folded = Counter(name.casefold() for name in classes)
    if alike := [name for name in classes if folded[name.casefold()] > 1]:
        logging.getLogger(__name__).warning(
            "the classes %s differ only in case. They are separate classes", ", ".join(alike)
        )
    cfg.DATASETS.CLASSES = classes
    sections = ("SEM_SEG_HEAD",) if used[0].kind == "mask" else ("ROI_HEADS", "RETINANET")
    for section in sections:
        key, number = f"MODEL.{section}.NUM_CLASSES", cfg.MODEL[section].NUM_CLASSES
        if number != len(classes) and key in given:
            raise UserError(
                f"{key} is {number}, but the datasets have {shown(classes)}. Omit it. The "
                "number of classes is read from the datasets."
            )
        cfg.MODEL[section].NUM_CLASSES = len(classes)
    register_custom(cfg)


def _used_names(cfg: CfgNode, train: bool) -> list[str]:
    return [*(cfg.DATASETS.TRAIN if train else ()), *cfg.DATASETS.TEST]


def _find_classes(sources: list[CustomDataset]) -> list[str]:
    """Return the class names of the first dataset whose files list them.

    If all datasets are VOC folders, return all names in their annotations, sorted.
    """
    for source in sources:
        if KINDS[source.kind].lists_classes:
            return source.read_classes().classes
    return sorted({name for source in sources for name in source.read_classes().classes})


def shown(names: list[str]) -> str:
    """Return the number of classes and their first names, for messages."""
    more = f" and {len(names) - 8} more" if names[8:] else ""
    return f"{len(names)}: {', '.join(map(str, names[:8]))}{more}"


def register_custom(cfg: CfgNode) -> None:
    """Register the datasets of `DATASETS.CUSTOM` with Detectron2, in this process."""
    for source in map(parse_dataset, cfg.DATASETS.CUSTOM):
        if source.name in DatasetCatalog:
            if MetadataCatalog.get(source.name).get("source") is None:
                raise UserError(
                    f"dataset '{source.name}' is registered already. Choose another name."
                )
            DatasetCatalog.remove(source.name)
            MetadataCatalog.remove(source.name)
        classes, repair = list(cfg.DATASETS.CLASSES), cfg.DATASETS.REPAIR
        load = partial(load_dicts, source, classes, repair, cfg.MODEL.MASK_ON)
        DatasetCatalog.register(source.name, load)
        # Evaluators compare predictions with the repaired annotations.
        meta = dict(thing_classes=classes, source=source, repaired=repair)
        if source.kind == "mask":  # Detectron2's evaluator reads these two
            meta |= dict(stuff_classes=classes, ignore_label=IGNORED)
        if source.kind == "coco" and not repair:
            meta |= dict(json_file=source.listing, image_root=source.folder)
        if source.kind == "coco":
            ids = source.read_classes().ids
            meta["thing_dataset_id_to_contiguous_id"] = {k: i for i, k in enumerate(ids)}
        MetadataCatalog.get(source.name).set(
            evaluator_type=KINDS[source.kind].evaluator_type, **meta
        )


def load_dicts(
    source: CustomDataset, classes: list[str], repair: bool, masks: bool = False
) -> list[dict]:
    """Return the images of a dataset as Detectron2's dictionaries.

    Args:
        source: custom dataset.
        classes: class names, in order.
        repair: whether to remove boxes with zero area and clip the others at the image border. If
            false, the data must have no faults; see `validate.refuse_faults`.
        masks: whether the detector predicts masks. Repairing then also removes objects with invalid
            masks.
    """
    dicts, changed = [], 0
    for image in source.read(classes).images:
        if image.mask:
            dicts.append(to_dict(image))
            continue
        objects = image.objects
        if repair:
            objects, count = repair_boxes(image, masks)
            changed += count
        dicts.append(
            {
                "file_name": str(image.file),
                "image_id": image.id,
                "width": image.width,
                "height": image.height,
                "annotations": [_annotation(thing) for thing in objects],
            }
        )
    if changed:
        logging.getLogger(__name__).warning(
            "dataset '%s': %d boxes clipped or removed (DATASETS.REPAIR)", source.name, changed
        )
    return dicts


def repair_boxes(image: Image, masks: bool) -> tuple[list[Object], int]:
    """Clip boxes at the image border, and remove objects without a usable box or mask.

    These are objects without a box, or with a box that is thinner than a pixel in the image.

    Args:
        image: annotated image.
        masks: whether to remove objects with an invalid mask as well.

    Returns:
        The remaining objects, changed in place, and the number of clipped or removed objects.
    """
    kept, changed = [], 0
    for thing in image.objects:
        if thing.box is None or thing.empty or thing.is_tiny() or masks and thing.mask_fault:
            changed += 1
            continue
        x0, y0, x1, y1 = thing.box
        clipped = max(x0, 0.0), max(y0, 0.0), min(x1, image.width), min(y1, image.height)
        if not (clipped[2] > clipped[0] and clipped[3] > clipped[1]):
            changed += 1
            continue
        changed += clipped != thing.box
        thing.box = clipped
        if not thing.is_tiny():
            kept.append(thing)
    return kept, changed


def _annotation(thing: Object) -> dict:
    # `refuse_faults` checks this.
    assert thing.class_index is not None and thing.box is not None
    annotation = {
        "category_id": thing.class_index,
        "bbox": list(thing.box),
        "bbox_mode": BoxMode.XYXY_ABS,
        "iscrowd": int(thing.crowd),
    }
    if thing.difficult:
        annotation["difficult"] = 1
    if thing.segmentation is not None:
        annotation["segmentation"] = compressed(thing.segmentation)
    return annotation
