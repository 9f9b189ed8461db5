"""CIFAR-10 and CIFAR-100: the official binary and Python files, or images as JPEG or PNG files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classification.datasets import image_cache
from robust_backbones.checkpoint import array_pickles
from robust_backbones.core.errors import UserError

SIZE = 32
PIXELS = 3 * SIZE * SIZE  # bytes of an image: red, green, blue plane


@dataclass(frozen=True)
class Layout:
    """Where the official files keep what.

    Attributes:
        folder: that the archive unpacks to.
        files: split -> files.
        names: file of the class names.
        key: of labels (binary, int: which of the label bytes; Python, bytes: which entry).
        names_key: of the class names in `names` (Python only).
        label_bytes: before each image (binary only).
    """

    folder: str
    files: dict[str, tuple[str, ...]]
    names: str
    key: Any
    names_key: bytes = b""
    label_bytes: int = 0


_FIVE = tuple(f"data_batch_{i}" for i in range(1, 6))
BINARY = {
    "cifar10": Layout(
        "cifar-10-batches-bin",
        {"train": tuple(f"{f}.bin" for f in _FIVE), "test": ("test_batch.bin",)},
        "batches.meta.txt",
        key=0,
        label_bytes=1,
    ),
    "cifar100": Layout(
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        "fine_label_names.txt",
        key=1,
        label_bytes=2,
    ),  # the first is coarse
}
PYTHON = {
    "cifar10": Layout(
        "cifar-10-batches-py",
        {"train": _FIVE, "test": ("test_batch",)},
        "batches.meta",
        key=b"labels",
        names_key=b"label_names",
    ),
    "cifar100": Layout(
        "cifar-100-python",
        {"train": ("train",), "test": ("test",)},
        "meta",
        key=b"fine_labels",
        names_key=b"fine_label_names",
    ),
}

Contents = tuple[Tensor, Tensor, tuple[str, ...]]


def read_cifar10(split: str, root: str | Path) -> Contents:
    """See `read`."""
    return read("cifar10", split, root)


def read_cifar100(split: str, root: str | Path) -> Contents:
    """See `read`; the 100 fine classes."""
    return read("cifar100", split, root)


def read(name: str, split: str, root: str | Path) -> Contents:
    """Official files in `root` or in their own folder below it; else an image folder or tar file.

    Returns:
        images `(N, 3, 32, 32)` uint8, labels `(N,)` int64, class names.

    Raises:
        UserError: none of these, or a file that is not what its name says.
    """
    root = Path(root)
    for table, reader in ((BINARY, _read_binary), (PYTHON, _read_python)):
        layout = table[name]
        for folder in (root / layout.folder, root):
            # `train` of the Python files is a file, that of image folders a folder.
            if all((folder / file).is_file() for file in (*layout.files[split], layout.names)):
                try:
                    images, labels, names = reader(folder, layout, split)
                    _check_labels(labels, len(names))
                except UserError:
                    raise
                except (LookupError, TypeError, ValueError, AttributeError) as error:
                    raise UserError(
                        f"{folder} does not hold the official files ({error!r})."
                    ) from None
                images = torch.from_numpy(np.ascontiguousarray(images)).view(-1, 3, SIZE, SIZE)
                return images, torch.from_numpy(labels.astype(np.int64)), names
    try:
        return image_cache.read(split, root, SIZE)
    except UserError as error:
        folders = f"{BINARY[name].folder}/ or {PYTHON[name].folder}/"
        raise UserError(
            f"{error} The official files are understood too: {root}/{folders}"
        ) from None


def _read_binary(
    folder: Path, layout: Layout, split: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    blocks = []
    for file in layout.files[split]:
        data = np.fromfile(folder / file, np.uint8)
        if not len(data) or len(data) % (layout.label_bytes + PIXELS):
            raise UserError(
                f"{folder / file} has {len(data)} bytes, no whole number of images; fetch it again."
            )
        blocks.append(data.reshape(-1, layout.label_bytes + PIXELS))
    rows = np.concatenate(blocks)
    names = (folder / layout.names).read_text(encoding="utf-8").split()
    return rows[:, layout.label_bytes :], rows[:, layout.key], tuple(names)


def _read_python(
    folder: Path, layout: Layout, split: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    batches = [_unpickle(folder / file) for file in layout.files[split]]
    names = _unpickle(folder / layout.names)
    images = np.concatenate([batch[b"data"] for batch in batches])
    labels = np.concatenate([np.asarray(batch[layout.key]) for batch in batches])
    names = tuple(name.decode() for name in names[layout.names_key])
    if images.dtype != np.uint8 or images.shape != (len(labels), PIXELS):
        raise ValueError(f"images of shape {images.shape}, {len(labels)} labels")
    return images, labels, names


def _check_labels(labels: np.ndarray, classes: int) -> None:
    if labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels {labels.min()} to {labels.max()} of {classes} classes")


def _unpickle(path: Path) -> dict:
    try:
        return array_pickles.load(path, encoding="bytes")
    except Exception as error:  # a broken pickle can raise anything; nothing of ours runs in there
        raise UserError(
            f"{path} is refused: not a pickle of plain arrays ({error}). Use the binary version of "
            "the dataset."
        ) from None
