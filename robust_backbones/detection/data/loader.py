"""Data loaders for training and testing.

The training batches are a function of the seed and the position in the stream. Therefore, a run
that is resumed at iteration k gets the same batches as a run without interruption. Detectron2's own
loader would start from the first batch again.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from robust_backbones.core.errors import UserError, WorkerFailure
from robust_backbones.detection.data.mapper import ImageMapper


def seed_from(*parts: int) -> int:
    """Hash integers, such as (run seed, iteration, rank), to a 63-bit seed."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def build_train_loader(
    cfg: CfgNode, mapper: Callable[[dict], dict | None] | None = None
) -> "TrainLoader":
    """Create the loader of `DATASETS.TRAIN`, with Detectron2's dataset dicts and sampler.

    Args:
        cfg: configuration.
        mapper: function from a dataset dict to the model's input. If it returns None, another image
            is used instead. By default, an `ImageMapper`.

    Raises:
        UserError: the sampler is unknown, or the batch size is not a multiple of the number of
            processes times `SOLVER.ACCUMULATE`.
    """
    world = comm.get_world_size()
    parts = world * cfg.SOLVER.ACCUMULATE
    if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % parts:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}. It must be a positive multiple "
            f"of the number of GPUs times SOLVER.ACCUMULATE, {world} x {cfg.SOLVER.ACCUMULATE}."
        )
    dicts = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    return TrainLoader(
        dicts,
        CheckedMapper(mapper or ImageMapper(cfg, is_train=True)),
        _sampler(cfg, dicts),
        batch_size=cfg.SOLVER.IMS_PER_BATCH // parts,
        group=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        workers=cfg.DATALOADER.NUM_WORKERS,
        seed=cfg.SEED,
        device=cfg.MODEL.DEVICE,
    )


def build_test_loader(cfg: CfgNode, name: str) -> "CheckedLoader":
    """Create Detectron2's test loader for a dataset, wrapped in a `CheckedLoader`."""
    mapper = CheckedMapper(ImageMapper(cfg, is_train=False))
    return CheckedLoader(build_detection_test_loader(cfg, name, mapper=mapper), cfg.MODEL.DEVICE)


def _sampler(cfg: CfgNode, dicts: list[dict]) -> Sampler:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return TrainingSampler(len(dicts), seed=cfg.SEED)
    if name == "RepeatFactorTrainingSampler":
        repeat = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dicts, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        return RepeatFactorTrainingSampler(repeat, seed=cfg.SEED)
    raise UserError(
        f"DATALOADER.SAMPLER_TRAIN '{name}' is unknown. Choose from TrainingSampler, "
        "RepeatFactorTrainingSampler."
    )


class TrainLoader:
    """An endless iterable of batches, which are lists of mapped dicts.

    Attributes:
        start_iter: index of the first batch to yield. Set it before the iteration starts.
        images: number of images.
    """

    def __init__(
        self,
        dicts: list[dict],
        mapper: Callable[[dict], Any],
        sampler: Iterable[int],
        *,
        batch_size: int,
        group: bool,
        workers: int,
        seed: int,
        device: str = "cpu",
    ):
        self.start_iter, self.images = 0, len(dicts)
        self._batches = _Batches(dicts, sampler, batch_size, group)
        self._dataset = _SeededDataset(dicts, mapper, seed)
        self._workers, self._device = workers, device

    def __iter__(self) -> Iterator[list[dict]]:
        # This is a generator function, so it reads start_iter when the first batch is requested.
        self._batches.start = self.start_iter
        yield from CheckedLoader(
            DataLoader(
                self._dataset,
                batch_sampler=self._batches,
                num_workers=self._workers,
                collate_fn=list,
                # By default, DataLoader would advance the global generator.
                generator=torch.Generator().manual_seed(0),
            ),
            self._device,
        )


class CheckedMapper:
    """A mapper that returns a `WorkerFailure` if an image is missing, damaged or rejected."""

    def __init__(self, mapper: Callable[[dict], dict | None]):
        self._mapper = mapper

    def __call__(self, item: dict) -> "dict | WorkerFailure | None":
        try:
            return self._mapper(item)
        except UserError as error:
            return WorkerFailure(str(error))


class CheckedLoader:
    """A loader that raises a `UserError` if a batch contains a `WorkerFailure`.

    Args:
        loader: loader of lists of mapped dicts. Its batches are in pinned memory if the device is a
            GPU, because other copies wait for the GPU.
        device: name of the model's device.
    """

    def __init__(self, loader: DataLoader, device: str):
        self._loader = loader
        self._loader.pin_memory = torch.device(device).type == "cuda"

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self._loader:
            for item in batch:
                if isinstance(item, WorkerFailure):
                    raise UserError(item)
            yield batch


class _SeededDataset(Dataset):
    """A dataset that maps `(position in the stream, index of the image)` to a mapped dict.

    The run seed and the position determine the random augmentation. They also determine the image
    that is used if the mapper returns None.
    """

    def __init__(self, dicts: list[dict], mapper: Callable[[dict], Any], seed: int):
        # Serialized, because reading Python objects in a worker process copies their memory pages.
        self._dicts = DatasetFromList(dicts, serialize=True)
        self._mapper, self._seed = mapper, seed

    def __len__(self) -> int:
        return len(self._dicts)

    def __getitem__(self, key: tuple[int, int]) -> "dict | WorkerFailure":
        position, index = key
        seed = seed_from(self._seed, position)
        if (mapped := self._map(index, seed)) is not None:
            return mapped
        for other in np.random.default_rng(seed).permutation(len(self)).tolist():
            if other != index and (mapped := self._map(other, seed)) is not None:
                return mapped
        return WorkerFailure(f"The data mapper returned None for all {len(self)} images.")

    def _map(self, index: int, seed: int) -> "dict | WorkerFailure | None":
        # Detectron2's augmentations use the global generators.
        np.random.seed(seed % 2**32)
        random.seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._mapper(self._dicts[index])


class _Batches(Sampler):
    """A batch sampler that yields lists of `(position, index)`.

    As in Detectron2, wide and tall images are in separate batches if `group` is true. The sizes of
    the images are read from the annotations, so no image is loaded to skip the first `start`
    batches.
    """

    def __init__(self, dicts: list[dict], sampler: Iterable[int], batch_size: int, group: bool):
        self.start = 0
        self._wide = [group and d["width"] > d["height"] for d in dicts]
        self._sampler, self._batch_size = sampler, batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        made = 0
        waiting = {True: [], False: []}
        rank, world = comm.get_rank(), comm.get_world_size()
        for count, index in enumerate(self._sampler):
            bucket = waiting[self._wide[index]]
            bucket.append((count * world + rank, index))
            if len(bucket) == self._batch_size:
                if made >= self.start:
                    yield bucket[:]
                made += 1
                bucket.clear()
