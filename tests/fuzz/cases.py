"""Fuzz targets: readers of foreign files, and valid files to change."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutations import as_json, change


@dataclass(frozen=True)
class Seed:
    """A valid file.

    Attributes:
        file: path inside the folder.
        data: content.
        build: function that builds similar files in the same format, if there is one.
    """

    file: str
    data: bytes
    build: Callable[[random.Random], bytes] | None = None


@dataclass(frozen=True)
class Target:
    """A reader to test.

    Attributes:
        seeds: function that writes companion files into a folder and returns the files to change.
        read: function of `(folder, path of the changed file)` that reads it like the product.
        words: tokens of the file format, for mutations.
    """

    seeds: Callable[[Path], list[Seed]]
    read: Callable[[Path, Path], object]
    words: tuple[bytes, ...] = ()


JSON_WORDS = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'""',
    b",",
    b"[" * 5000,
    b'{"a":' * 3000,
    b"9" * 5000,
    b"1e999",
    b"-1",
    b'"\\ud800"',
    b'"id"',
    b'"\\u0000"',
    b'"',
    b"\xff",
    b"\xef\xbb\xbf",
    b"1E400",
    b"-0.0",
)


def json_seed(file: str, tree) -> Seed:
    """A builder of files from a tree of JSON values."""
    return Seed(file, as_json(tree), lambda rng: as_json(change(tree, rng)))
