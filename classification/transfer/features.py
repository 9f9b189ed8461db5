"""Features, computed once and kept on the disk.

They lie in `cache_dir()/features/<key>/`, some thousand rows a file. The key is a digest of all
that decides them: every weight, every byte of the images, the transform, the precision, the
versions of what computes. Whatever changes, the key does; a stale file cannot be found.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor

from classification.datasets import loader
from classification.datasets.split import ImageSplit
from classification.models import Classifier, backbone_digest
from robust_backbones.core.files import atomic, cache_dir, locked
from robust_backbones.core.signals import Stopped, StopSignals

VERSION = 1  # of what this file and the transforms do; a change of the numbers raises it
ROWS = 4096  # in a file: what an interrupted run loses at most
BATCH = 128  # images at once


def identity(model: Classifier, source: ImageSplit, precision: str) -> dict:
    """All that decides the features, in plain JSON types."""
    return {
        "version": VERSION,
        "backbone": backbone_digest(model),
        "images": source.content_digest(),
        "image_size": source.image_size,
        "downscale": source.downscale,
        "decode": source.decode,
        "precision": precision,
        "device": next(model.parameters()).device.type,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
    }


def folder_of(identity: dict) -> Path:
    text = json.dumps(identity, sort_keys=True)
    return cache_dir() / "features" / hashlib.sha256(text.encode()).hexdigest()[:32]


def extract(
    model: Classifier,
    source: ImageSplit,
    *,
    precision: str = "float32",
    workers: int = 0,
    signals: StopSignals | None = None,
    progress: Callable[[int, str], None] = lambda images, doing: None,
) -> np.ndarray:
    """What the last layer is fed with, of each image's test view; from the disk where it is there.

    Args:
        model: put into eval mode.
        precision: precision of the network, one of `training.settings.PRECISIONS`.
        workers: processes that read images.
        signals: looked at after each batch; what is whole is kept.
        progress: called with the number of images done and what goes on.

    Returns:
        `(N, feature_dim)` float32, in the order of the images.

    Raises:
        UserError: an unreadable image; the disk is full.
        Stopped: `signals` was asked.
    """
    model.eval()
    key = identity(model, source, precision)
    folder, pieces = folder_of(key), []
    with locked(folder.with_suffix(".lock")):
        with atomic(folder / "identity.json") as temporary:
            temporary.write_text(json.dumps(key, indent=2) + "\n", encoding="utf-8")
        for first in range(0, len(source), ROWS):
            numbers = range(first, min(first + ROWS, len(source)))
            path = folder / f"{first:09}.npy"
            if (piece := _read(path, len(numbers))) is not None:
                progress(len(numbers), f"{source.split} features are there")
            else:
                batches = loader.test_batches(source.subset(numbers), BATCH, workers=workers)
                piece = _compute(model, batches, _dtype(precision), signals, progress)
                with atomic(path) as temporary, open(temporary, "wb") as file:
                    np.save(file, piece)
            pieces.append(piece)
    return np.concatenate(pieces)


def _dtype(precision: str) -> torch.dtype | None:
    return None if precision == "float32" else getattr(torch, precision)


def _read(path: Path, rows: int) -> np.ndarray | None:
    """The rows of a file; None if it is not there or not whole."""
    try:
        piece = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return piece if piece.ndim == 2 and len(piece) == rows else None


@torch.no_grad()
def _compute(
    model: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    dtype: torch.dtype | None,
    signals: StopSignals | None,
    progress: Callable[[int, str], None],
) -> np.ndarray:
    device = next(model.parameters()).device
    rows = []
    for x, _ in batches:
        x = x.to(device, memory_format=torch.channels_last, non_blocking=True)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            found: Tensor = model.features(x)
        rows.append(found.float().cpu().numpy())
        progress(len(x), "features")
        if signals and signals.requested:
            raise Stopped
    return np.concatenate(rows)
