"""Your own data by path: `NAME=coco:IMAGES:ANNOTATIONS.json` or `NAME=voc:ROOT:SPLIT`.

The list stands in `DATASETS.OWN`, so that every process of a run, and whoever repeats it, finds the
same data.
"""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as coco_mask

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data.annotations import (
    Annotations,
    Image,
    Object,
    read_coco,
    read_voc,
)

KINDS = {"coco": "IMAGES:ANNOTATIONS.json", "voc": "ROOT:SPLIT"}
FORMS = " or ".join(f"NAME={kind}:{rest}" for kind, rest in KINDS.items())


@dataclass(frozen=True)
class Source:
    """A data set of the user's: its name, `coco` or `voc`, and the two parts of its path."""

    name: str
    kind: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.name}={self.kind}:{self.where}:{self.what}"

    def read(self, classes: list[str] | None = None) -> Annotations:
        """Its annotations as they stand in the files.

        Args:
            classes: order of the classes of a VOC folder, which has no list of its own.

        Raises:
            UserError: see `read_coco` and `read_voc`.
        """
        if self.kind == "coco":
            return read_coco(Path(self.where), Path(self.what))
        return read_voc(Path(self.where), self.what, classes)


def is_own(text: str) -> bool:
    """Whether a text is meant as the user's own data: no registered name has such characters."""
    return bool(set(text) & set("=:/"))


def parse(text: str) -> Source:
    """A data set from its text.

    Raises:
        UserError: not of a known form.
    """
    name, equals, path = text.partition("=")
    kind, _, rest = path.partition(":")
    where, colon, what = rest.rpartition(":")
    if not (name and equals and kind in KINDS and where and colon and what):
        raise UserError(f"data set '{text}' is not understood; give {FORMS}.")
    return Source(name, kind, where, what)


def prepare(cfg: CfgNode, train: bool) -> None:
    """Register the data sets of `DATASETS.OWN`, and fit the model to their classes.

    Sets `DATASETS.CLASSES`, and with it the number of classes of the heads, if the run's data are
    own ones.

    Args:
        train: whether `DATASETS.TRAIN` is going to be used.

    Raises:
        UserError: a data set is not understood or damaged, or two have different classes.
    """
    sources = {source.name: source for source in map(parse, cfg.DATASETS.OWN)}
    used = [sources[name] for name in _names(cfg, train) if name in sources]
    if not used:
        return
    classes = list(cfg.DATASETS.CLASSES) or _classes(list(sources.values()))
    for source in used:
        found = source.read(classes).classes
        if found != classes:
            raise UserError(
                f"data set '{source.name}' has the classes {_shown(found)}, but the run has "
                f"{_shown(classes)}; all data sets of a run need the same, in the same order."
            )
    cfg.DATASETS.CLASSES = classes
    for heads in (cfg.MODEL.ROI_HEADS, cfg.MODEL.RETINANET):
        if heads.NUM_CLASSES != len(classes):
            heads.NUM_CLASSES = len(classes)
    register(cfg)


def _names(cfg: CfgNode, train: bool) -> list[str]:
    return [*(cfg.DATASETS.TRAIN if train else ()), *cfg.DATASETS.TEST]


def _classes(sources: list[Source]) -> list[str]:
    """Of COCO files their own list; of VOC folders all names that occur in any of them, sorted."""
    for source in sources:
        if source.kind == "coco":
            return source.read().classes
    return sorted({name for source in sources for name in source.read().classes})


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if names[8:] else ""
    return f"{len(names)}: {', '.join(map(str, names[:8]))}{more}"


def register(cfg: CfgNode) -> None:
    """Make the data sets of `DATASETS.OWN` known to Detectron2, in this process."""
    for source in map(parse, cfg.DATASETS.OWN):
        if source.name in DatasetCatalog:
            if MetadataCatalog.get(source.name).get("source") is None:
                raise UserError(
                    f"data set '{source.name}' is registered already; choose another name."
                )
            DatasetCatalog.remove(source.name)
            MetadataCatalog.remove(source.name)
        classes, repair = list(cfg.DATASETS.CLASSES), cfg.DATASETS.REPAIR
        DatasetCatalog.register(source.name, partial(load, source, classes, repair))
        meta = dict(thing_classes=classes, source=source)
        if source.kind == "voc":
            meta |= dict(dirname=source.where, split=source.what, year=2012)
        elif not repair:  # else the evaluator takes the repaired ones
            meta |= dict(json_file=source.what, image_root=source.where)
        if source.kind == "coco":
            ids = source.read().ids
            meta["thing_dataset_id_to_contiguous_id"] = {k: i for i, k in enumerate(ids)}
        MetadataCatalog.get(source.name).set(
            evaluator_type={"voc": "pascal_voc"}.get(source.kind, source.kind), **meta
        )


def load(source: Source, classes: list[str], repair: bool) -> list[dict]:
    """The images of a data set as Detectron2's dictionaries.

    Args:
        repair: leave out boxes without area, cut the others at the image's edge; else the data are
            taken to be sound (see `data_check.refuse`).
    """
    dicts, changed = [], 0
    for image in source.read(classes).images:
        objects = image.objects
        if repair:
            objects, count = repaired(image)
            changed += count
        dicts.append(
            {
                "file_name": str(image.file),
                "image_id": image.id,
                "width": image.width,
                "height": image.height,
                "annotations": [_annotation(thing, classes) for thing in objects],
            }
        )
    if changed:
        logging.getLogger(__name__).warning(
            "data set '%s': boxes cut or left out (DATASETS.REPAIR): %d", source.name, changed
        )
    return dicts


def repaired(image: Image) -> tuple[list[Object], int]:
    """Objects with an area inside the image, cut at its edge; and how many that changed."""
    kept, changed = [], 0
    for thing in image.objects:
        mask = thing.segmentation
        if thing.box is None or isinstance(mask, list) and not polygons(mask):
            changed += 1
            continue
        x0, y0, x1, y1 = thing.box
        cut = max(x0, 0.0), max(y0, 0.0), min(x1, image.width), min(y1, image.height)
        if thing.empty or not (cut[2] > cut[0] and cut[3] > cut[1]):
            changed += 1
            continue
        changed += cut != thing.box
        thing.box = cut
        kept.append(thing)
    return kept, changed


def _annotation(thing: Object, classes: list[str]) -> dict:
    assert thing.name is not None and thing.box is not None  # checked data have both
    annotation = {
        "category_id": classes.index(thing.name),
        "bbox": list(thing.box),
        "bbox_mode": BoxMode.XYXY_ABS,
        "iscrowd": int(thing.crowd),
    }
    if thing.difficult:
        annotation["difficult"] = 1
    if isinstance(thing.segmentation, list):
        annotation["segmentation"] = polygons(thing.segmentation)
    elif thing.segmentation is not None:
        annotation["segmentation"] = _compressed(thing.segmentation)
    return annotation


def polygons(segmentation: list) -> list[list[float]]:
    """Those `[x, y, x, y, ...]` of a mask that have three corners at least."""
    return [part for part in segmentation if len(part) >= 6 and len(part) % 2 == 0]


def _compressed(mask: dict) -> dict:
    """Run lengths as the bytes that pycocotools works with, however the file has them."""
    if isinstance(mask["counts"], list):
        return coco_mask.frPyObjects(mask, *mask["size"])
    return mask
