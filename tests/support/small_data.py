"""Small image folders and tar files for tests."""

import tarfile

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cow")


def write_tree(root, counts=None, size=32, ending="png"):
    """Write noise images `root/<split>/<class>/<number>.<ending>`; return `root`.

    Args:
        counts: split -> images per class.
    """
    rng = np.random.default_rng(0)
    for split, count in (counts or {"train": 8, "test": 4}).items():
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i:03}.{ending}")
    return root


def pixels(path):
    """Read an image as `(3, H, W)` uint8."""
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)


def write_tar(tree, path, mode="w"):
    """Write a tar file of a tree, in reverse order; return `path`."""
    with tarfile.open(path, mode) as archive:
        for file in sorted(tree.rglob("*"), reverse=True):
            archive.add(file, file.relative_to(tree.parent).as_posix(), recursive=False)
    return path
