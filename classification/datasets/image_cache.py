"""Decode the small images of a folder or tar file once, and cache each split as an array."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from classification.datasets.folders import LAYOUT, is_image, list_tree
from classification.datasets.image_files import SplitContents
from classification.datasets.split_names import choose_splits, is_junk, split_of
from classification.datasets.tar_files import read_member
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic, cache_dir, locked, sha256
from robust_backbones.core.images import decode

VERSION = 3  # version of the cache; increase it if a change in this file changes images or pixels


def read_decoded(split: str, root: str | Path, size: int) -> SplitContents:
    """Read all images of a split from the cache. Decode and cache them first if necessary.

    Args:
        split: `train` or `test`.
        root: image folder as in `folders`, or a tar file of an image folder (`.tar`, `.tar.gz`,
            `.tar.xz`, ...).
        size: height and width of the images, pixels.

    Returns:
        Images `(N, 3, size, size)` uint8, memory-mapped, labels `(N,)` int64, and class names.

    Raises:
        UserError: the layout is wrong, or an image cannot be read or has a wrong size.
    """
    root = Path(root)
    key = sha256(root)[:32] if root.is_file() else _folder_key(root, split)
    folder = cache_dir() / "decoded" / f"v{VERSION}-{key}-{size}"
    index = folder / "index.json"
    if not index.exists():
        with locked(folder.with_name(folder.name + ".lock")):
            if not index.exists():  # another process may have decoded the images meanwhile
                _decode(root, split, folder, size)
    contents = json.loads(index.read_text(encoding="utf-8"))
    if split not in contents["labels"]:
        raise UserError(f"{root} has no {split} images. Expected {LAYOUT.format(root)}.")
    # Copy on write, so that processes share the memory. torch requires a writable array.
    images = np.load(folder / f"{split}.npy", mmap_mode="c")
    labels = torch.tensor(contents["labels"][split])
    origin = contents["origins"][split]
    return SplitContents(torch.from_numpy(images), labels, tuple(contents["classes"]), origin)


def _folder_key(root: Path, split: str) -> str:
    """Return a digest of the names, sizes, modification times and labels of all image files."""
    found = list_tree(split, root)
    digest = hashlib.sha256(f"{split}\0{root.resolve()}".encode())
    for name, label in zip(found.names, found.labels, strict=True):
        stat = (found.folder / name).stat()
        digest.update(b"%s\0%d\0" % (os.fsencode(name), label))
        digest.update(b"%d\0%d\n" % (stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()[:32]


def _decode(root: Path, split: str, folder: Path, size: int) -> None:
    """Write one array per split, and then the index file, which marks the cache as complete."""
    if root.is_file():
        classes, arrays, labels, origins = _decode_archive(root, size)
    else:
        found = list_tree(split, root)
        paths = [found.folder / name for name in found.names]
        arrays = {split: [_pixels(decode(path), path, size) for path in paths]}
        classes, labels, origins = found.class_names, {split: found.labels}, {split: found.origin}
    for name, pixels in arrays.items():
        with atomic(folder / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, np.stack(pixels))
            file.flush()
    with atomic(folder / "index.json") as temporary:
        contents = {"source": str(root), "classes": classes, "labels": labels, "origins": origins}
        temporary.write_text(json.dumps(contents), encoding="utf-8")


def _decode_archive(
    root: Path, size: int
) -> tuple[list[str], dict[str, list], dict[str, list], dict[str, str]]:
    """Return class names, and images, labels and origins by split, in the order of `list_tree`."""
    members: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    for top, name, file in _members(root):
        member = f"{root}: {top}/{name}"
        image = _pixels(decode(file, member), member, size)
        folder, rest = name.split("/", 1)
        members.setdefault(top, {})[folder, rest] = image
    if not members:
        raise UserError(f"{root} has no images in class folders. Expected {LAYOUT.format('.')}.")
    chosen, _ = choose_splits(members, root)
    found = {split: members[top] for split, top in chosen.items()}
    names = {split: {name for name, _ in images} for split, images in found.items()}
    classes = sorted(set().union(*names.values()))
    for split, present in names.items():
        if missing := sorted(set(classes) - present):
            raise UserError(f"{root}: {split} has no images of {', '.join(missing[:5])}.")
    arrays = {split: [images[key] for key in sorted(images)] for split, images in found.items()}
    labels = {
        split: [classes.index(name) for name, _ in sorted(images)]
        for split, images in found.items()
    }
    return classes, arrays, labels, {split: f"{top}/" for split, top in chosen.items()}


def _members(root: Path) -> Iterator[tuple[str, str, io.BytesIO]]:
    """Yield (split folder, `<class>/<image>`, file) of each image, in the order of the tar file."""
    try:
        with tarfile.open(root, "r|*") as archive:
            for member in archive:
                # The folders train/ and test/ may be inside another folder.
                parts = member.name.removeprefix("./").split("/")
                at = next((i for i, part in enumerate(parts[:-2]) if split_of(part)), None)
                if at is None or not member.isreg() or any(is_junk(p) for p in parts if p != ".."):
                    continue
                if is_image(member.name):
                    repeated = len(parts) > at + 3 and parts[at + 1].lower() == parts[at].lower()
                    name = "/".join(parts[at + 1 + repeated :])  # as in train/train/<class>/
                    yield parts[at], name, io.BytesIO(read_member(archive, member))
    except UserError:
        raise
    except Exception as error:  # errors of tarfile or a decompressor
        raise UserError(
            f"{root}: cannot be read as a tar file ({error}). Fetch it again."
        ) from None


def _pixels(image: Image.Image, name: object, size: int) -> np.ndarray:
    """Check the size of an image and return its pixels, `(3, size, size)` uint8."""
    if image.size != (size, size):
        raise UserError(
            f"{name}: the image has {image.width}x{image.height} pixels instead of {size}x{size}."
        )
    return np.asarray(image).transpose(2, 0, 1)
