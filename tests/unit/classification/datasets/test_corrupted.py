"""Corrupted test images against the corruption package."""

import imagecorruptions
import numpy as np
import pytest
import torch

from classification.datasets.corrupted import CorruptedSplit, seed
from classification.datasets.loader import load_batches
from classification.datasets.open import open_split
from tests.support.small_data import write_tree

VERSIONS = (("brightness", 2), ("contrast", 5), ("gaussian_noise", 3))


@pytest.mark.parametrize("dataset", ["digits", "folder"])
@pytest.mark.parametrize("workers", [0, 2])
def test_items_are_versions_of_the_images_that_the_network_sees(tmp_path, dataset, workers):
    root = write_tree(tmp_path / "data", size=45) if dataset == "folder" else None
    source = open_split(dataset, "test", root, limit=12, image_size=32)
    clean = torch.cat([x for x, _ in load_batches(source, 5)])
    items = torch.tensor([0, 5, 11, 12, 20, 24, 35])
    split = CorruptedSplit.of(source, VERSIONS, items)
    batches = list(load_batches(split, 3, workers=workers))
    assert [len(y) for _, y in batches] == [3, 3, 1]
    assert torch.cat([y for _, y in batches]).tolist() == source.labels[items % 12].tolist()
    found = torch.cat([x for x, _ in batches])
    for x, item in zip(found, items.tolist(), strict=True):
        kind, severity = VERSIONS[item // 12]
        image = (255 * clean[item % 12]).round().byte().permute(1, 2, 0).numpy()
        np.random.seed(seed(item % 12, kind, severity) % 2**32)
        expected = imagecorruptions.corrupt(image, severity, kind)
        assert (255 * x).round().byte().permute(1, 2, 0).numpy().tolist() == expected.tolist()


def test_seeds_differ():
    seeds = {seed(i, kind, s) for i in range(50) for kind in ("fog", "snow") for s in range(1, 6)}
    assert len(seeds) == 500 and all(0 <= each < 2**63 for each in seeds)
