"""Read the handwritten digits that scikit-learn contains."""

import importlib.util
from pathlib import Path

import numpy as np


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Read 1,797 images, `(N, 8, 8)` float64 with values from 0 to 16, and their labels, `(N,)`.

    `sklearn.datasets.load_digits` returns the same arrays, but its import takes seconds.
    """
    found = importlib.util.find_spec("sklearn")
    assert found and found.origin  # a required package
    rows = np.loadtxt(Path(found.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
