"""An image folder -> shards that can be read as streams; see `shards` for their layout."""

from __future__ import annotations

import contextlib
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

from classification.datasets import folders, shards
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic

SEED = 2020  # of the order: classes must be mixed, since a shuffle buffer sees few shards at a time


def write_shards(
    folder: str | Path,
    out: str | Path,
    images_per_shard: int,
    progress: Callable[[str], None] = print,
) -> Path:
    """Copy the images of `folder`, as they are and in random order, into tar files.

    Args:
        folder: `train/<class>/<image>`, and `test/...` or `val/...` if there is one.
        out: folder for `train-000000.tar`, ..., `test-000000.tar`, ... and `shards.json`.
        images_per_shard: at least 1; the last shard of a split has fewer.
        progress: called with a line per shard.

    Returns:
        The path of `shards.json`, which is written last: where it is, all is complete.

    Raises:
        UserError: another layout, an image type that shards cannot have, or `out` is in use.
    """
    folder, out = Path(folder), Path(out)
    if (out / shards.INDEX).exists() or next(out.glob("*.tar"), None):
        raise UserError(f"{out} holds shards already; choose another folder.")
    splits, classes = {}, ()
    for split in _splits(folder):
        files, labels, classes = folders.read_tree(split, folder)
        order = random.Random(SEED).sample(range(len(files)), len(files))
        splits[split] = {}
        for number, first in enumerate(range(0, len(order), images_per_shard)):
            name = f"{split}-{number:06d}.tar"
            chosen = order[first : first + images_per_shard]
            _write(out / name, [(files.path(i), int(labels[i])) for i in chosen])
            splits[split][name] = len(chosen)
            progress(f"{name}: {len(chosen)} images")
    index = {"version": shards.INDEX_VERSION, "classes": classes, "splits": splits}
    with atomic(out / shards.INDEX) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return out / shards.INDEX


def _splits(folder: Path) -> list[str]:
    found = []
    for split in folders.FOLDERS:
        with contextlib.suppress(UserError):
            folders.split_folder(folder, split)
            found.append(split)
    if "train" not in found:
        folders.split_folder(folder, "train")  # says what is expected
    return found


def _write(path: Path, images: list[tuple[Path, int]]) -> None:
    """One shard; times and owners are left out, so that equal images make equal files."""
    with atomic(path) as temporary, tarfile.open(temporary, "w") as archive:
        for number, (image, label) in enumerate(images):
            ending = image.suffix.lower().lstrip(".")
            if ending not in shards.IMAGES:
                raise UserError(
                    f"{image} cannot be put into a shard; convert it to one of: "
                    f"{', '.join(shards.IMAGES)}."
                )
            for name, data in ((ending, image.read_bytes()), (shards.LABEL, b"%d" % label)):
                entry = tarfile.TarInfo(f"{number:08d}.{name}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
