"""Some images of a registered data set, as a data set of its own: evaluators count each image of
a data set, whether a detector has seen it or not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic

# An image of a data set: its number there, and its Detectron2 dict.
Item = tuple[int, dict]


def choose(name: str, wanted: int | None, seed: int) -> list[Item]:
    """All images of a registered data set, or a random `wanted` of them, by number.

    Raises:
        UserError: the data set has fewer images.
    """
    items = list(enumerate(DatasetCatalog.get(name)))
    if wanted is None or wanted == len(items):
        return items
    if not 1 <= wanted <= len(items):
        raise UserError(
            f"--images is {wanted}, but '{name}' has {len(items)}; give 1 to {len(items)}."
        )
    numbers = np.random.default_rng(seed).permutation(len(items))[:wanted]
    return [items[number] for number in sorted(numbers.tolist())]


def register(name: str, items: list[Item], folder: Path) -> str:
    """Register chosen images of the data set `name`; its annotations go to `folder`.

    Args:
        items: as `choose` gives them.

    Returns:
        The name to evaluate under: `name` itself if all images were chosen.

    Raises:
        UserError: a VOC class has no object in the images, so that VOC's mean over classes is none.
    """
    if len(items) == len(DatasetCatalog.get(name)):
        return name
    meta = MetadataCatalog.get(name).as_dict()
    kept = {key: value for key, value in meta.items() if key not in ("name", "json_file")}
    for key, restrict in _FILES.items():
        if key in meta:
            kept |= restrict(meta, items, Path(folder))
    new = f"{name}_{len(items)}_images"
    for catalog in (DatasetCatalog, MetadataCatalog):
        if new in catalog.list():  # of an earlier choice in the same process
            catalog.remove(new)
    dicts = [item for _, item in items]
    DatasetCatalog.register(new, lambda: dicts)
    MetadataCatalog.get(new).set(**kept)
    return new


def _coco(meta: dict, items: list[Item], folder: Path) -> dict:
    """A COCO file with the chosen images and their annotations, crowds included."""
    with open(meta["json_file"], encoding="utf-8") as file:
        contents = json.load(file)
    ids = {item["image_id"] for _, item in items}
    contents["images"] = [row for row in contents["images"] if row["id"] in ids]
    contents["annotations"] = [row for row in contents["annotations"] if row["image_id"] in ids]
    path = folder / "instances.json"
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(contents), encoding="utf-8")
    return {"json_file": str(path)}


def _voc(meta: dict, items: list[Item], folder: Path) -> dict:
    """A VOC folder with the chosen images' annotations."""
    present = {row["category_id"] for _, item in items for row in item["annotations"]}
    absent = [c for i, c in enumerate(meta["thing_classes"]) if i not in present]
    if absent:
        raise UserError(
            f"the {len(items)} chosen images have no {', '.join(absent)}; VOC's AP is a mean over "
            "all classes, so give --images a larger number."
        )
    stems = [item["image_id"] for _, item in items]
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    for stem in stems:
        shutil.copy(Path(meta["dirname"], "Annotations", f"{stem}.xml"), folder / "Annotations")
    with atomic(folder / "ImageSets" / "Main" / f"{meta['split']}.txt") as temporary:
        temporary.write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    return {"dirname": str(folder)}


# Key of the metadata that evaluators read files by -> what the key is to be for a subset. A data
# set without either is one that Detectron2 turns into COCO form itself.
_FILES: dict[str, Callable[[dict, list[Item], Path], dict]] = {"json_file": _coco, "dirname": _voc}
