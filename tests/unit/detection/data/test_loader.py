"""The training stream: Detectron2's order, and the same continuation from any iteration."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data import loader as loaders
from robust_backbones.detection.data.loader import TrainLoader, seed_from
from tests.support.small_detectors import batch, tiny_config

DICTS = [{"file_name": str(i), "width": 2 if i % 3 else 1, "height": 1.5} for i in range(11)]


def mapper(item: dict) -> dict:
    return item | {"noise": float(np.random.rand()), "torch": torch.rand(()).item()}


def loader(start=0, group=True, workers=0, seed=1, mapper=mapper):
    from detectron2.data.samplers import TrainingSampler

    sampler = TrainingSampler(len(DICTS), seed=seed)
    made = TrainLoader(
        DICTS, mapper, sampler, batch_size=2, group=group, workers=workers, seed=seed
    )
    made.start_iter = start
    return made


def take(n, **settings):
    return list(itertools.islice(iter(loader(**settings)), n))


def names(batches):
    return [[item["file_name"] for item in batch] for batch in batches]


@pytest.mark.parametrize("group", [True, False])
def test_order_and_grouping_are_detectron2s(group):
    from detectron2.data import build_detection_train_loader
    from detectron2.data.samplers import TrainingSampler

    theirs = build_detection_train_loader(
        DICTS,
        mapper=mapper,
        sampler=TrainingSampler(len(DICTS), seed=1),
        total_batch_size=2,
        aspect_ratio_grouping=group,
        num_workers=0,
    )
    assert names(take(20, group=group)) == names(list(itertools.islice(iter(theirs), 20)))


@pytest.mark.parametrize("start", [1, 7, 13])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_is_the_rest_of_the_first(start, workers):
    whole = take(16)
    rest = take(16 - start, start=start, workers=workers)
    assert rest == whole[start:]  # images, and what augmentation drew for them


def even(item: dict) -> dict | None:
    return None if int(item["file_name"]) % 2 else mapper(item)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mapper_that_returns_none_takes_another_image(workers):
    whole = take(16, mapper=even)
    assert {int(item["file_name"]) % 2 for batch in whole for item in batch} == {0}
    assert len({item["noise"] for batch in whole for item in batch}) == 32
    plain = take(16)
    for each, given in zip(whole, plain, strict=True):  # accepted images are at their places
        assert all(a == b for a, b in zip(each, given, strict=True) if even(b))
    assert take(9, start=7, mapper=even, workers=workers) == whole[7:]


def test_a_mapper_that_returns_none_for_all_images_is_an_error():
    with pytest.raises(UserError, match="returned None for all 11 images"):
        take(1, mapper=lambda item: None)


def test_a_mapper_of_a_detectron2_dataset_may_return_none():
    """Python 3.11 does not sample from sets."""
    from detectron2.data import DatasetFromList, MapDataset

    found = MapDataset(DatasetFromList(DICTS), even)
    assert int(found[1]["file_name"]) % 2 == 0


def test_another_seed_is_another_stream():
    assert names(take(5)) != names(take(5, seed=2))
    noise = [item["noise"] for batch in take(16) for item in batch]
    assert len(set(noise)) == len(noise)


def test_the_stream_leaves_the_global_torch_generator_alone():
    stream = iter(loader())
    before = torch.get_rng_state()
    next(stream)
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_depend_on_every_part():
    seeds = {seed_from(*parts) for parts in itertools.product(range(6), repeat=3)}
    assert len(seeds) == 216
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_images_for_a_gpu_are_pinned(monkeypatch, device):
    monkeypatch.setattr(
        loaders.CheckedLoader, "__iter__", lambda self: iter([self._loader.pin_memory])
    )
    cfg = tiny_config(**{"MODEL.DEVICE": device})
    for made in (
        loaders.build_train_loader(cfg),
        loaders.build_test_loader(cfg, "digit_scenes_val"),
    ):
        assert next(iter(made)) == (device == "cuda")


def test_all_images_of_a_batch_can_be_pinned(monkeypatch):
    """Tensors in dictionaries are pinned. Detectron2's Instances, which are small, are kept."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x, *args: pinned.append(x) or x)
    items = batch(tiny_config())
    found = pin_memory(items)
    assert [x.shape for x in pinned] == [item["image"].shape for item in items]
    assert [each.keys() for each in found] == [item.keys() for item in items]
