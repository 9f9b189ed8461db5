"""Read WebDataset shards as streams. Shards are tar files of `<key>.jpg` and `<key>.cls`.

Shards are distributed over ranks, and the shards of a rank over its workers. Each worker has its
own shuffle buffer. Therefore the batches depend on (seed, epoch, rank, worker) and on the numbers
of ranks and workers. A training epoch is only roughly one pass over the data. If a worker has read
all its shards, it starts again, so that all ranks take the same number of steps. Evaluation is
exact: each shard is read once, by one process.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import random
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image

from classification import transforms
from classification.datasets.shard_index import INDEX, find_shards, open_shard, webdataset
from classification.datasets.specs import DatasetSpec
from classification.datasets.split import ImageBatch, Split, TrainEpoch
from classification.datasets.tar_files import read_member
from robust_backbones.core.errors import UserError
from robust_backbones.core.image_formats import FORMATS
from robust_backbones.core.images import Decoding
from robust_backbones.core.images import decode as decode_image

LABEL = "cls"
IMAGES = tuple(suffix[1:] for suffix in FORMATS)  # file extensions inside the tar files
BUFFER = 2000  # encoded images in each worker's shuffle buffer, about 200 MB for ImageNet


@dataclass(frozen=True)
class ShardSplit(Split):
    """A split that is read as a stream of shards.

    Attributes:
        urls: path or URL of each shard, in order.
        sizes: number of images in each shard, or None if unknown.
        count: number of images in all shards, which is the length of an epoch.
        sample_size: number of images that `test_batches` yields over all ranks, rounded up to
            whole batches; None for all images.
    """

    urls: tuple[str, ...]
    sizes: tuple[int, ...] | None
    count: int
    sample_size: int | None = None
    random_access = False

    def __len__(self) -> int:
        return self.count

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the shards' names and sizes and of the class names.

        The images are not read, so replacing an image does not change the fingerprint.
        """
        names = [url.split("?")[0].rsplit("/", 1)[-1] for url in self.urls]
        contents = [names, self.sizes, self.count, self.class_names]
        return hashlib.sha256(json.dumps(contents).encode()).hexdigest()

    def class_sizes(self) -> None:
        return None  # unknown, because the labels are in the shards

    def sample(self, count: int, seed: int) -> ShardSplit:
        """Return a split whose test batches contain only about the first `count` images."""
        return replace(self, sample_size=count)

    def limited(self, limit: int) -> ShardSplit:
        """Return a random selection of whole shards with at least `limit` images, or all shards.

        Raises:
            UserError: the sizes of the shards are unknown.
        """
        if limit >= self.count:
            return self
        if self.sizes is None:
            raise UserError(f"a limit of {limit} images is impossible for shards without {INDEX}.")
        order = random.Random(0).sample(range(len(self.urls)), len(self.urls))
        chosen, count = [], 0
        for shard in order:
            if count < limit:
                chosen.append(shard)
                count += self.sizes[shard]
        chosen.sort()
        return replace(
            self,
            urls=tuple(self.urls[i] for i in chosen),
            sizes=tuple(self.sizes[i] for i in chosen),
            count=count,
        )

    def train_batches(self, epoch: TrainEpoch, worker: int, workers: int) -> Iterator[ImageBatch]:
        """Yield every `workers`-th batch of a rank.

        Raises:
            UserError: there are fewer shards than processes; a shard or image cannot be read.
        """
        # The loader asks worker 0 for the first batch, which has index `start`.
        lane = (worker + epoch.start) % workers
        share = epoch.batch_size // epoch.world
        augment = transforms.AUGMENTATIONS[epoch.augmentation]
        stream = self._endless_samples(epoch, lane, workers)
        for batch in range(lane, len(self) // epoch.batch_size, workers):
            samples = list(itertools.islice(stream, share))
            if batch < epoch.start:
                continue  # skipped samples are read, but not decoded
            labels: list[int] = []  # filled while the augmentation iterates over the images
            first = batch * epoch.batch_size + epoch.rank * share
            positions = np.arange(first, first + share)
            seeds = transforms.image_seeds(epoch.seed, epoch.epoch, positions)
            pixels, numbers = augment(self._decoded(samples, labels), seeds, self.image_size)
            yield ImageBatch(pixels, torch.tensor(labels), numbers)

    def _decoded(self, samples: list[dict], labels: list[int]) -> Iterator[Image.Image]:
        for sample in samples:
            image, label = decode(sample, self.classes, self.decoding)
            labels.append(label)
            yield image

    def _endless_samples(self, epoch: TrainEpoch, lane: int, lanes: int) -> Iterator[dict]:
        """Yield the samples of one worker's shards in an endless loop."""
        order = list(self.urls)
        random.Random(_stream_seed(epoch, 0)).shuffle(order)
        own = order[epoch.rank :: epoch.world][lane::lanes]
        if not own:
            raise UserError(
                f"{len(order)} shards are too few for {epoch.world} processes with {lanes} workers "
                "each. Use fewer --workers, or write smaller shards."
            )
        # Each pass has a new shuffle buffer. A buffer that several passes share could contain an
        # image several times.
        seed = _stream_seed(epoch, 1 + epoch.rank * lanes + lane)
        for lap in itertools.count():
            empty = True
            for sample in shuffled(read_samples(own), BUFFER, seed + lap):
                empty = False
                yield sample
            if empty:
                raise UserError(f"{', '.join(own[:3])}: no images in these shards.")

    def test_batches(
        self, batch_size: int, rank: int, world: int, worker: int, workers: int
    ) -> Iterator[ImageBatch]:
        """Yield the batches of one worker's shards."""
        batches = self._test_batches(self.urls[rank::world][worker::workers], batch_size)
        if self.sample_size is None:
            return batches
        count = -(-self.sample_size // (batch_size * world))  # batches of this rank
        return itertools.islice(batches, len(range(worker, count, workers)))

    def _test_batches(self, urls: Sequence[str], batch_size: int) -> Iterator[ImageBatch]:
        pairs = []
        for sample in read_samples(urls):
            image, label = decode(sample, self.classes, self.decoding)
            # Transform each image immediately, because a batch of full-size photographs could fill
            # the memory.
            pairs.append((transforms.centered([image], self.image_size), label))
            if len(pairs) == batch_size:
                yield _stacked(pairs)
                pairs = []
        if pairs:
            yield _stacked(pairs)

    def most_workers(self, world: int) -> int:
        return max(len(self.urls) // world, 1)

    def expected_images(self, rank: int, world: int) -> int | None:
        if self.sample_size is not None:
            return None
        if self.sizes is None:
            return self.count if world == 1 else None
        return sum(self.sizes[rank::world])


def _stacked(pairs: list) -> ImageBatch:
    images, labels = zip(*pairs, strict=True)
    return ImageBatch(torch.cat(images), torch.tensor(labels))


def _stream_seed(epoch: TrainEpoch, number: int) -> int:
    """Return the seed of a shuffled stream, which differs from the seeds of all images."""
    position = np.array([transforms.NO_IMAGE + number], np.uint64)
    return int(transforms.image_seeds(epoch.seed, epoch.epoch, position)[0])


def open_shards(
    spec: DatasetSpec,
    split: str,
    root: str | Path,
    image_size: int | None = None,
    limit: int | None = None,
) -> ShardSplit:
    """Open one split of the shards at `root`.

    Args:
        spec: facts about the dataset.
        split: `train` or `test`.
        root: path, URL or pattern; see `shard_index`.
        image_size: height and width of the transformed images, pixels (default: the dataset's).
        limit: minimum number of images in a random selection of whole shards, which needs
            `shards.json` (default: all shards).

    Raises:
        UserError: there are no such shards, the number of images or the classes are unknown, or
            the package webdataset is missing.
    """
    webdataset()
    found = find_shards(str(root), split)
    count = sum(found.sizes) if found.sizes is not None else spec.images.get(split)
    classes = found.class_names or [str(label) for label in range(spec.classes or 0)]
    for fact, value in (("number of images", count), ("classes", classes)):
        if not value:
            raise UserError(
                f"{root}: the {fact} of these shards cannot be determined. Pass the path of the "
                f"{INDEX} that robust-backbones make-shards writes."
            )
    assert count is not None
    spec.check_classes(root, len(classes))
    if spec.images.get(split, count) != count:
        raise UserError(
            f"{root}: found {count} {split} images, but {spec.name} has {spec.images[split]}. Use "
            "the dataset 'folder' for a part of it."
        )
    opened = ShardSplit(
        name=spec.name,
        split=split,
        classes=len(classes),
        image_size=image_size or spec.image_size,
        statistics=spec.statistics,
        augmentation=spec.augmentation,
        class_names=tuple(classes),
        urls=tuple(found.urls),
        sizes=tuple(found.sizes) if found.sizes else None,
        count=count,
    )
    return opened if limit is None else opened.limited(limit)


def read_samples(urls: Iterable[str]) -> Iterator[dict]:
    """Yield the samples of these shards in order, without decoding images.

    Raises:
        UserError: a shard cannot be read to its end.
    """
    group = webdataset().tariterators.group_by_keys
    for url in urls:
        try:
            yield from group(_members(open_shard(url), url))
        except UserError:
            raise
        except Exception as error:  # errors of curl, a shell command, tarfile or a storage package
            raise UserError(
                f"shard {url} cannot be read ({error}). Check it, or fetch it again."
            ) from error


def _members(stream: IO[bytes], url: str) -> Iterator[dict]:
    """Yield the files of a shard as WebDataset does, but reject oversized files before reading."""
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            if member.isreg() and not re.match(r"__[^/]*__($|/)", member.name):
                data = read_member(archive, member)
                yield {"fname": member.name, "data": data, "__url__": url}
            archive.members = []  # type: ignore[attr-defined]  # tarfile would store every member


def shuffled(stream: Iterator[dict], buffer: int, seed: int) -> Iterator[dict]:
    """Shuffle a stream reproducibly through a buffer of `buffer` samples."""
    filters = webdataset().filters
    return filters._shuffle(iter(stream), buffer, buffer, random.Random(seed))


def decode(sample: dict, classes: int, decoding: Decoding) -> tuple[Image.Image, int]:
    """Decode a sample to a PIL RGB image and its label.

    Raises:
        UserError: the image or the label is missing, or the label is outside [0, classes).
    """
    where = f"{sample['__url__']}: {sample['__key__']}"
    extension = next((name for name in IMAGES if name in sample), None)
    if extension is None or LABEL not in sample:
        has = ", ".join(key for key in sample if not key.startswith("__"))
        raise UserError(
            f"{where} must have an image ({', '.join(IMAGES)}) and .{LABEL}, but has {has}."
        )
    try:
        label = int(sample[LABEL])
    except ValueError:
        label = -1
    if not 0 <= label < classes:
        text = sample[LABEL].decode(errors="replace")
        raise UserError(f"{where}.{LABEL} is '{text[:20]}'. It must be a label in [0, {classes}).")
    file, name = io.BytesIO(sample[extension]), f"{where}.{extension}"
    return decode_image(file, name, decoding), label
