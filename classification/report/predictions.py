"""Read the prediction for each test image from `per_image.csv` in the folder of a result."""

from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from classification.report.records import Merged, Record

FILE = "per_image.csv"


def correctness(runs: list[Merged]) -> tuple[list[np.ndarray], np.ndarray] | None:
    """Determine which test images each run classifies correctly.

    Args:
        runs: runs on the same test images.

    Returns:
        Correctness `(trials, N)` bool of each run, in the order of its seeds, and the labels
        `(N,)` int32. The result is None if a trial has no predictions, or if the labels differ.
    """
    rows, labels = [], None
    for run in runs:
        found = [part for source in run.sources if (part := _trial(*source))]
        if len(found) < len(run.sources):
            return None
        for own, _ in found:
            labels = own if labels is None else labels
            if not np.array_equal(own, labels):
                return None
        rows.append(np.array([column for _, column in found]))
    return None if labels is None else (rows, labels)


def _trial(record: Record, k: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return labels and correctness of trial `k` of a record, `(N,)` each, or None if missing."""
    if (found := _read(record.path.parent / FILE)) is None or k >= len(found[1]):
        return None
    return found[0], found[1][k]


@lru_cache(maxsize=4096)
def _read(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Read labels `(N,)` and correctness `(trials, N)`. None: the file is missing or invalid."""
    try:
        head, _, body = path.read_text(encoding="utf-8").partition("\n")
        columns = head.split(",")
        if columns[:2] != ["index", "label"] or len(columns) < 3:
            return None
        # NumPy is much faster than a CSV reader, and a report may read thousands of these files.
        table = np.array(body.replace("\n", ",").strip(",").split(","), dtype=np.int32)
        table = table.reshape(-1, len(columns))
    except (OSError, ValueError):
        return None
    return _shared(table[:, 1].tobytes()), np.ascontiguousarray((table[:, 2:] == table[:, 1:2]).T)


@cache
def _shared(labels: bytes) -> np.ndarray:
    """Return one array for all runs with the same labels, to save memory."""
    return np.frombuffer(labels, dtype=np.int32)
