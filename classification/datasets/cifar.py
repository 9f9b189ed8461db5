"""Read CIFAR-10 and CIFAR-100 from the official binary or Python files, or from image folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classification.datasets.image_cache import read_decoded
from classification.datasets.image_files import SplitContents
from robust_backbones.checkpoint import array_pickles
from robust_backbones.core.errors import UserError

SIZE = 32
PIXELS = 3 * SIZE * SIZE  # bytes per image: a red, a green and a blue plane


@dataclass(frozen=True)
class CifarFiles:
    """The files of one official archive.

    Attributes:
        folder: folder in the archive.
        files: names of the files of each split.
        names: name of the file with class names.
        key: index of the label byte (binary) or dictionary key of the labels (Python).
        names_key: key of the class names in `names` (Python only).
        label_bytes: number of label bytes before each image (binary only).
    """

    folder: str
    files: dict[str, tuple[str, ...]]
    names: str
    key: Any
    names_key: bytes = b""
    label_bytes: int = 0


_FIVE = tuple(f"data_batch_{i}" for i in range(1, 6))
BINARY = {
    "cifar10": CifarFiles(
        "cifar-10-batches-bin",
        {"train": tuple(f"{f}.bin" for f in _FIVE), "test": ("test_batch.bin",)},
        "batches.meta.txt",
        key=0,
        label_bytes=1,
    ),
    "cifar100": CifarFiles(
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        "fine_label_names.txt",
        key=1,  # byte 0 is the coarse label
        label_bytes=2,
    ),
}
PYTHON = {
    "cifar10": CifarFiles(
        "cifar-10-batches-py",
        {"train": _FIVE, "test": ("test_batch",)},
        "batches.meta",
        key=b"labels",
        names_key=b"label_names",
    ),
    "cifar100": CifarFiles(
        "cifar-100-python",
        {"train": ("train",), "test": ("test",)},
        "meta",
        key=b"fine_labels",
        names_key=b"fine_label_names",
    ),
}


def read_cifar(name: str, split: str, root: str | Path) -> SplitContents:
    """Read the official files in `root` or its official subfolder, else an image folder.

    Args:
        name: `cifar10` or `cifar100` (its 100 fine classes).
        split: `train` or `test`.
        root: folder of the official files, image folder, or tar file of an image folder.

    Returns:
        Images `(N, 3, 32, 32)` uint8, labels `(N,)` int64, and class names.

    Raises:
        UserError: there are no such files, or a file is damaged.
    """
    root = Path(root)
    for table, reader in ((BINARY, _read_binary), (PYTHON, _read_python)):
        layout = table[name]
        for folder in (root / layout.folder, root):
            # The Python archive of CIFAR-100 has a file `train`. An image folder has a folder
            # `train`.
            if all((folder / file).is_file() for file in (*layout.files[split], layout.names)):
                try:
                    images, labels, names = reader(folder, layout, split)
                    _check_labels(labels, len(names))
                except UserError:
                    raise
                except (LookupError, TypeError, ValueError, AttributeError) as error:
                    raise UserError(
                        f"{folder}: the files are not the official ones ({error!r}). Fetch them "
                        "again."
                    ) from None
                images = torch.from_numpy(np.ascontiguousarray(images)).view(-1, 3, SIZE, SIZE)
                return SplitContents(images, torch.from_numpy(labels.astype(np.int64)), names)
    try:
        return read_decoded(split, root, SIZE)
    except UserError as error:
        folders = f"{BINARY[name].folder}/ or {PYTHON[name].folder}/"
        raise UserError(f"{error} Official files must be in {root}/{folders}.") from None


def _read_binary(
    folder: Path, layout: CifarFiles, split: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    blocks = []
    for file in layout.files[split]:
        data = np.fromfile(folder / file, np.uint8)
        if not len(data) or len(data) % (layout.label_bytes + PIXELS):
            raise UserError(
                f"{folder / file}: {len(data)} bytes are not a whole number of images. Fetch it "
                "again."
            )
        blocks.append(data.reshape(-1, layout.label_bytes + PIXELS))
    rows = np.concatenate(blocks)
    names = (folder / layout.names).read_text(encoding="utf-8").split()
    return rows[:, layout.label_bytes :], rows[:, layout.key], tuple(names)


def _read_python(
    folder: Path, layout: CifarFiles, split: str
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
        raise ValueError(f"labels {labels.min()} to {labels.max()} for {classes} classes")


def _unpickle(path: Path) -> dict:
    try:
        return array_pickles.load(path, encoding="bytes")
    except Exception as error:  # a damaged pickle can raise any exception, but not run code
        raise UserError(
            f"{path}: rejected, because it is not a pickle of plain arrays ({error}). Use the "
            "binary version of the dataset."
        ) from None
