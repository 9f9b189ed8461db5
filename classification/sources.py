"""One split of a dataset, opened: its images by number, its labels, and what identifies it."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robust_backbones.errors import UserError

SUBSET_SEED = 2020  # of --limit and of the held-out part: the same images in every run


@dataclass(frozen=True)
class Files:
    """Images that stay on the disk.

    Attributes:
        root: folder.
        names: paths below it, with `/` on any system.
    """

    root: Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Image.Image:
        """An RGB image.

        Raises:
            UserError: unreadable.
        """
        return read_image(self.root / self.names[i], self.root / self.names[i])

    def fingerprint(self, labels: Tensor) -> str:
        """SHA-256 (hex) of names, sizes (bytes) and labels, sorted by name."""
        rows = sorted(zip(self.names, labels.tolist(), strict=True))
        digest = hashlib.sha256()
        for name, label in rows:
            size = (self.root / name).stat().st_size
            digest.update(f"{name}\0{size}\0{label}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Source:
    """One split of a dataset.

    Attributes:
        name, split: of the dataset.
        classes: number of classes.
        image_size: height and width that the transforms give, pixels.
        mean, std: RGB statistics that a classifier normalises with, for images in [0, 1].
        augmentation: the dataset's own, a key of `transforms.AUGMENTATIONS`.
        images: `(N, 3, H, W)` uint8 in [0, 255] or float32 in [0, 1], or `Files`.
        labels: `(N,)` int64.
        class_names: one per class.
    """

    name: str
    split: str
    classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str
    images: Tensor | Files
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor | Image.Image, int]:
        """An image, `(3, H, W)` or a PIL RGB image of any size, and its label."""
        return self.images[i], int(self.labels[i])

    def read(self, indices: Tensor) -> Tensor | list[Image.Image]:
        """The images of those numbers: `(n, 3, H, W)`, or a list where they are files."""
        if isinstance(self.images, Tensor):
            return self.images[indices]
        return [self.images[i] for i in indices.tolist()]

    def fingerprint(self) -> str:
        """SHA-256 (hex): equal for equal images, labels and order; the same on any machine."""
        if isinstance(self.images, Tensor):
            return fingerprint(self.images, self.labels)
        return self.images.fingerprint(self.labels)

    def subset(self, indices: Tensor) -> Source:
        """The same with only those images, in that order."""
        if isinstance(self.images, Tensor):
            images = self.images[indices]
        else:
            names = tuple(self.images.names[i] for i in indices.tolist())
            images = dataclasses.replace(self.images, names=names)
        return dataclasses.replace(self, images=images, labels=self.labels[indices])


def read_image(file, name) -> Image.Image:
    """Decode to RGB.

    Args:
        file: path or open file.
        name: what an error calls it.

    Raises:
        UserError: not an image that Pillow can read whole.
    """
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{name} cannot be read as an image ({error}); replace or remove it."
        ) from None


def fingerprint(images: Tensor, labels: Tensor) -> str:
    """SHA-256 (hex) of the shape, the float32 values in [0, 1] and the labels, in their order."""
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    for block in images.split(1000):
        values = block.float() / 255 if block.dtype == torch.uint8 else block
        digest.update(values.cpu().contiguous().numpy().astype("<f4").tobytes())
    digest.update(labels.cpu().contiguous().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def balanced(labels: Tensor, count: int) -> Tensor:
    """Numbers of `count` images, as many of each class as possible, always the same; sorted.

    Args:
        labels: `(N,)` int64.
        count: at most N.
    """
    order = np.random.default_rng(SUBSET_SEED).permutation(len(labels))
    shuffled = labels.numpy()[order]
    # How many of its class came before: all firsts of their classes, then all seconds, ...
    turn = np.empty(len(order), np.int64)
    for label in np.unique(shuffled):
        at = np.flatnonzero(shuffled == label)
        turn[at] = np.arange(len(at))
    chosen = order[np.argsort(turn, kind="stable")[:count]]
    return torch.from_numpy(np.sort(chosen))


def held_out(labels: Tensor, fraction: float) -> Tensor:
    """`(N,)` bool: the part of each class, at least one image of it, that is kept from training."""
    order = np.random.default_rng(SUBSET_SEED + 1).permutation(len(labels))
    shuffled = labels.numpy()[order]
    mask = np.zeros(len(order), bool)
    for label in np.unique(shuffled):
        at = order[shuffled == label]
        mask[at[: max(1, round(fraction * len(at)))]] = True
    return torch.from_numpy(mask)
