"""Corrupted versions of test images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from classification import transforms
from classification.datasets.split import ImageBatch, ImageSplit
from robust_backbones.corruptions import KINDS, SEVERITIES, corrupt

SEED = 2020  # every run corrupts an image in the same way


@dataclass(frozen=True)
class CorruptedSplit(ImageSplit):
    """Corrupted versions of the images of a split, after resizing and cropping, in uint8.

    Item `v * N + i` is version v of image i of the N images in the split.

    Attributes:
        versions: kind and severity of each version.
        items: items to read, in this order, `(M,)` int64.
    """

    versions: tuple[tuple[str, int], ...] = field(kw_only=True)
    items: Tensor = field(kw_only=True)

    @classmethod
    def of(
        cls, source: ImageSplit, versions: tuple[tuple[str, int], ...], items: Tensor
    ) -> CorruptedSplit:
        """Return the items of a split."""
        return cls(**vars(source), versions=versions, items=items)

    def __len__(self) -> int:
        return len(self.items)

    def expected_images(self, rank: int, world: int) -> int:
        assert world == 1  # each process has a split with its own items
        return len(self)

    def test_batches(
        self, batch_size: int, rank: int, world: int, worker: int, workers: int
    ) -> Iterator[ImageBatch]:
        """Yield test batches in the order of the items."""
        for chosen in self.items.split(batch_size)[worker::workers] if len(self) else ():
            numbers, versions = chosen % len(self.labels), chosen // len(self.labels)
            pixels = transforms.centered(self.read(numbers), self.image_size)
            if pixels.is_floating_point():
                pixels = (255 * pixels).round().to(torch.uint8)
            pairs = zip(pixels, numbers.tolist(), versions.tolist(), strict=True)
            corrupted = [self._corrupt(image, i, *self.versions[v]) for image, i, v in pairs]
            yield ImageBatch(torch.stack(corrupted), self.labels[numbers])

    def _corrupt(self, image: Tensor, index: int, kind: str, severity: int) -> Tensor:
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        found = corrupt(pixels, kind, severity, seed(index, kind, severity))
        return torch.tensor(found).permute(2, 0, 1)  # a copy, because some results are read-only


def seed(index: int, kind: str, severity: int) -> int:
    """Return the seed of one corrupted image.

    Args:
        index: index of the image in the split.
        kind, severity: as for `corrupt`.
    """
    version = KINDS.index(kind) * len(SEVERITIES) + SEVERITIES.index(severity)
    return int(transforms.image_seeds(SEED, version, [index])[0] % 2**63)
