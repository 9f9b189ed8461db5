"""WebDataset shards: tar files of `<key>.jpg` and `<key>.cls`, read as streams.

Where they lie is said in one of three ways:
- a folder with `train-*.tar` and `val-*.tar` (or `test-*.tar`), or the path or URL of the
  `shards.json` that tools/make_shards.py writes beside them;
- a pattern `/data/train-{000000..001281}.tar`, or two of them, `TRAIN;TEST`;
- URLs in such patterns: http, https, s3, gs, hf and `pipe:COMMAND`, which WebDataset opens with the
  programs of the machine (curl, aws, gsutil); a command of `pipe:` is run by the shell.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import tarfile
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from PIL import Image

from classification.datasets.folders import FOLDERS
from classification.datasets.specs import Dataset, check_classes
from robust_backbones.core.errors import UserError
from robust_backbones.core.images import read_member

INDEX = "shards.json"
INDEX_VERSION = 1
LABEL = "cls"
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "ppm")  # endings inside the tar files
# What shards.json may name: with a colon or a slash it could be a command of `pipe:`, or elsewhere.
_PLAIN = re.compile(r"\w[\w.+=-]*")
_URL = re.compile(r"(pipe:|[a-z0-9]+://)")


@dataclass(frozen=True)
class ShardSource:
    """One split that is read as a stream; the attributes of `sources.Source` without images.

    Attributes:
        urls: of the shards, in order.
        sizes: images of each, if known.
        count: images of all; what an epoch and an evaluation are.
        labels: None: known only while reading.
    """

    name: str
    split: str
    classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str
    urls: tuple[str, ...]
    sizes: tuple[int, ...] | None
    count: int
    class_names: tuple[str, ...]
    labels: None = None

    def __len__(self) -> int:
        return self.count

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the shards' file names and sizes (images) and of the class names.

        It does not read the images: another image in the same place is not noticed.
        """
        names = [url.split("?")[0].rsplit("/", 1)[-1] for url in self.urls]
        contents = [names, self.sizes, self.count, self.class_names]
        return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def are_shards(root: str | Path) -> bool:
    """Whether `root` names shards rather than an image folder."""
    if _is_pattern(root) or str(root).endswith(".tar") or _is_index(root):
        return True
    folder = Path(root)
    return (folder / INDEX).is_file() or next(folder.glob("*.tar"), None) is not None


def _is_pattern(root: str | Path) -> bool:
    return "{" in str(root) or ";" in str(root) or bool(_URL.match(str(root)))


def _is_index(root: str | Path) -> bool:
    return str(root).rsplit("/", 1)[-1] == INDEX


def open_shards(
    name: str,
    row: Dataset,
    split: str,
    root: str | Path,
    image_size: int | None = None,
    limit: int | None = None,
) -> ShardSource:
    """One split of the shards at `root`.

    Args:
        name, row: the dataset's name and row.
        limit: at least so many images, in whole shards; needs `shards.json`.

    Raises:
        UserError: no such shards, their number of images is not known, or webdataset is missing.
    """
    _webdataset()
    urls, sizes, classes = _locate(str(root), split)
    if sizes is not None:
        count = sum(sizes)
    elif split in row.images:
        count = row.images[split]
    else:
        raise UserError(
            f"the number of images in {root} is not known; give the path of the "
            f"{INDEX} that tools/make_shards.py writes."
        )
    if not classes and row.classes is None:
        raise UserError(
            f"the classes of {root} are not known; give the path of the {INDEX} that "
            "tools/make_shards.py writes."
        )
    classes = classes or [str(label) for label in range(row.classes or 0)]
    check_classes(name, row, root, len(classes))
    if row.images.get(split, count) != count:
        raise UserError(
            f"{root} has {count} {split} images, {name} has {row.images[split]}; use "
            "the dataset 'folder' for a part of it."
        )
    source = ShardSource(
        name=name,
        split=split,
        classes=len(classes),
        image_size=image_size or row.image_size,
        mean=row.mean,
        std=row.std,
        augmentation=row.augmentation,
        urls=tuple(urls),
        sizes=tuple(sizes) if sizes else None,
        count=count,
        class_names=tuple(classes),
    )
    return source if limit is None else _limited(source, limit)


def _limited(source: ShardSource, limit: int) -> ShardSource:
    if source.sizes is None or not 0 < limit <= source.count:
        raise UserError(
            f"a limit of {limit} images is not possible for {source.count} images"
            + ("." if source.sizes else f" without {INDEX}.")
        )
    order = random.Random(0).sample(range(len(source.urls)), len(source.urls))
    chosen, count = [], 0
    for shard in order:
        if count < limit:
            chosen.append(shard)
            count += source.sizes[shard]
    chosen.sort()
    return replace(
        source,
        urls=tuple(source.urls[i] for i in chosen),
        sizes=tuple(source.sizes[i] for i in chosen),
        count=count,
    )


