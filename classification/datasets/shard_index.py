"""Find the shards of a split, and read or write `shards.json`, which describes them.

The path of shards has one of three forms:
- a folder with `train-*.tar` and `val-*.tar` (or `test-*.tar`), or the path or URL of the
  `shards.json` in the same folder, which `robust-backbones make-shards` writes;
- a pattern `/data/train-{000000..001281}.tar`, or two patterns, `TRAIN;TEST`;
- a pattern of URLs or `pipe:COMMAND`. WebDataset opens http, https, gs, hf and some others with
  installed programs (curl, gsutil). fsspec opens all others, such as s3 with the package s3fs. The
  shell runs the command of `pipe:`.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import fsspec

from classification.datasets.split_names import choose_splits
from robust_backbones.core.errors import UserError
from robust_backbones.core.extras import missing
from robust_backbones.core.files import atomic

INDEX = "shards.json"
INDEX_VERSION = 1
# A colon or slash in a shard name could start a command (`pipe:`) or leave the folder.
_PLAIN_NAME = re.compile(r"\w[\w.+=-]*")
_URL = re.compile(r"pipe:|([a-z0-9+.-]+::)*([a-z0-9+.-]+)://")  # a::b:// is a chained URL of fsspec


@dataclass(frozen=True)
class ShardList:
    """The shards of one split.

    Attributes:
        urls: path or URL of each shard, in order.
        sizes: number of images in each shard, or None if unknown.
        class_names: one name per class, or None if unknown.
    """

    urls: list[str]
    sizes: list[int] | None = None
    class_names: list[str] | None = None


def webdataset() -> types.ModuleType:
    """Import the optional package webdataset.

    Raises:
        UserError: the package is not installed.
    """
    try:
        import webdataset  # optional: part of the extra "shards"
    except ImportError:
        raise UserError(missing("webdataset", "shards", "shards")) from None
    return webdataset


def are_shards(root: str | Path) -> bool:
    """Return whether `root` is the path of shards rather than of an image folder."""
    if _is_pattern(root) or str(root).endswith(".tar") or _is_index(root):
        return True
    folder = Path(root)
    return (folder / INDEX).is_file() or next(folder.glob("*.tar"), None) is not None


def _is_pattern(root: str | Path) -> bool:
    return "{" in str(root) or ";" in str(root) or bool(_URL.match(str(root)))


def _is_index(root: str | Path) -> bool:
    return str(root).rsplit("/", 1)[-1] == INDEX


def find_shards(root: str, split: str) -> ShardList:
    """List the shards of a split.

    Args:
        root: path, URL or pattern, as described at the top of this module.
        split: `train` or `test`.

    Raises:
        UserError: there are no such shards, or `shards.json` is invalid.
    """
    if _is_index(root):
        return _read_index(root, split)
    if _is_pattern(root) or root.endswith(".tar"):
        return ShardList(_expand(root, split))
    if (Path(root) / INDEX).is_file():
        return _read_index(f"{root}/{INDEX}", split)
    groups: dict[str, list[str]] = {}
    for path in sorted(Path(root).glob("*.tar")):
        groups.setdefault(path.stem.split("-")[0], []).append(str(path))
    chosen, _ = choose_splits(groups, root)
    if split not in chosen:
        raise UserError(
            f"{root}: found no {split} shards, only {', '.join(groups)}-*.tar. Rename them to "
            "train-*.tar, and test-*.tar or val-*.tar."
        )
    return ShardList(groups[chosen[split]])


def _expand(pattern: str, split: str) -> list[str]:
    import braceexpand  # a dependency of webdataset

    parts = [pattern] if pattern.startswith("pipe:") else pattern.split(";")
    if split == "test" and len(parts) < 2:
        raise UserError(f"'{pattern}' contains training shards only. Pass 'TRAIN;TEST', in quotes.")
    urls = list(braceexpand.braceexpand(parts[("train", "test").index(split)]))
    missing = [url for url in urls if not _URL.match(url) and not Path(url).is_file()]
    if missing:
        raise UserError(
            f"'{pattern}': {len(missing)} of {len(urls)} shards do not exist, for example "
            f"{missing[0]}. Correct the pattern."
        )
    return urls


def open_shard(url: str) -> IO[bytes]:
    """Open a file by its path or URL, or start the command of `pipe:`.

    Raises:
        UserError: a package for this kind of URL is missing.
        Exception: other errors of the package or program that opens the URL.
    """
    gopen = webdataset().tariterators.gopen  # module; webdataset.gopen is a function
    found = _URL.match(url)
    if not found or url.startswith(("pipe:", "file:")) or found[2] in gopen.gopen_schemes:
        return gopen.gopen(url)
    try:
        return fsspec.open(url, "rb").open()
    except (ImportError, ValueError) as error:  # no package, or an unknown scheme
        raise UserError(f"{url} cannot be opened ({error}). Install the package.") from None


def _fetch(url: str) -> bytes:
    try:
        with open_shard(url) as stream:
            return stream.read()
    except UserError:
        raise
    except Exception as error:  # storage packages raise exceptions of their own types
        raise UserError(
            f"{url} cannot be read ({str(error) or type(error).__name__}). Check the URL and your "
            "credentials."
        ) from None


def _read_index(path: str, split: str) -> ShardList:
    """Read `shards.json` and list the shards of a split, which are in the same folder."""
    try:
        index = json.loads(_fetch(path) if _URL.match(path) else Path(path).read_bytes())
        if index["version"] != INDEX_VERSION:
            raise UserError(
                f"{path}: format version {index['version']} is not supported. Write the shards "
                f"again with version {INDEX_VERSION}."
            )
        name = choose_splits(index["splits"], path)[0].get(split)
        if name is None:
            raise UserError(
                f"{path}: there are no {split} shards, only {', '.join(index['splits'])}."
            )
        sizes, classes = index["splits"][name], index["classes"]
        counted = all(type(size) is int and size > 0 for size in sizes.values())
        if not sizes or not counted or not all(isinstance(text, str) for text in classes or [0]):
            raise ValueError("invalid shard sizes or class names")
        if invalid := [shard for shard in sizes if not _PLAIN_NAME.fullmatch(shard)]:
            raise UserError(
                f"{path}: invalid shard name '{invalid[0]}'. Shards must be in the same folder and "
                "have plain names such as train-000000.tar."
            )
        base = path[: -len(INDEX)]
        return ShardList([base + shard for shard in sizes], list(sizes.values()), classes)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read as an index of shards ({error!r}).") from None


def write_index(folder: Path, class_names: Sequence[str], sizes: dict[str, dict[str, int]]) -> Path:
    """Write `shards.json` and return its path.

    Args:
        folder: folder of the shards.
        class_names: one name per class.
        sizes: number of images in each shard, as `{split: {shard name: number}}`.
    """
    index = {"version": INDEX_VERSION, "classes": class_names, "splits": sizes}
    with atomic(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return folder / INDEX
