"""Register a subset of a dataset's images as a new dataset.

A new dataset is needed because evaluators count every image of a dataset, even if the detector did
not process it.
"""

from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from robust_backbones.core.errors import UserError

# The index of an image in its dataset, and its Detectron2 dict.
Item = tuple[int, dict]

# Metadata that describe all images of a dataset, and do not apply to a subset.
_NOT_KEPT = ("name", "json_file", "dirname", "sem_seg_root", "source", "subset")
# Seed of the held-out images. It is fixed, so that all runs hold out the same images.
HELD_OUT_SEED = 0


@dataclass(frozen=True)
class Subset:
    """Metadata `subset` of a registered subset.

    Attributes:
        whole: name of the dataset that contains the images.
        ids: ids of the images.
        rule: how the images were chosen.
    """

    whole: str
    ids: frozenset
    rule: str


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


def register(name: str, items: list[Item]) -> str:
    """Register chosen images of a dataset as a new dataset.

    Args:
        name: name of the dataset.
        items: chosen images, the output of `choose`.

    Returns:
        The name of the new dataset, or `name` if all images were chosen.
    """
    if len(items) == len(DatasetCatalog.get(name)):
        return name
    return _register(name, f"{name}_{len(items)}_images", items, "chosen at random")


def _register(whole: str, name: str, items: list[Item], rule: str) -> str:
    meta = MetadataCatalog.get(whole).as_dict()
    kept = {key: value for key, value in meta.items() if key not in _NOT_KEPT}
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():  # registered earlier in this process
            catalog.remove(name)
    dicts = [item for _, item in items]
    DatasetCatalog.register(name, lambda: dicts)
    subset = Subset(
        whole, frozenset(item.get("image_id", item["file_name"]) for item in dicts), rule
    )
    MetadataCatalog.get(name).set(**kept, subset=subset)
    return name


def hold_out(cfg: CfgNode) -> CfgNode:
    """Replace the training and test sets by the parts that `DATASETS.HELD_OUT` describes.

    Each training set is divided at random into two new datasets, `<name>_rest` to train on, and
    `<name>_held_out` to evaluate on. The parts depend only on the dataset and the fraction.

    Args:
        cfg: configuration whose datasets are registered; it is not changed.

    Returns:
        The configuration of the parts, or `cfg` if nothing is held out.

    Raises:
        UserError: a part of a training set would be empty.
    """
    share = cfg.DATASETS.HELD_OUT
    if not share:
        return cfg
    rest, held_out = [], []
    for name in cfg.DATASETS.TRAIN:
        total = len(DatasetCatalog.get(name))
        count = round(share * total)
        if not 0 < count < total:
            raise UserError(
                f"DATASETS.HELD_OUT is {share:g}, which is {count} of the {total} images of "
                f"dataset '{name}'. Choose a fraction that leaves images in both parts."
            )
        held = choose(name, count, HELD_OUT_SEED)
        chosen = {index for index, _ in held}
        others = [item for item in choose(name, None, 0) if item[0] not in chosen]
        rule = f"of the {total} images of '{name}', by a random split with seed {HELD_OUT_SEED}"
        held_out.append(_register(name, f"{name}_held_out", held, f"{count} {rule}"))
        rest.append(_register(name, f"{name}_rest", others, f"{total - count} {rule}"))
    divided = cfg.clone()
    divided.defrost()
    divided.DATASETS.TRAIN, divided.DATASETS.TEST = tuple(rest), tuple(held_out)
    divided.freeze()
    return divided
