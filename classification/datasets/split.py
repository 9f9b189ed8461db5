"""One split of a dataset, opened: its images by number, its labels, and what identifies it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_jpeg

from classification import transforms
from robust_backbones.core.errors import UserError
from robust_backbones.core.images import check_size, readable

SUBSET_SEED = 2020  # of --limit and of the held-out part: the same images in every run
READERS = 8  # files that are hashed at a time


@dataclass(frozen=True)
class Files:
    """Images that stay on the disk.

    Attributes:
        root: folder.
        names: `(N,)` bytes, paths below it. One array, not a million objects: counting references
            to those would copy them into each loading process.
    """

    root: Path
    names: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> Path:
        return self.root / os.fsdecode(self.names[i])

    def __getitem__(self, i: int) -> Image.Image:
        """An RGB image.

        Raises:
            UserError: unreadable.
        """
        return read_image(self.path(i), self.path(i))

    def fast(self, i: int, shorter: int) -> Tensor | Image.Image:
        """The same, see `read_fast`."""
        return read_fast(self.path(i), shorter)

    def fingerprint(self, labels: Tensor) -> str:
        """SHA-256 (hex) of names, sizes (bytes) and labels, sorted by name."""
        digest, numbers = hashlib.sha256(), labels.numpy()
        for i in np.argsort(self.names, kind="stable"):
            size = _size(self.path(i))
            digest.update(b"%s\0%d\0%d\n" % (self.names[i], size, numbers[i]))
        return digest.hexdigest()

    def content_digest(self, labels: Tensor) -> str:
        """SHA-256 (hex) of the bytes of all files and of the labels, in their order."""
        with ThreadPoolExecutor(READERS) as pool:  # hashing lets other threads run
            digests = pool.map(lambda i: _file_digest(self.path(i)), range(len(self)))
            whole = hashlib.sha256(b"".join(digests))
        whole.update(labels.numpy().astype("<i8").tobytes())
        return whole.hexdigest()


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
        downscale: the shorter side of images is first reduced to so many pixels, so that no finer
            detail is left (the paper's Section 4.3); None: images stay as they are.
        decode: `exact`, or `fast`, of JPEG files: see `read_fast`.
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
    downscale: int | None = None
    decode: str = "exact"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor | Image.Image, int]:
        """An image, `(3, H, W)` or a PIL RGB image of any size, and its label."""
        return self._image(i), int(self.labels[i])

    def _image(self, i: int) -> Any:
        # A random crop may take a part of the image only: twice the test view's pixels are enough.
        shorter = round(2 * transforms.TEST_SCALE * self.image_size)
        if self.decode == "fast" and isinstance(self.images, Files):
            image = self.images.fast(i, shorter)
        else:
            image = self.images[i]
        return transforms.reduced(image, self.downscale) if self.downscale else image

    def read(self, indices: Tensor) -> Tensor | Iterator[Image.Image]:
        """The images of those numbers: `(n, 3, H, W)`, or one by one where they are files."""
        if not isinstance(self.images, Tensor):
            return (self._image(i) for i in indices.tolist())
        if self.downscale and len(indices):
            return torch.stack([self._image(i) for i in indices.tolist()])
        return self.images[indices]

    def fingerprint(self) -> str:
        """SHA-256 (hex): equal for equal images, labels and order; the same on any machine."""
        if isinstance(self.images, Tensor):
            return fingerprint(self.images, self.labels)
        return self.images.fingerprint(self.labels)

    def content_digest(self) -> str:
        """SHA-256 (hex) of every byte of the images, and of the labels: reads all of them."""
        if isinstance(self.images, Tensor):
            return fingerprint(self.images, self.labels)
        return self.images.content_digest(self.labels)

    def subset(self, indices: Tensor) -> Source:
        """The same with only those images, in that order."""
        if isinstance(self.images, Tensor):
            images = self.images[indices]
        else:
            images = dataclasses.replace(self.images, names=self.images.names[indices.numpy()])
        return dataclasses.replace(self, images=images, labels=self.labels[indices])


def _size(path: Path) -> int:
    with _told(path):
        return path.stat().st_size


def _file_digest(path: Path) -> bytes:
    with _told(path):
        return hashlib.sha256(path.read_bytes()).digest()


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def read_image(file: Any, name: object) -> Image.Image:
    """Decode to RGB.

    Args:
        file: path or open file.
        name: what an error calls it.

    Raises:
        UserError: not an image that Pillow can read whole.
    """
    with readable(name), Image.open(file) as image:
        check_size(image)
        return image.convert("RGB")


def read_fast(path: Path, shorter: int) -> Tensor | Image.Image:
    """Decode a JPEG to RGB by torchvision, or, if its shorter side has twice as many pixels as
    `shorter` or more, at a half, quarter or eighth of its size, which the format offers.

    Returns:
        `(3, H, W)` uint8, which `transforms` resizes as a tensor: at full size a level or so away
        from what `read_image` leads to; benchmarks/decoding.py measures it. Other formats: as
        `read_image`.

    Raises:
        UserError: unreadable.
    """
    with readable(path):
        with Image.open(path) as image:
            check_size(image)
            if image.format != "JPEG" or image.mode not in ("RGB", "L"):
                return read_image(path, path)
            times = min(image.size) // shorter
        contents = path.read_bytes()
        if times >= 2:
            return tv_tensors.Image(_reduced_jpeg(contents, times))
        code = torch.frombuffer(bytearray(contents), dtype=torch.uint8)
        return tv_tensors.Image(decode_jpeg(code, mode=ImageReadMode.RGB))


def _reduced_jpeg(contents: bytes, times: int) -> Tensor:
    """`(3, H, W)` uint8 RGB, a half, quarter or eighth as wide and high; at most `times` less.

    The pixels are those of Pillow's `draft`, a fifth sooner.
    """
    import cv2  # only here: it is slow to import

    flags = {
        8: cv2.IMREAD_REDUCED_COLOR_8,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        2: cv2.IMREAD_REDUCED_COLOR_2,
    }
    flag = next(flag for factor, flag in flags.items() if factor <= times)
    pixels = cv2.imdecode(np.frombuffer(contents, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ValueError("damaged")
    return torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)


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


def held_out(labels: Tensor, fraction: float, seed: int = SUBSET_SEED + 1) -> Tensor:
    """`(N,)` bool: the part of each class, at least one image of it, that is kept from training.

    Args:
        labels: `(N,)` int64.
        fraction: in [0, 1).
        seed: of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = labels.numpy()[order]
    mask = np.zeros(len(order), bool)
    for label in np.unique(shuffled):
        at = order[shuffled == label]
        mask[at[: max(1, round(fraction * len(at)))]] = True
    return torch.from_numpy(mask)
