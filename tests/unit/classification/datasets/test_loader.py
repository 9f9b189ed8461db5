"""Batches do not depend on ranks, workers and resuming; errors of the loader."""

import multiprocessing
import os
import signal
from functools import partial

import pytest
import torch

from classification import transforms
from classification.datasets import loader
from classification.datasets.open import open_split
from classification.datasets.shard_writer import write_shards
from classification.datasets.split import ImageSplit, TrainEpoch
from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import PRESETS
from tests.support.processes import watch_starts
from tests.support.small_data import CLASSES, write_tree


def numbered(n=42, size=4):
    """Return a split whose image i has value i everywhere, and label i."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, size, size)
    return ImageSplit(
        name="numbers",
        split="train",
        classes=n,
        image_size=size,
        statistics=PRESETS["half"],
        augmentation="none",
        images=images.contiguous(),
        labels=torch.arange(n),
        class_names=tuple(map(str, range(n))),
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("data") / "tree", size=40)


@pytest.fixture(params=["numbered", "digits", "folder"])
def source(request, tree):
    """uint8 in memory, float in memory, and files that must be resized."""
    return {
        "numbered": numbered,
        "digits": lambda: open_split("digits", "train", limit=42),
        "folder": lambda: open_split("folder", "train", tree, image_size=24),
    }[request.param]()


def train(source, size=8, augmentation="crop4_flip", seed=3, epoch=1, **options):
    return list(
        loader.train_batches(
            source, size, augmentation=augmentation, seed=seed, epoch=epoch, **options
        )
    )


def same(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(a, b)
        for one, two in zip(batches, others, strict=True)
        for a, b in zip(one, two, strict=True)
    )


def test_training_batches_are_full_and_shuffled_without_repeats():
    source = numbered()
    batches = train(source, augmentation="none")
    labels = torch.cat([y for _, y in batches])
    assert [len(y) for _, y in batches] == [8] * 5 == [8] * loader.steps(source, 8)
    assert len(set(labels.tolist())) == 40 and labels.tolist() != sorted(labels.tolist())
    for x, y in batches:
        assert x.shape == (8, 3, 4, 4) and x.dtype == torch.float32 and y.dtype == torch.int64
        assert torch.equal(x, (y / 255).view(8, 1, 1, 1).expand(8, 3, 4, 4))
    for other in ({"seed": 4}, {"epoch": 2}):
        assert not same(batches, train(source, augmentation="none", **other))


@pytest.mark.parametrize("augmentation", ["none", "shift2", "crop4_flip", "imagenet"])
def test_ranks_workers_and_resuming_change_nothing(source, augmentation):
    whole = train(source, augmentation=augmentation)
    again = train(source, augmentation=augmentation, start=3)
    assert same(whole[3:], again) and not train(source, start=len(whole))
    parts = [train(source, augmentation=augmentation, rank=rank, world=2) for rank in (0, 1)]
    together = [
        (torch.cat([a, b]), torch.cat([c, d])) for (a, c), (b, d) in zip(*parts, strict=True)
    ]
    assert same(whole, together)


def test_any_number_of_workers_gives_the_same_batches(tree):
    source = open_split("folder", "train", tree, image_size=24)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for workers in (1, 2):
        options = {"augmentation": "imagenet", "rank": 1, "world": 2, "start": 1}
        assert same(train(source, **options), train(source, workers=workers, **options))
        tests = [list(loader.load_batches(source, 5, workers=w)) for w in (0, workers)]
        assert same(*tests)
        sent = source.train_batches(TrainEpoch(8, "imagenet", 0, 0), 0, 1)
        assert next(sent).pixels.dtype == torch.uint8
    assert torch.equal(torch.get_rng_state(), state), "loading drew from the global generator"


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_of_several_epochs_start_once(tree, tmp_path, workers, monkeypatch):
    """The stream equals the epochs one by one, from the middle of an epoch too."""
    shards = write_shards(tree, tmp_path / "shards", images_per_shard=4)
    started = watch_starts(monkeypatch)
    for data in (tree, shards):
        source = open_split("folder", "train", data, image_size=24)
        options = {"augmentation": "imagenet", "workers": workers}
        one_by_one = [train(source, **options, epoch=epoch) for epoch in (1, 2, 3)]
        started.clear()
        together = train(source, **options, epochs=3, start=2)
        assert same(together, [*one_by_one[0][2:], *one_by_one[1], *one_by_one[2]])
        assert len(started) == workers and not any(each.is_alive() for each in started)


def test_test_batches_can_be_read_again_by_the_same_workers(tree):
    source = open_split("folder", "test", tree, image_size=24)
    made = loader.TestLoader(source, 5, workers=2)
    whole = list(loader.load_batches(source, 5))
    next(iter(made))  # a pass that stops early
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for _ in range(2):
        assert same(list(made), whole)
    assert multiprocessing.active_children() == workers
    del made
    assert not multiprocessing.active_children()


def test_order_and_augmentation_do_not_depend_on_the_batch_size():
    small, large = (train(numbered(), size) for size in (5, 10))
    assert torch.equal(torch.cat([x for x, _ in small]), torch.cat([x for x, _ in large]))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("indices", [None, [5, 3, 8, 1, 0, 2, 7], []])
def test_every_image_is_tested_once_in_order(world, indices):
    source = numbered(17) if indices is None else numbered(17).subset(indices)
    read = partial(loader.load_batches, source, 4, world=world)
    batches = [batch for rank in range(world) for batch in read(rank=rank)]
    labels = torch.cat([y for _, y in batches]).tolist() if batches else []
    assert labels == (list(range(17)) if indices is None else indices)
    assert all(len(y) <= 4 and torch.equal(x[:, 0, 0, 0] * 255, y.float()) for x, y in batches)
    sizes = [sum(len(y) for _, y in read(rank=rank)) for rank in range(world)]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "size, options, message",
    [
        (43, {}, "--batch-size 43: there are only 42 training images. Choose at most 42"),
        (9, {"world": 2}, "--batch-size 9: not a multiple of the 2 processes. Choose a multiple"),
        (8, {"augmentation": "blur"}, "augmentation 'blur' is unknown. Choose from none, shift2"),
    ],
)
def test_invalid_arguments_fail_before_the_first_batch(size, options, message):
    arguments = {"augmentation": "none", "seed": 0, "epoch": 0} | options
    with pytest.raises(UserError, match=message):
        loader.train_batches(numbered(), size, **arguments)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_error_names_an_unreadable_image(workers, tmp_path):
    tree = write_tree(tmp_path / "tree")
    (tree / "test" / "bee" / "002.png").write_text("<html>")
    source = open_split("folder", "test", tree, image_size=32)
    with pytest.raises(UserError) as caught:
        list(loader.load_batches(source, 4, workers=workers))
    assert "bee/002.png cannot be read" in str(caught.value) and "\n" not in str(caught.value)


def test_a_dead_worker_is_reported(monkeypatch):
    def die(images, size):
        os.kill(os.getpid(), signal.SIGKILL)

    parent = os.getpid()
    monkeypatch.setattr(transforms, "centered", die)
    with pytest.raises(UserError, match="a worker that loads images died .*Use fewer --workers"):
        list(loader.load_batches(numbered(), 4, workers=1))
    assert os.getpid() == parent


def test_workers_ignore_sigterm(monkeypatch):
    """The training process saves first, and needs batches until then."""

    def terminated(images, size):
        os.kill(os.getpid(), signal.SIGTERM)
        return images

    monkeypatch.setattr(transforms, "centered", terminated)
    assert sum(len(y) for _, y in loader.load_batches(numbered(), 4, workers=1)) == len(numbered())


def test_workers_use_one_thread(monkeypatch):
    monkeypatch.setattr(
        transforms, "centered", lambda x, size: torch.tensor([torch.get_num_threads()])
    )
    assert next(loader.load_batches(numbered(), 4, workers=1))[0].item() == 1


def test_labels_and_class_names_of_folders(tree):
    source = open_split("folder", "test", tree, image_size=24)
    labels = torch.cat([y for _, y in loader.load_batches(source, 5)])
    assert torch.equal(labels, source.labels) and source.class_names == CLASSES
