"""Read which test images each trial classifies correctly, from tables in the folder of a result."""

from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from classification.report.conditions import CLEAN
from classification.report.records import Merged, Record

FILE = CLEAN.file


def correctness(runs: list[Merged]) -> tuple[list[np.ndarray], np.ndarray] | None:
    """Determine which test images each run classifies correctly.

    Args:
        runs: runs on the same test images.

    Returns:
        Correctness `(trials, N)` of each run, in the order of its seeds, and the labels `(N,)`
        int32. Correctness is bool; under a condition it is float32, the fraction of an image's
        versions that are classified correctly, in [0, 1]. The result is None if a trial has no
        predictions, or if the images or the labels differ.
    """
    rows, images = [], None
    for run in runs:
        found = [part for source in run.sources if (part := _trial(*source))]
        if len(found) < len(run.sources):
            return None
        for own, _ in found:
            images = own if images is None else images
            if not np.array_equal(own, images):
                return None
        rows.append(np.array([column for _, column in found]))
    return None if images is None else (rows, images[1])


def _trial(record: Record, k: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return images and correctness `(N,)` of trial `k` of a record, or None if missing."""
    condition = record.condition
    versions = condition.versions if condition.name else None
    found = _read(record.path.parent / condition.file, versions)
    if found is None or k >= len(found[1]):
        return None
    return found[0], found[1][k]


@lru_cache(maxsize=4096)
def _read(path: Path, versions: int | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Read the images and their correctness. None: the file is missing or invalid.

    Args:
        path: path of the table.
        versions: number of versions of each image, if the table counts the correct ones; None: the
            table has predicted classes.

    Returns:
        Indices and labels of the images `(2, N)`, and correctness `(trials, N)`.
    """
    if (table := _read_table(path)) is None:
        return None
    numbers = table[:, 2:].T
    if versions is None:
        right = np.ascontiguousarray(numbers == table[:, 1])
    elif numbers.size and 0 <= numbers.min() and numbers.max() <= versions:
        right = np.ascontiguousarray(numbers / np.float32(versions))
    else:
        return None
    return _shared(table[:, :2].T.tobytes()), right


def _read_table(path: Path) -> np.ndarray | None:
    """Read a table `(N, 2 + trials)` int32. None: the file is missing or invalid."""
    try:
        head, _, body = path.read_text(encoding="utf-8").partition("\n")
        columns = head.split(",")
        if columns[:2] != ["index", "label"] or len(columns) < 3:
            return None
        # NumPy is much faster than a CSV reader, and a report may read thousands of these files.
        table = np.array(body.replace("\n", ",").strip(",").split(","), dtype=np.int32)
        return table.reshape(-1, len(columns))
    except (OSError, ValueError):
        return None


@cache
def _shared(images: bytes) -> np.ndarray:
    """Return one array for all runs on the same images, to save memory."""
    return np.frombuffer(images, dtype=np.int32).reshape(2, -1)