def _locate(root: str, split: str) -> tuple[list[str], list[int] | None, list[str] | None]:
    """URLs, and sizes and class names where they are known."""
    if _is_index(root):
        return _indexed(root, split)
    if _is_pattern(root) or root.endswith(".tar"):
        parts = [root] if root.startswith("pipe:") else root.split(";")
        if split == "test" and len(parts) < 2:
            raise UserError(
                f"'{root}' names the training shards only; give 'TRAIN;TEST', in quotes."
            )
        import braceexpand

        urls = list(braceexpand.braceexpand(parts[("train", "test").index(split)]))
        missing = [url for url in urls if not _URL.match(url) and not Path(url).is_file()]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(urls)} shards do not exist, {missing[0]} among them; "
                "check the pattern."
            )
        return urls, None, None
    if (Path(root) / INDEX).is_file():
        return _indexed(f"{root}/{INDEX}", split)
    for start in FOLDERS[split]:
        if found := sorted(str(path) for path in Path(root).glob(f"{start}-*.tar")):
            return found, None, None
    wanted = " or ".join(f"{start}-*.tar" for start in FOLDERS[split])
    raise UserError(f"{root} has no {split} shards: {wanted}.")


def _indexed(path: str, split: str) -> tuple[list[str], list[int], list[str]]:
    """What `shards.json` says; the shards lie beside it."""
    try:
        if _URL.match(path):
            import webdataset

            with webdataset.gopen(path) as stream:
                text = stream.read()
        else:
            text = Path(path).read_bytes()
        index = json.loads(text)
        if index["version"] != INDEX_VERSION:
            raise UserError(f"{path} is of version {index['version']}, not {INDEX_VERSION}.")
        name = next((name for name in FOLDERS[split] if name in index["splits"]), None)
        if name is None:
            raise UserError(f"{path} has no {split} shards; it has: {', '.join(index['splits'])}.")
        sizes, classes = index["splits"][name], index["classes"]
        counted = all(type(size) is int and size > 0 for size in sizes.values())
        if not sizes or not counted or not all(isinstance(text, str) for text in classes or [0]):
            raise ValueError("shards and their numbers of images, or names of classes")
        if odd := [shard for shard in sizes if not _PLAIN.fullmatch(shard)]:
            raise UserError(
                f"{path} names the shard '{odd[0]}'; shards lie beside it, with plain names such "
                "as train-000000.tar."
            )
        base = path[: -len(INDEX)]
        return [base + shard for shard in sizes], [int(n) for n in sizes.values()], index["classes"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as the index of shards ({error!r}).") from None


def _webdataset() -> types.ModuleType:
    try:
        import webdataset
    except ImportError:
        raise UserError(
            'shards need the package webdataset: pip install "robust-backbones[shards]"'
        ) from None
    return webdataset


def samples(urls: Iterable[str]) -> Iterator[dict]:
    """The samples of these shards in their order, nothing decoded.

    Raises:
        UserError: a shard cannot be read to its end.
    """
    tars = _webdataset().tariterators
    for url in urls:
        try:
            for source in tars.url_opener(iter([{"url": url}])):
                yield from tars.group_by_keys(_files(source["stream"], url))
        except Exception as error:  # of curl, of a command, of tarfile, of WebDataset itself
            raise UserError(f"shard {url} cannot be read ({error}); check or fetch it.") from error


def _files(stream: IO[bytes], url: str) -> Iterator[dict]:
    """As WebDataset's own, but a file that claims to be huge is refused before it is read."""
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            if member.isreg() and not re.match(r"__[^/]*__($|/)", member.name):
                data = read_member(archive, member)
                yield {"fname": member.name, "data": data, "__url__": url}
            archive.members = []  # type: ignore[attr-defined]  # else it keeps what it has seen


def shuffled(stream: Iterator[dict], buffer: int, seed: int) -> Iterator[dict]:
    """Through a buffer of `buffer` samples; a function of the stream and the seed."""
    from webdataset import filters

    return filters._shuffle(iter(stream), buffer, buffer, random.Random(seed))


def decode(sample: dict, classes: int) -> tuple[Image.Image, int]:
    """A PIL RGB image and its label.

    Raises:
        UserError: no image, no label, or a label outside [0, classes).
    """
    from classification.datasets.split import read_image

    where = f"{sample['__url__']}: {sample['__key__']}"
    ending = next((ending for ending in IMAGES if ending in sample), None)
    if ending is None or LABEL not in sample:
        has = ", ".join(key for key in sample if not key.startswith("__"))
        raise UserError(
            f"{where} needs an image ({', '.join(IMAGES)}) and .{LABEL}; it has: {has}."
        )
    try:
        label = int(sample[LABEL])
    except ValueError:
        label = -1
    if not 0 <= label < classes:
        text = sample[LABEL].decode(errors="replace")
        raise UserError(f"{where}.{LABEL} is '{text[:20]}'; a label in [0, {classes}) is expected.")
    return read_image(io.BytesIO(sample[ending]), f"{where}.{ending}"), label
