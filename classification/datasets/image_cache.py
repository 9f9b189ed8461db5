"""Small images decoded once: a folder or tar file of them as one array, kept in the cache."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from classification.datasets import folders
from classification.datasets.split import read_image
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic, cache_dir, locked, sha256
from robust_backbones.core.images import read_member

VERSION = 1  # raise it when a change here changes a pixel


def read(split: str, root: str | Path, size: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The images of a split of a folder or tar file, all of them `size` pixels wide and high.

    Args:
        split: train or test.
        root: a folder as in `folders`, or a `.tar`, `.tar.gz`, `.tar.xz` ... of one.
        size: height and width, pixels.

    Returns:
        images `(N, 3, size, size)` uint8, mapped from the cache, labels `(N,)`, class names.

    Raises:
        UserError: another layout, an unreadable image, or one of another size.
    """
    root = Path(root)
    key = _archive_key(root) if root.is_file() else _folder_key(root, split)
    place = cache_dir() / "decoded" / f"v{VERSION}-{key}-{size}"
    index = place / "index.json"
    if not index.exists():
        with locked(place.with_name(place.name + ".lock")):
            if not index.exists():  # else another process has been at it
                _decode(root, split, place, size)
    contents = json.loads(index.read_text(encoding="utf-8"))
    if split not in contents["labels"]:
        raise UserError(f"{root} has no {split} images; {folders.LAYOUT.format(root)}.")
    # Copy on write: processes share the memory, and torch gets an array that it may believe its own
    images = np.load(place / f"{split}.npy", mmap_mode="c")
    labels = torch.tensor(contents["labels"][split])
    return torch.from_numpy(images), labels, tuple(contents["classes"])


def _archive_key(root: Path) -> str:
    return sha256(root)[:32]


def _folder_key(root: Path, split: str) -> str:
    """Names, sizes and times of all files: a changed image is decoded anew."""
    files, labels, _ = folders.read_tree(split, root)
    digest = hashlib.sha256(f"{split}\0{root.resolve()}".encode())
    for i, label in enumerate(labels.tolist()):
        stat = files.path(i).stat()
        digest.update(b"%s\0%d\0" % (files.names[i], label))
        digest.update(b"%d\0%d\n" % (stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()[:32]


def _decode(root: Path, split: str, place: Path, size: int) -> None:
    """Write one array per split, and then, as the sign that all is there, the index."""
    if root.is_file():
        classes, arrays, labels = _decode_archive(root, size)
    else:
        files, found, classes = folders.read_tree(split, root)
        pixels = [_pixels(files[i], files.path(i), size) for i in range(len(files))]
        arrays, labels = {split: pixels}, {split: found.tolist()}
    for name, pixels in arrays.items():
        with atomic(place / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, np.stack(pixels))
            file.flush()
    with atomic(place / "index.json") as temporary:
        contents = {"source": str(root), "classes": classes, "labels": labels}
        temporary.write_text(json.dumps(contents), encoding="utf-8")


def _decode_archive(root: Path, size: int) -> tuple[list[str], dict[str, list], dict[str, list]]:
    """Class names; split -> images, in the order of `folders.read_tree`; split -> labels."""
    found: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    for split, name, file in _members(root):
        member = f"{root}: {split}/{name}"
        image = _pixels(read_image(file, member), member, size)
        folder, rest = name.split("/", 1)
        found.setdefault(split, {})[folder, rest] = image
    if not found:
        raise UserError(f"{root} has no images in class folders; {folders.LAYOUT.format('.')}.")
    names = {split: {name for name, _ in images} for split, images in found.items()}
    classes = sorted(set().union(*names.values()))
    for split, here in names.items():
        if missing := sorted(set(classes) - here):
            raise UserError(f"{root}: {split} lacks images of {', '.join(missing[:5])}.")
    arrays = {split: [images[key] for key in sorted(images)] for split, images in found.items()}
    labels = {
        split: [classes.index(name) for name, _ in sorted(images)]
        for split, images in found.items()
    }
    return classes, arrays, labels


def _members(root: Path) -> Iterator[tuple[str, str, object]]:
    """(split, `<class>/<image>`, open file) of each image of a tar file, in its own order."""
    splits = {name: split for split, names in folders.FOLDERS.items() for name in names}
    try:
        with tarfile.open(root, "r|*") as archive:
            for member in archive:
                # The tree may lie in a folder of its own.
                parts = member.name.removeprefix("./").split("/")
                at = next((i for i, part in enumerate(parts[:-2]) if part in splits), None)
                if member.isreg() and at is not None and folders.is_image(member.name):
                    data = io.BytesIO(read_member(archive, member))
                    yield splits[parts[at]], "/".join(parts[at + 1 :]), data
    except UserError:
        raise
    except Exception as error:  # of tarfile and of what unpacks
        raise UserError(f"{root} cannot be read as a tar file ({error}); fetch it again.") from None


def _pixels(image: Image.Image, name: object, size: int) -> np.ndarray:
    """`(3, size, size)` uint8."""
    if image.size != (size, size):
        raise UserError(
            f"{name} has {image.width}x{image.height} pixels; {size}x{size} are expected here."
        )
    return np.asarray(image).transpose(2, 0, 1)
