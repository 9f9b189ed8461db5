"""Register a subset of a dataset's images as a new dataset.

A new dataset is needed because evaluators count every image of a dataset, even if the detector did
not process it.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic, read_json

# The index of an image in its dataset, and its Detectron2 dict.
Item = tuple[int, dict]

# Metadata that describe all images of a dataset, and do not apply to a subset.
_NOT_KEPT = ("name", "json_file", "source")


def choose(name: str, wanted: int | None, seed: int) -> list[Item]:
    """Return all images of a registered dataset or a random subset, in the order of the dataset.

    Args:
        name: name of the dataset.
        wanted: number of images in the subset; None for all images.
        seed: seed for the random subset.

    Raises:
        UserError: `wanted` is below 1, or the dataset has fewer images.
    """
    items = list(enumerate(DatasetCatalog.get(name)))
    if wanted is None or wanted == len(items):
        return items
    if not 1 <= wanted <= len(items):
        raise UserError(
            f"--images is {wanted}, but '{name}' has {len(items)}. Give 1 to {len(items)}."
        )
    indices = np.random.default_rng(seed).permutation(len(items))[:wanted]
    return [items[index] for index in sorted(indices.tolist())]


def register(name: str, items: list[Item], folder: Path) -> str:
    """Register chosen images of a dataset as a new dataset, and write their annotations.

    Args:
        name: name of the dataset.
        items: chosen images, the output of `choose`.
        folder: folder for the annotation files.

    Returns:
        The name of the new dataset, or `name` if all images were chosen.

    Raises:
        UserError: the chosen images have no object of a VOC class, so VOC's mean AP is undefined.
    """
    if len(items) == len(DatasetCatalog.get(name)):
        return name
    meta = MetadataCatalog.get(name).as_dict()
    kept = {key: value for key, value in meta.items() if key not in _NOT_KEPT}
    for key, restrict in _FILES.items():
        if key in meta:
            kept |= restrict(meta, items, Path(folder))
    new = f"{name}_{len(items)}_images"
    for catalog in (DatasetCatalog, MetadataCatalog):
        if new in catalog.list():  # registered earlier in this process
            catalog.remove(new)
    dicts = [item for _, item in items]
    DatasetCatalog.register(new, lambda: dicts)
    MetadataCatalog.get(new).set(**kept)
    return new


def _coco(meta: dict, items: list[Item], folder: Path) -> dict:
    """Write a COCO file with the chosen images and all their annotations, including crowds.

    Returns:
        The metadata that change, `{"json_file": path}`.
    """
    contents = read_json(meta["json_file"])
    ids = {item["image_id"] for _, item in items}
    contents["images"] = [row for row in contents["images"] if row["id"] in ids]
    contents["annotations"] = [row for row in contents["annotations"] if row.get("image_id") in ids]
    path = folder / "instances.json"
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(contents), encoding="utf-8")
    return {"json_file": str(path)}


def _voc(meta: dict, items: list[Item], folder: Path) -> dict:
    """Write a VOC folder with the annotations of the chosen images.

    Returns:
        The metadata that change, `{"dirname": path}`.
    """
    present = {row["category_id"] for _, item in items for row in item["annotations"]}
    absent = [c for i, c in enumerate(meta["thing_classes"]) if i not in present]
    if absent:
        raise UserError(
            f"The {len(items)} chosen images have no {', '.join(absent)}, but VOC's AP is a mean "
            "over all classes. Use a larger --images."
        )
    stems = [item["image_id"] for _, item in items]
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    for stem in stems:
        shutil.copy(Path(meta["dirname"], "Annotations", f"{stem}.xml"), folder / "Annotations")
    with atomic(folder / "ImageSets" / "Main" / f"{meta['split']}.txt") as temporary:
        temporary.write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    return {"dirname": str(folder)}


# Metadata key for the path of the annotations -> function that writes the files of a subset.
# Evaluators convert datasets with neither key to COCO's format in memory.
_FILES: dict[str, Callable[[dict, list[Item], Path], dict]] = {"json_file": _coco, "dirname": _voc}
