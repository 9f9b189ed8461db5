"""Image files of a split, decoded when needed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_jpeg

from classification.datasets.label_tables import list_images
from robust_backbones.core.errors import UserError
from robust_backbones.core.images import (
    TURNS,
    Decoding,
    decode,
    decoding_errors,
    open_image,
    orientation,
)

HASH_THREADS = 8  # files that are hashed at the same time
# A network file system takes about 1 ms to return the size of a file, therefore requests overlap.
# Each thread gets SIZES files at a time, because a million tasks would take longer than the files.
SIZE_THREADS, SIZES = 32, 250
REDUCED_MODES = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}


@dataclass(frozen=True)
class ImageFiles:
    """Image files in a folder.

    Attributes:
        root: path of the folder.
        names: paths relative to the folder, `(N,)` bytes. A list of a million strings would be
            copied in every worker process, because reading it updates reference counts.
    """

    root: Path
    names: np.ndarray

    @classmethod
    def of(cls, root: Path, names: list[str]) -> ImageFiles:
        return cls(root, np.array([os.fsencode(name) for name in names]))

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> Path:
        return self.root / os.fsdecode(self.names[i])

    def fingerprint(self, labels: Tensor) -> str:
        """Return the SHA-256 (hex) of names, sizes in bytes and labels, sorted by name."""
        order = np.argsort(self.names, kind="stable")
        names = self.names[order].tolist()
        parts = [names[i : i + SIZES] for i in range(0, len(names), SIZES)]
        digest = hashlib.sha256()
        with ThreadPoolExecutor(SIZE_THREADS) as pool:  # os.stat releases the GIL
            sizes = itertools.chain.from_iterable(pool.map(self._sizes, parts))
            for row in zip(names, sizes, labels.numpy()[order].tolist(), strict=True):
                digest.update(b"%s\0%d\0%d\n" % row)
        return digest.hexdigest()

    def _sizes(self, names: list[bytes]) -> list[int]:
        """Return the sizes of files in bytes."""
        folder, found = os.fsencode(self.root), []
        for name in names:
            path = os.path.join(folder, name)
            with _named_errors(path):
                found.append(os.stat(path).st_size)
        return found

    def content_digest(self, labels: Tensor) -> str:
        """Return the SHA-256 (hex) of the bytes of all files and of the labels, in order."""
        with ThreadPoolExecutor(HASH_THREADS) as pool:  # hashing releases the GIL
            digests = pool.map(lambda i: _file_digest(self.path(i)), range(len(self)))
            whole = hashlib.sha256(b"".join(digests))
        whole.update(labels.numpy().astype("<i8").tobytes())
        return whole.hexdigest()


class SplitContents(NamedTuple):
    """Images, labels and class names of a split, read from image files.

    Attributes:
        images: tensor `(N, 3, H, W)`, uint8 in [0, 255] or float32 in [0, 1], or `ImageFiles`.
        labels: class of each image, `(N,)` int64.
        class_names: one name per class.
        origin: description of how the split was selected; empty for the dataset's own splits.
        notes: sentences about decisions that change the data, to print once.
    """

    images: Tensor | ImageFiles
    labels: Tensor
    class_names: tuple[str, ...]
    origin: str = ""
    notes: tuple[str, ...] = ()


def read_tree(split: str, root: str | Path, divide: bool = False) -> SplitContents:
    """Return the images of an image folder or of a table of names and labels.

    Arguments and errors are the same as for `label_tables.list_images`.
    """
    found = list_images(split, root, divide)
    files, labels = ImageFiles.of(found.folder, found.names), torch.tensor(found.labels)
    return SplitContents(files, labels, tuple(found.class_names), found.origin, found.notes)


def _file_digest(path: Path) -> bytes:
    with _named_errors(path):
        return hashlib.sha256(path.read_bytes()).digest()


@contextlib.contextmanager
def _named_errors(path: Path | bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{os.fsdecode(path)}: cannot be read ({error.strerror}).") from None


def read_fast(path: Path, shorter: int, decoding: Decoding | None = None) -> Tensor | Image.Image:
    """Decode a JPEG file to RGB quickly, at a reduced resolution if that is sufficient.

    At full resolution, pixels differ from `images.decode` by about one level of 255.
    benchmarks/decoding.py measures the difference.

    Args:
        path: path of the image.
        shorter: required length of the shorter side, pixels. If the shorter side is at least twice
            this length, the image is decoded at 1/2, 1/4 or 1/8 of its size.
        decoding: settings, as for `images.decode`.

    Returns:
        RGB or gray JPEG files: tensor `(3, H, W)` uint8, which `transforms` resizes as a tensor.
        Other files: PIL image, as from `images.decode`.

    Raises:
        UserError: the file cannot be read as an image.
    """
    decoding = decoding or Decoding()
    with decoding_errors(path):
        with open_image(path) as image:
            if image.format != "JPEG" or image.mode not in ("RGB", "L"):
                return decode(path, decoding=decoding)
            ratio = min(image.size) // shorter
            turn = TURNS.get(orientation(image)) if decoding.upright else None
        contents = path.read_bytes()
        if ratio >= 2:
            pixels = _reduced_jpeg(contents, ratio)
        else:
            code = torch.frombuffer(bytearray(contents), dtype=torch.uint8)
            pixels = decode_jpeg(code, mode=ImageReadMode.RGB)
        return tv_tensors.Image(pixels if turn is None else _turned(pixels, turn))


def _turned(pixels: Tensor, turn: Image.Transpose) -> Tensor:
    """Rotate or mirror an image `(3, H, W)`, as `Image.transpose` does."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).transpose(turn)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _reduced_jpeg(contents: bytes, ratio: int) -> Tensor:
    """Decode a JPEG file to `(3, H, W)` uint8 RGB at 1/2, 1/4 or 1/8 of its size.

    The result has at least 1/`ratio` of the size. Pillow's `draft` returns the same pixels, but
    takes 25 % longer.
    """
    mode = next(mode for factor, mode in REDUCED_MODES.items() if factor <= ratio)
    pixels = cv2.imdecode(np.frombuffer(contents, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ValueError("damaged")
    return torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)
