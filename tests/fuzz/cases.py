"""A reader of foreign files and the files that it is tried with."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutations import as_json, change


@dataclass(frozen=True)
class Seed:
    """A file that is accepted, its place in the folder, and what makes changed ones of it that keep
    to the form of their format."""

    file: str
    data: bytes
    build: Callable[[random.Random], bytes] | None = None


@dataclass(frozen=True)
class Target:
    """Attributes:
    seeds: folder -> files to change; those that lie beside them are written into the folder.
    read: `(folder, path of the changed file)`: all that the product makes of it.
    words: of the format.
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
    """Of a tree that JSON can hold."""
    return Seed(file, as_json(tree), lambda rng: as_json(change(tree, rng)))
