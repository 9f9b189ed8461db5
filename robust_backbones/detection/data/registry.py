"""Register the digit scenes and ADE20K, and check that the files of registered datasets exist."""

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES
from detectron2.data.datasets.pascal_voc import load_voc_instances

from robust_backbones.core.dataset_forms import SYNTAX
from robust_backbones.core.errors import UserError, choose_from
from robust_backbones.core.paths import expand
from robust_backbones.detection.data import digit_scenes, semantic_masks
from robust_backbones.detection.data.annotations import Image, Mask


def _register_digit_scenes() -> None:
    """Register `digit_scenes_{train,val}` in COCO's format, and the same scenes in other formats.

    `digit_scenes_voc_*` are in VOC's format. `digit_scenes_semantic_*` have semantic masks.
    """
    for split in digit_scenes.SPLITS:
        root = digit_scenes.folder()
        coco, voc = f"digit_scenes_{split}", f"digit_scenes_voc_{split}"
        DatasetCatalog.register(coco, lambda split=split, name=coco: _load_coco(split, name))
        MetadataCatalog.get(coco).set(
            json_file=str(root / digit_scenes.coco_file(split)),
            image_root=str(root / "JPEGImages"),
            evaluator_type="coco",
            thing_classes=list(digit_scenes.CLASSES),
        )
        DatasetCatalog.register(voc, lambda split=split: _load_voc(split))
        MetadataCatalog.get(voc).set(
            dirname=str(root),
            split=split,
            year=2012,
            evaluator_type="pascal_voc",
            thing_classes=list(digit_scenes.CLASSES),
        )
        _register_semantic(
            f"digit_scenes_semantic_{split}",
            partial(_load_semantic_scenes, split),
            list(digit_scenes.SEMANTIC_CLASSES),
        )


def _register_semantic(
    name: str, load: Callable[[], list[dict]], classes: list[str], **meta: Any
) -> None:
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        evaluator_type="sem_seg",
        thing_classes=classes,  # for the code that compares classes
        stuff_classes=classes,
        ignore_label=semantic_masks.IGNORED,
        **meta,
    )


def _register_ade20k() -> None:
    """Register `ade20k_{train,val}`, which read the published files.

    Detectron2's `ade20k_sem_seg_{train,val}` need masks that a script has converted.
    """
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"), "ADEChallengeData2016")
    names = [name.strip() for name in ADE20K_SEM_SEG_CATEGORIES]
    for split, folder in (("train", "training"), ("val", "validation")):
        name = f"ade20k_{split}"
        _register_semantic(
            name,
            partial(_load_masks, name),
            names,
            image_root=str(root / "images" / folder),
            sem_seg_root=str(root / "annotations" / folder),
            reduce_zero_label=True,
        )


def _load_masks(name: str) -> list[dict]:
    meta = MetadataCatalog.get(name)
    folders = Path(meta.image_root), Path(meta.sem_seg_root)
    found = semantic_masks.read_masks(*folders, meta.stuff_classes, meta.reduce_zero_label)
    return [semantic_masks.to_dict(image) for image in found.images]


def _load_semantic_scenes(split: str) -> list[dict]:
    root, side = digit_scenes.ensure(), digit_scenes.SIZE
    stems = (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
    masks = root / digit_scenes.MASKS
    return [
        semantic_masks.to_dict(
            Image(
                stem,
                root / "JPEGImages" / f"{stem}.jpg",
                *(side, side),
                mask=Mask(str(masks / f"{stem}.png")),
            )
        )
        for stem in stems
    ]


def _load_coco(split: str, name: str) -> list[dict]:
    root = digit_scenes.ensure()
    return load_coco_json(str(root / digit_scenes.coco_file(split)), str(root / "JPEGImages"), name)


def _load_voc(split: str) -> list[dict]:
    return load_voc_instances(str(digit_scenes.ensure()), split, list(digit_scenes.CLASSES))


def classes_of(names: tuple[str, ...]) -> list[str] | None:
    """Return the class names of the first registered dataset in `names`; None if unknown."""
    for name in names[:1]:
        DatasetCatalog.get(name)  # some datasets set thing_classes only when they are read
        return list(MetadataCatalog.get(name).get("thing_classes") or []) or None
    return None


def check_dataset(name: str) -> None:
    """Check that a dataset is registered and that its files exist.

    Raises:
        UserError: the dataset is not registered, or a file is missing.
    """
    if name not in DatasetCatalog:
        fix = choose_from(name, DatasetCatalog, f"For your own data, give {SYNTAX}.")
        raise UserError(f"dataset '{name}' is not registered. {fix}")
    if name.startswith("digit_scenes"):
        digit_scenes.ensure()
        return
    meta = MetadataCatalog.get(name)
    needed = []
    if "json_file" in meta.as_dict():
        needed = [Path(meta.json_file), Path(meta.image_root)]
    elif "sem_seg_root" in meta.as_dict() and meta.get("evaluator_type") == "sem_seg":
        needed = [Path(meta.image_root), Path(meta.sem_seg_root)]
    elif "dirname" in meta.as_dict():
        root = Path(meta.dirname)
        needed = [root / "ImageSets" / "Main" / f"{meta.split}.txt", root / "Annotations"]
        needed.append(root / "JPEGImages")
    for path in needed:
        if not path.exists():
            if source := meta.get("source"):
                raise UserError(f"dataset {source}: {path} does not exist. Correct the path.")
            base = os.path.abspath(expand(os.environ.get("DETECTRON2_DATASETS", "datasets")))
            raise UserError(
                f"dataset '{name}': {path} does not exist. Put the data into {base}, or set "
                "DETECTRON2_DATASETS to the folder that contains coco/, VOC2007/, VOC2012/, "
                "ADEChallengeData2016/."
            )


def fingerprint(name: str) -> dict:
    """Return the number of images of a registered dataset and a SHA-256 digest of its annotations.

    Returns:
        A dictionary with the keys `images` and `fingerprint`, and `split` if the images were
        chosen at random; see `CustomDataset.split_rule` and `Subset.rule`.
    """
    dicts = DatasetCatalog.get(name)
    rows = [[os.path.basename(d["file_name"]), _annotations(d)] for d in dicts]
    text = json.dumps(rows, sort_keys=True, default=str)
    found = {"images": len(dicts), "fingerprint": hashlib.sha256(text.encode()).hexdigest()}
    source, subset = map(MetadataCatalog.get(name).get, ("source", "subset"))
    rule = source.split_rule() if source else subset.rule if subset else ""
    return found | ({"split": rule} if rule else {})


def _annotations(item: dict) -> Any:
    """Return an image's annotations, or the digest of its semantic mask."""
    if "sem_seg_file_name" in item and "annotations" not in item:
        return semantic_masks.digest(semantic_masks.mask_of(item))
    return item.get("annotations", [])


_register_digit_scenes()
_register_ade20k()
