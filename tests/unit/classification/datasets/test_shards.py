"""Shards: exact evaluation, equal steps on all ranks, resuming, and a web server."""

import json
import subprocess
import sys
from functools import partial

import fsspec
import pytest
import torch
import webdataset
from PIL import Image

from classification.datasets import loader, shards
from classification.datasets.open import open_images, open_split
from classification.datasets.shard_writer import write_shards
from classification.datasets.specs import DATASETS
from robust_backbones.core.errors import UserError
from tests.support import ROOT
from tests.support.small_data import CLASSES, write_tree
from tests.support.web import serve

TOOL = ROOT / "tools" / "make_shards.py"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("data") / "tree", {"train": 20, "test": 9})


@pytest.fixture(scope="module")
def folder(tree):
    """60 training images in 9 shards and 27 test images in 4, written by the tool."""
    out = tree.with_name("shards")
    command = [sys.executable, str(TOOL), str(tree), str(out), "--images-per-shard", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"pass --data {out}/shards.json"
    return out


def opened(folder, split, **options):
    return open_split("folder", split, folder, image_size=32, **options)


def train(source, **options):
    options = {"augmentation": "crop4_flip", "seed": 0, "epoch": 0} | options
    return list(loader.train_batches(source, 10, **options))


def keys(batches):
    """Return one number per image; all images differ."""
    return sorted(
        (round(x.double().sum().item(), 3), y)
        for b in batches
        for x, y in zip(b[0], b[1].tolist(), strict=True)
    )


def same(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(a, b)
        for one, two in zip(batches, others, strict=True)
        for a, b in zip(one, two, strict=True)
    )


@pytest.fixture(scope="module")
def truth(tree):
    """Return split -> keys of all images, read from the folder."""
    return {
        split: keys(loader.load_batches(opened(tree, split), 10)) for split in ("train", "test")
    }


def test_the_writer_mixes_classes(folder):
    index = json.loads((folder / "shards.json").read_text())
    assert index["classes"] == list(CLASSES) and list(index["splits"]) == ["train", "test"]
    assert list(index["splits"]["train"].values()) == [7] * 8 + [4]
    source = opened(folder, "train")
    assert len(source) == 60 and source.class_names == CLASSES
    labels = [int(sample["cls"]) for sample in shards.read_samples(source.urls[:2])]
    assert len(set(labels)) == 3 and labels != sorted(labels)


def test_equal_folders_make_equal_shards(tree, folder, tmp_path):
    write_shards(tree, tmp_path, 7, progress=lambda line: None)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    with pytest.raises(UserError, match="already contains shards. Choose another folder"):
        write_shards(tree, tmp_path, 7)


@pytest.mark.parametrize("world, workers", [(1, 0), (1, 2), (2, 2), (3, 0), (6, 0)])
def test_every_image_is_tested_exactly_once(folder, truth, world, workers):
    read = partial(loader.load_batches, opened(folder, "test"), 4, world=world, workers=workers)
    batches = [batch for rank in range(world) for batch in read(rank=rank)]
    assert keys(batches) == truth["test"] and all(len(y) <= 4 for _, y in batches)


def test_one_process_trains_on_every_image_once(folder, truth):
    batches = train(opened(folder, "train"), augmentation="none")
    assert len(batches) == 6 and keys(batches) == truth["train"]
    labels = torch.cat([y for _, y in batches])
    assert not torch.equal(
        labels, torch.cat([y for _, y in train(opened(folder, "train"), epoch=1)])
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_take_equal_steps_and_resume_exactly(folder, truth, workers):
    torch.manual_seed(0)
    state, source = torch.get_rng_state(), opened(folder, "train")
    parts = [train(source, rank=rank, world=2, workers=workers) for rank in (0, 1)]
    assert [[len(y) for _, y in part] for part in parts] == [[5] * 6] * 2
    for rank, part in enumerate(parts):
        for start in (1, 4, 6):
            later = train(source, rank=rank, world=2, workers=workers, start=start)
            assert same(part[start:], later)
    plain = [train(source, rank=r, world=2, workers=workers, augmentation="none") for r in (0, 1)]
    first, second = (set(keys(part)) for part in plain)
    assert first | second <= set(truth["train"]) and not first & second
    assert len(first | second) > 50  # a worker without shards starts again
    assert torch.equal(torch.get_rng_state(), state)


def test_too_many_processes_for_the_shards(folder):
    with pytest.raises(UserError, match="9 shards are too few for 5 processes with 2 workers each"):
        [train(opened(folder, "train"), world=5, workers=2, rank=rank) for rank in range(5)]


def test_a_limit_takes_whole_shards(folder):
    source = opened(folder, "train", limit=20)
    assert len(source) == 21 or len(source) == 25
    assert source.fingerprint() != opened(folder, "train").fingerprint()
    assert len(list(loader.load_batches(source, 50))[0][1]) == len(source)
    assert opened(folder, "train", limit=61) == opened(folder, "train")


@pytest.fixture
def foreign(tree, tmp_path, monkeypatch):
    """Shards without an index; an ImageNet with three classes."""
    row = DATASETS["imagenet"]
    small = {"classes": 3, "images": {"train": 60, "test": 27}, "image_size": 32}
    monkeypatch.setitem(DATASETS, "imagenet", type(row)(**(vars(row) | small)))
    for split, count in (("train", 20), ("val", 9)):
        pattern = str(tmp_path / f"{split}-%06d.tar")
        with webdataset.ShardWriter(pattern, maxcount=10, verbose=0) as writer:
            for i, file in enumerate(sorted((tree / split.replace("val", "test")).rglob("*.png"))):
                writer.write({"__key__": f"n{i:05}", "png": file.read_bytes(), "cls": i // count})
    return tmp_path


@pytest.fixture
def web(foreign):
    """The URL of a local server for these shards."""
    with serve(foreign) as url:
        yield url


PATTERN = "{0}/train-{{000000..000005}}.tar;{0}/val-{{000000..000002}}.tar"


def test_shards_without_an_index(foreign, truth):
    roots = [foreign, PATTERN.format(foreign)]
    for root in roots:
        train_part, test = (open_split("imagenet", split, root) for split in ("train", "test"))
        assert keys(loader.load_batches(test, 8, workers=2)) == truth["test"]
        assert keys(train(train_part, augmentation="none")) == truth["train"]
    command = "pipe:cat " + PATTERN.format(foreign).split(";")[0]
    piped = open_split("imagenet", "train", command)
    assert keys(train(piped, augmentation="none")) == truth["train"]


def test_shards_from_a_web_server(foreign, web, truth, folder, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    test = open_split("imagenet", "test", PATTERN.format(web))
    assert keys(loader.load_batches(test, 8, workers=2)) == truth["test"]
    parts = [loader.load_batches(test, 8, workers=2, rank=rank, world=2) for rank in (0, 1)]
    assert keys([batch for part in parts for batch in part]) == truth["test"]
    for path in folder.iterdir():
        (foreign / path.name).write_bytes(path.read_bytes())
    source = opened(f"{web}/shards.json", "test")
    assert len(source) == 27 and keys(loader.load_batches(source, 8)) == truth["test"]
    assert source.fingerprint() == opened(folder, "test").fingerprint()
    (foreign / "val-000001.tar").unlink()
    with pytest.raises(UserError, match="shard http.*val-000001.tar cannot be read"):
        list(loader.load_batches(test, 8))


@pytest.fixture
def memory(foreign, folder):
    """The URL of these shards, with an index and without, in fsspec's memory."""
    files = fsspec.filesystem("memory")
    for path in (*folder.iterdir(), *foreign.glob("*.tar")):
        files.pipe(
            f"/{'own' if path.parent == folder else 'foreign'}/{path.name}", path.read_bytes()
        )
    yield "memory:/"
    files.store.clear()


@pytest.mark.parametrize("chain", ["", "simplecache::"])
def test_shards_from_object_storage(memory, truth, folder, chain):
    test = open_split("imagenet", "test", PATTERN.format(f"{chain}{memory}/foreign"))
    for workers in (0, 2):
        assert keys(loader.load_batches(test, 8, workers=workers)) == truth["test"]
    source = opened(f"{chain}{memory}/own/shards.json", "train")
    assert keys(train(source, augmentation="none")) == truth["train"]
    assert source.fingerprint() == opened(folder, "train").fingerprint()


@pytest.mark.parametrize(
    "root, message",
    [
        (
            "memory://nowhere/shards.json",
            "memory://nowhere/shards.json cannot be read .* Check the",
        ),
        ("nofs://bucket/shards.json", "cannot be opened .*Protocol not known: nofs.* Install the"),
        ("memory://own/x-{0..1}.tar;memory://own/x-{0..1}.tar", "x-0.tar cannot be read"),
    ],
)
def test_errors_of_object_storage(memory, root, message):
    with pytest.raises(UserError, match=message):
        name = "imagenet" if ".tar" in root else "folder"
        list(loader.load_batches(open_split(name, "test", root), 8))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_image_is_an_error(foreign, workers):
    path = foreign / "val-000002.tar"
    with webdataset.TarWriter(str(path)) as writer:
        writer.write({"__key__": "a", "png": Image.new("RGB", (32, 32)), "cls": 2})
    with pytest.raises(
        UserError, match="imagenet: read 21 images from the test shards instead of 27"
    ):
        list(loader.load_batches(open_split("imagenet", "test", foreign), 8, workers=workers))


BAD = [
    ({"png": b"<html>", "cls": 0}, "val-000002.tar: a.png cannot be read as an image"),
    ({"txt": "hello", "cls": 0}, "tar: a must have an image .* and .cls, but has cls, txt"),
    ({"png": Image.new("RGB", (4, 4)), "cls": 3}, r"a.cls is '3'. It must be a label in \[0, 3\)"),
]


@pytest.mark.parametrize("sample, message", BAD)
def test_invalid_samples(foreign, sample, message):
    with webdataset.TarWriter(str(foreign / "val-000002.tar")) as writer:
        writer.write({"__key__": "a"} | sample)
    with pytest.raises(UserError, match=message):
        list(loader.load_batches(open_split("imagenet", "test", foreign), 8, workers=1))


def test_a_truncated_shard(foreign):
    path = foreign / "val-000001.tar"
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match="val-000001.tar cannot be read"):
        list(loader.load_batches(open_split("imagenet", "test", foreign), 8))


@pytest.mark.parametrize(
    "name, split, root, options, message",
    [
        ("imagenet", "train", "{0}/x-{{0..3}}.tar", {}, "4 of 4 shards do not exist, .*x-0.tar"),
        ("imagenet", "test", "{0}/train-000000.tar", {}, "training shards only. Pass 'TRAIN;TEST'"),
        (
            "folder",
            "train",
            "{0}",
            {},
            "number of images of these shards cannot be determined. .* shards.json",
        ),
        ("imagenet", "train", "{0}", {"limit": 3}, "limit of 3 .* without shards.json"),
        ("imagenet", "train", "{0}", {"held_out": 0.1}, "shards do not support a held-out part"),
        (
            "folder",
            "train",
            "{0}/nowhere/shards.json",
            {},
            "shards.json: cannot be read as an index",
        ),
    ],
)
def test_user_mistakes(foreign, name, split, root, options, message):
    with pytest.raises(UserError, match=message):
        open_split(name, split, root.format(foreign), **options)


def test_single_images_cannot_be_read(folder):
    with pytest.raises(UserError, match="whose images cannot be read by index. Pass a folder"):
        open_images("folder", "test", folder)


def test_without_webdataset_the_error_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(UserError, match='Run: pip install "webdataset>=1.0"'):
        opened(folder, "test")
