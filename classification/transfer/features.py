"""Compute features of images, and cache them on disk.

The cache folder is `cache_dir()/features/<key>/`. Each file has the features of a few thousand
images. The key is a digest of everything that determines the features: weights, image contents,
transform, precision and library versions. A change of any of these changes the key, so outdated
files are never read.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from itertools import chain, islice
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor

from classification.datasets import loader
from classification.datasets.split import ImageSplit, Split, require_images
from classification.models import Classifier, backbone_digest
from classification.transfer.memory import gigabytes
from classification.transfer.rows import Rows
from robust_backbones import arithmetic
from robust_backbones.archs import OWN
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic, cache_dir, locked
from robust_backbones.core.precision import DEFAULT
from robust_backbones.core.signals import Stopped, StopSignals

VERSION = 3  # increase after a code change that changes the features
ROWS = 4096  # images per file; an interrupted run repeats at most one file
BATCH = 128  # images per batch, a divisor of `ROWS`


def identity(model: Classifier, source: ImageSplit, precision: str) -> dict:
    """Return everything that determines the features, in plain JSON types."""
    return {
        "version": VERSION,
        "backbone": backbone_digest(model),
        "output": _output_digest(model, source.image_size),
        "images": source.content_digest(),
        "image_size": source.image_size,
        "downscale": source.downscale,
        "decode": source.decode,
        "image_range": source.decoding.values,
        "upright": source.decoding.upright,
        "precision": precision,
        "device": next(model.parameters()).device.type,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
    }


def _output_digest(model: Classifier, size: int) -> str | None:
    """Compute the SHA-256 of the features of noise, which depend on the code of a user's module."""
    if not model.arch.startswith(OWN):
        return None
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.eval().features(noise.to(model.normalize.mean))
    return hashlib.sha256(found.float().cpu().numpy().tobytes()).hexdigest()


def folder_of(identity: dict) -> Path:
    """Return the cache folder of the features with this identity."""
    text = json.dumps(identity, sort_keys=True)
    return cache_dir() / "features" / hashlib.sha256(text.encode()).hexdigest()[:32]


def extract(
    model: Classifier,
    source: ImageSplit,
    *,
    precision: str = DEFAULT,
    workers: int = 0,
    signals: StopSignals | None = None,
    progress: Callable[[int, str], None] = lambda images, doing: None,
) -> Rows:
    """Compute the last layer's input for center crops of the images, or read it from the cache.

    The features are memory-mapped files of the cache.

    Args:
        model: classifier. The function switches it to eval mode.
        source: images to compute features of.
        precision: precision of the network, a key of `core.precision.PRECISIONS`.
        workers: number of processes that read images.
        signals: stop signals to check after each batch. Complete files remain in the cache.
        progress: function to call with the number of new images and a description of the work.

    Returns:
        Features `(N, feature_dim)` float32, in the order of the images.

    Raises:
        UserError: an image is unreadable, or the disk is full or too small.
        Stopped: a stop signal arrived.
    """
    model.eval()
    key = identity(model, source, precision)
    folder = folder_of(key)
    with locked(folder.with_suffix(".lock")):
        with atomic(folder / "identity.json") as temporary:
            temporary.write_text(json.dumps(key, indent=2) + "\n", encoding="utf-8")
        parts = [range(n, min(n + ROWS, len(source))) for n in range(0, len(source), ROWS)]
        files = {folder / f"{numbers[0]:09}.npy": numbers for numbers in parts}
        missing = {path: part for path, part in files.items() if _read(path, len(part)) is None}
        indices = list(chain.from_iterable(missing.values()))
        _check_disk(folder, len(indices), model.head.in_features)
        if cached := len(source) - len(indices):
            progress(cached, f"{source.split} features from the cache")
        if missing:
            doing = f"{source.split} features"
            rest = source.subset(indices) if cached else source
            device = next(model.parameters()).device
            batches = loader.load_batches(rest, BATCH, workers=workers, device=device)
            for path, numbers in missing.items():
                own = islice(batches, -(-len(numbers) // BATCH))
                found = _compute(model, own, precision, signals, doing, progress)
                with atomic(path) as temporary, open(temporary, "wb") as file:
                    np.save(file, found)
        pieces = []
        for path, numbers in files.items():
            piece = _read(path, len(numbers))
            assert piece is not None
            pieces.append(torch.from_numpy(piece))
    return Rows(pieces)


def extract_features(
    model: Classifier, dataset: Split, *, precision: str = DEFAULT, workers: int = 0
) -> Tensor:
    """Compute the features of a dataset: the input of the classifier's last layer.

    The images are center crops. The features are cached on disk by the contents of the images and
    of the network, in `$ROBUST_BACKBONES_CACHE`.

    Args:
        model: classifier, which is switched to eval mode. Its device computes the features.
        dataset: images, from `open_split`.
        precision: `"float32"`, `"tf32"`, `"bfloat16"` or `"float16"`.
        workers: number of processes that read images.

    Returns:
        Features `(N, d)`, float32, on the CPU, in the order of `dataset.labels`.

    Raises:
        UserError: an image is unreadable, the last layer or the precision is unknown, the images
            are in shards, or the disk is full.
    """
    source, device = require_images(dataset, dataset.name), next(model.parameters()).device
    arithmetic.check_precision("precision", precision, device)
    with arithmetic.full_precision(device.type):
        found = extract(model, source, precision=precision, workers=workers)
    return torch.cat([*found.parts(ROWS)])


def _check_disk(folder: Path, images: int, width: int) -> None:
    needs, free = 4 * images * width, shutil.disk_usage(folder).free
    if needs > free:
        raise UserError(
            f"{folder}: the features of {images:,} images need {gigabytes(needs)}, and "
            f"{gigabytes(free)} of the disk are free. Free disk space, set ROBUST_BACKBONES_CACHE "
            "to a folder on a larger disk, or use fewer images."
        )


def _read(path: Path, rows: int) -> np.ndarray | None:
    """Map the features in a file, or return None if the file is missing or incomplete."""
    try:
        # Copy on write: torch warns about arrays that are read-only.
        piece = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return piece if piece.ndim == 2 and len(piece) == rows else None


@torch.no_grad()
def _compute(
    model: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    precision: str,
    signals: StopSignals | None,
    doing: str,
    progress: Callable[[int, str], None],
) -> np.ndarray:
    device, dtype = next(model.parameters()).device, arithmetic.autocast_dtype(precision)
    rows = []
    for x, _ in batches:
        x = x.to(device, memory_format=torch.channels_last, non_blocking=True)
        autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)
        with autocast, arithmetic.tf32(precision):
            found: Tensor = model.features(x)
        rows.append(found.float().cpu().numpy())
        progress(len(x), doing)
        if signals and signals.requested:
            raise Stopped
    return np.concatenate(rows)
