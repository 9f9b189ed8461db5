"""Write an image folder as WebDataset shards, which the module `shards` reads."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

from classification.datasets.folders import find_layout
from classification.datasets.label_tables import is_table, list_images
from classification.datasets.shard_index import INDEX, write_index
from classification.datasets.shards import LABEL
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic

# Seed for the order of images. The order mixes the classes, because the shuffle buffer of training
# is too small to mix them.
SEED = 2020


def write_shards(
    folder: str | Path,
    output: str | Path,
    images_per_shard: int,
    progress: Callable[[str], None] = print,
) -> Path:
    """Copy the image files of a folder, unchanged and in random order, into tar files.

    Args:
        folder: folder with `train/<class>/<image>`, and optionally `test/...` or `val/...`; or
            images without splits, as for the dataset `folder`.
        output: folder for `train-000000.tar`, ..., `test-000000.tar`, ... and `shards.json`.
        images_per_shard: number of images per shard, at least 1; the last shard may have fewer.
        progress: function that is called with one line per shard.

    Returns:
        Path of `shards.json`. It is written last, so its presence means that all shards are
        complete.

    Raises:
        UserError: the folder has a different layout, or `output` already contains shards.
    """
    folder, output = Path(folder), Path(output)
    if (output / INDEX).exists() or next(output.glob("*.tar"), None):
        raise UserError(f"{output}: already contains shards. Choose another folder.")
    sizes: dict[str, dict[str, int]] = {}
    classes: list[str] = []
    notes: set[str] = set()
    for split in _splits(folder):
        found = list_images(split, folder, divide=True)
        images = [
            (found.folder / n, label) for n, label in zip(found.names, found.labels, strict=True)
        ]
        mixed = random.Random(SEED).sample(images, len(images))
        classes = found.class_names
        for note in set(found.notes) - notes:  # both splits may have the same note
            progress(note)
        notes |= set(found.notes)
        sizes[split] = {}
        for number, first in enumerate(range(0, len(mixed), images_per_shard)):
            name = f"{split}-{number:06d}.tar"
            chosen = mixed[first : first + images_per_shard]
            _write_shard(output / name, chosen)
            sizes[split][name] = len(chosen)
            progress(f"{name}: {len(chosen)} images")
    return write_index(output, classes, sizes)


def _splits(folder: Path) -> list[str]:
    """Return `train`, and `test` if the folder has test images or is divided."""
    divided = is_table(folder) or not (layout := find_layout(folder)).splits
    return ["train", "test"] if divided or "test" in layout.splits else ["train"]


def _write_shard(path: Path, images: list[tuple[Path, int]]) -> None:
    """Write one shard. It stores no times or owners, so equal images give identical files."""
    with atomic(path) as temporary, tarfile.open(temporary, "w") as archive:
        for number, (image, label) in enumerate(images):
            extension = image.suffix.lower().lstrip(".")
            for name, data in ((extension, image.read_bytes()), (LABEL, b"%d" % label)):
                entry = tarfile.TarInfo(f"{number:08d}.{name}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
