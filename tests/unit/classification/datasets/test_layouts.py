"""Small versions of the 12 tasks in both layouts, compared with torchvision; official lists."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as tv

from classification.datasets import layouts
from classification.datasets.open import READERS, open_split
from classification.datasets.specs import DATASETS, SUITE
from robust_backbones.core.errors import UserError
from tests.support import SHARED
from tests.support.miniature_tasks import FIRST, TASKS, use

LISTS = SHARED / "data" / "transfer_splits"
OFFICIAL = [name for name in SUITE if not name.startswith("cifar")]


def pairs(source):
    """Return sorted pairs (path, label)."""
    paths = [str(source.images.path(i)) for i in range(len(source))]
    return sorted(zip(paths, source.labels.tolist(), strict=True))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("layout", ["official", "folders"])
@pytest.mark.parametrize("name", TASKS)
def test_small_tasks(monkeypatch, tmp_path, name, layout):
    row = use(monkeypatch, name, tmp_path, layout=layout, per_class={"test": 3})
    train = FIRST.get(name, 4) if layout == "official" else 4
    monkeypatch.setenv("ROBUST_BACKBONES_DATA", str(tmp_path))
    for split, count in (("train", train), ("test", 3)):
        sources = [open_split(name, split, r) for r in (tmp_path, tmp_path / name, None)]
        for source in sources:
            assert source.labels.bincount().tolist() == [count] * 3
            assert source.labels.tolist() == sorted(source.labels.tolist()) or name[:5] == "cifar"
            assert [source[0][1], source[len(source) - 1][1]] == source.labels[[0, -1]].tolist()
            assert source.statistics == row.statistics and source.augmentation == row.augmentation
        assert len({source.fingerprint() for source in sources}) == 1
    parts = [open_split(name, split, tmp_path, held_out=0.3) for split in ("train", "val")]
    assert sum(map(len, parts)) == 3 * train
    if name in OFFICIAL:
        kind, folder = layouts.OFFICIAL[name].detect(tmp_path / name)
        assert kind == layout and folder.is_relative_to(tmp_path / name)


def of_torchvision(name, root, split):
    """Return the sorted pairs (path, label) of torchvision's split."""
    both = {"train": ("train", "val"), "test": ("test",)}[split]
    whole = {"train": "trainval", "test": "test"}[split]
    if name == "aircraft":
        parts = [tv.FGVCAircraft(root, whole)]
    elif name == "dtd":
        parts = [tv.DTD(root, part) for part in both]
    elif name == "flowers":
        parts = [tv.Flowers102(root, part) for part in both]
    elif name == "food":
        parts = [tv.Food101(root, split)]
    elif name == "cars":
        return sorted(tv.StanfordCars(root, split)._samples)
    elif name == "pets":
        data = tv.OxfordIIITPet(root, whole)
        return sorted(zip(map(str, data._images), data._labels, strict=True))
    elif name in FIRST:
        return caltech(name, root, split)
    return sorted(
        (str(f), label)
        for part in parts
        for f, label in zip(part._image_files, part._labels, strict=True)
    )


def caltech(name, root, split):
    """Return the authors' split: the first images by torchvision's index."""
    data = {"caltech101": tv.Caltech101, "caltech256": tv.Caltech256}[name](root)
    folder = Path(data.root) / f"{name[-3:]}_ObjectCategories"
    form = "image_{1:04}.jpg" if name == "caltech101" else "{0:03}_{1:04}.jpg"
    return sorted(
        (str(folder / data.categories[y] / form.format(y + 1, i)), y)
        for y, i in zip(data.y, data.index, strict=True)
        if (i <= FIRST[name]) == (split == "train")
    )


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", [n for n in OFFICIAL if n not in ("birdsnap", "sun397")])
def test_files_and_labels_equal_torchvisions(monkeypatch, tmp_path, name, split):
    use(monkeypatch, name, tmp_path, classes=4)
    # torchvision knows the digests of the official index files.
    monkeypatch.setattr(tv.flowers102, "check_integrity", lambda *_: True)
    found = [
        (str(path), int(label)) for path, label in of_torchvision(name, tmp_path / name, split)
    ]
    assert pairs(open_split(name, split, tmp_path)) == found


def test_sun397_labels_equal_torchvisions(monkeypatch, tmp_path):
    use(monkeypatch, "sun397", tmp_path)  # torchvision reads all images, without partitions
    data = tv.SUN397(tmp_path / "sun397")
    ours = [open_split("sun397", split, tmp_path) for split in ("train", "test")]
    assert sorted(pairs(ours[0]) + pairs(ours[1])) == sorted(
        zip(map(str, data._image_files), data._labels, strict=True)
    )
    assert ours[0].class_names == tuple(data.classes) == ("ant/outdoor", "bee", "cow")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_images_equal_torchvisions(monkeypatch, tmp_path, name):
    use(monkeypatch, name, tmp_path)
    monkeypatch.setattr(tv.cifar, "check_integrity", lambda *_: True)
    for split in ("train", "test"):
        data = getattr(tv, name.upper())(tmp_path / name, train=split == "train")
        source = open_split(name, split, tmp_path)
        assert np.array_equal(source.images.numpy().transpose(0, 2, 3, 1), data.data)
        assert source.labels.tolist() == data.targets


def test_birdsnap_with_missing_images_and_other_counts(monkeypatch, tmp_path, caplog):
    row = use(monkeypatch, "birdsnap", tmp_path)
    whole = open_split("birdsnap", "train", tmp_path).fingerprint()
    images = tmp_path / "birdsnap" / "birdsnap" / "download" / "images"
    (images / "bee" / "1.jpg").unlink()
    monkeypatch.setitem(DATASETS, "birdsnap", replace(row, images={"train": 12}))
    part = open_split("birdsnap", "train", tmp_path)
    assert part.labels.bincount().tolist() == [4, 3, 4]
    assert part.fingerprint() != whole
    assert "found 11 train images, but the paper's authors had 12 of birdsnap" in caplog.text
    shutil.rmtree(images)
    images.mkdir()
    with pytest.raises(UserError, match="lacks 12 of 12 listed images"):
        open_split("birdsnap", "train", tmp_path)


def test_nested_folders_of_cars_from_kaggle(monkeypatch, tmp_path):
    use(monkeypatch, "cars", tmp_path)
    folder = tmp_path / "cars" / "stanford_cars" / "cars_train"
    expected = open_split("cars", "train", tmp_path).fingerprint()
    folder.rename(tmp_path / "aside")
    folder.mkdir()
    (tmp_path / "aside").rename(folder / "cars_train")
    assert open_split("cars", "train", tmp_path).fingerprint() == expected


def test_valid_is_used_as_test(monkeypatch, tmp_path):
    use(monkeypatch, "food", tmp_path, layout="folders")
    (tmp_path / "food" / "test").rename(tmp_path / "food" / "valid")
    assert len(open_split("food", "test", tmp_path)) == 6


def test_a_single_split_of_image_folders(monkeypatch, tmp_path):
    use(monkeypatch, "pets", tmp_path, layout="folders")
    shutil.rmtree(tmp_path / "pets" / "train")
    assert len(open_split("pets", "test", tmp_path)) == 6
    with pytest.raises(UserError, match="has no folder 'train'"):
        open_split("pets", "train", tmp_path)


def test_a_root_with_train_is_the_dataset_itself(monkeypatch, tmp_path):
    use(monkeypatch, "folder", tmp_path)
    (tmp_path / "folder" / "folder").mkdir()
    assert len(open_split("folder", "test", tmp_path / "folder")) == 6


class Everything:
    """A folder that contains every name: creating tens of thousands of files would be slow."""

    def __contains__(self, name):
        return True


@pytest.fixture
def all_images(monkeypatch):
    monkeypatch.setattr(layouts, "_entries", lambda folder: Everything())


def lists(name):
    if not (LISTS / name).is_dir():
        pytest.skip(f"{LISTS / name} is not there")
    return LISTS / name


def test_the_official_partition_of_sun397(tmp_path, all_images):
    base = tmp_path / "sun397" / "SUN397"
    names = [
        (lists("sun397") / f"{part}_01.txt").read_text().split() for part in ("Training", "Testing")
    ]
    (base / "a").mkdir(parents=True)
    for file in lists("sun397").iterdir():
        shutil.copy(file, base)
    for split, part in zip(("train", "test"), names, strict=True):
        source = open_split("sun397", split, tmp_path)  # the real spec, with its counts
        assert source.labels.bincount().tolist() == [50] * 397
        paths = {"/" + file.decode() for file in source.images.names}
        assert paths == set(part)
    assert source.class_names[:2] == ("abbey", "airplane_cabin")


def test_the_official_splits_of_flowers(tmp_path, all_images):
    lists("flowers")
    base = tmp_path / "flowers" / "flowers-102"
    (base / "jpg").mkdir(parents=True)
    for file in lists("flowers").iterdir():
        shutil.copy(file, base)
    train, test = (open_split("flowers", split, tmp_path) for split in ("train", "test"))
    assert train.labels.bincount().tolist() == [20] * 102
    assert len(test) == 6149 and test.labels.unique().numel() == 102
    assert not set(train.images.names) & set(test.images.names)
    # torchvision checks the digests of the index files.
    for source, parts in ((train, ("train", "val")), (test, ("test",))):
        data = [tv.Flowers102(tmp_path / "flowers", part) for part in parts]
        found = [p for d in data for p in zip(map(str, d._image_files), d._labels, strict=True)]
        assert pairs(source) == sorted(found)


def rewrite(path, change):
    path.write_text(change(path.read_text()))


FOLDERS = {
    "aircraft": "fgvc-aircraft-2013b/data",
    "cars": "stanford_cars",
    "dtd": "dtd/dtd",
    "flowers": "flowers-102",
    "food": "food-101",
    "pets": "oxford-iiit-pet",
    "sun397": "SUN397",
    "caltech101": "caltech101/101_ObjectCategories",
    "birdsnap": "birdsnap",
}
DAMAGE = [  # task, change of its folder, error for the training split
    (
        "aircraft",
        lambda f: (f / "variants.txt").unlink(),
        r"2013b lacks data/variants.txt of aircraft. Expected the official layout .* or image",
    ),
    (
        "aircraft",
        lambda f: rewrite(f / "variants.txt", lambda t: t.replace("bee", "wasp")),
        r"train index of aircraft is damaged \(KeyError\('bee 707'\)\). Fetch it again",
    ),
    (
        "aircraft",
        lambda f: next((f / "images").glob("1*")).unlink(),
        r"images lacks 1 of 12 listed images of aircraft: 1\d+.jpg. Unpack it or fetch it again",
    ),
    ("aircraft", lambda f: shutil.rmtree(f / "images"), "lacks data/images of aircraft"),
    (
        "aircraft",
        lambda f: shutil.rmtree(f),
        "does not contain aircraft: it has the folders .* Expected the official layout",
    ),
    (
        "cars",
        lambda f: (f / "devkit/cars_train_annos.mat").write_bytes(b"<html>404</html>" * 20),
        "cars_train_annos.mat: not a complete MATLAB file",
    ),
    (
        "cars",
        lambda f: (f / "cars_test_annos_withlabels.mat").unlink(),
        "stanford_cars lacks cars_test_annos_withlabels.mat of cars",
    ),
    (
        "cars",
        lambda f: shutil.copy(f / "devkit/cars_meta.mat", f / "devkit/cars_train_annos.mat"),
        r"damaged \(KeyError\('annotations'\)\)",
    ),
    ("dtd", lambda f: rewrite(f / "labels/val1.txt", lambda t: t + t), "lists an image twice"),
    (
        "dtd",
        lambda f: rewrite(f / "labels/train1.txt", lambda t: t.replace("ant/", "")),
        "lacks 2 of 12 listed images of dtd: ant_0000.jpg, ant_0002.jpg.",
    ),
    (
        "flowers",
        lambda f: (f / "setid.mat").write_bytes((f / "setid.mat").read_bytes()[:150]),
        "setid.mat: not a complete MATLAB file",
    ),
    ("flowers", lambda f: (f / "jpg/image_00007.jpg").unlink(), "lacks 1 of 12.*image_00007.jpg"),
    ("food", lambda f: rewrite(f / "meta/train.json", lambda t: t[:-9]), "JSONDecodeError"),
    ("food", lambda f: shutil.rmtree(f / "images/bee"), "lacks 4 of 12 .*bee/0.jpg, bee/1.jpg"),
    (
        "pets",
        lambda f: rewrite(f / "annotations/trainval.txt", lambda t: t.replace(" ", "_")),
        r"damaged \(IndexError",
    ),
    (
        "pets",
        lambda f: rewrite(f / "annotations/trainval.txt", lambda t: t.replace(" 1 ", " 0 ")),
        "damaged",
    ),
    (
        "pets",
        lambda f: (f / "annotations/trainval.txt").write_text(""),
        "the index of pets lists no images",
    ),
    (
        "sun397",
        lambda f: rewrite(f / "ClassName.txt", lambda t: t.replace("/a/bee", "/a/fly")),
        "KeyError",
    ),
    (
        "sun397",
        lambda f: shutil.rmtree(f.parent / "Partitions"),
        "SUN397 lacks Training_01.txt, Testing_01.txt of sun397",
    ),
    ("caltech101", lambda f: shutil.rmtree(f / "bee"), "found 2 classes, but caltech101 has 3"),
    (
        "birdsnap",
        lambda f: rewrite(f / "species.txt", lambda t: t.replace("dir", "folder")),
        r"damaged \(KeyError\('dir'\)\)",
    ),
]


@pytest.mark.parametrize("name, damage, message", DAMAGE)
def test_each_damage_has_its_error(monkeypatch, tmp_path, name, damage, message):
    use(monkeypatch, name, tmp_path)
    open_split(name, "train", tmp_path)
    damage(tmp_path / name / FOLDERS[name])
    with pytest.raises(UserError, match=message):
        open_split(name, "train", tmp_path)


@pytest.mark.parametrize("name", SUITE)
def test_fewer_images_than_expected(monkeypatch, tmp_path, name, caplog):
    row = use(monkeypatch, name, tmp_path)
    counts = {"train": 8144, "test": 8041}
    monkeypatch.setitem(DATASETS, name, replace(row, images=counts))
    if name == "birdsnap":
        open_split(name, "test", tmp_path)
        assert "had 8041" in caplog.text
        return
    with pytest.raises(
        UserError, match=rf"found 6 test images, but {name} has 8041 .*. Fetch it again"
    ):
        open_split(name, "test", tmp_path)


def test_missing_paths(monkeypatch, tmp_path):
    monkeypatch.delenv("ROBUST_BACKBONES_DATA", raising=False)
    with pytest.raises(UserError, match="'cars' needs data, .* or set ROBUST_BACKBONES_DATA"):
        open_split("cars", "train")
    monkeypatch.setenv("ROBUST_BACKBONES_DATA", "")
    with pytest.raises(UserError, match="'cars' needs data"):
        open_split("cars", "train")
    with pytest.raises(
        UserError, match="missing is not a folder. Expected the official layout .*meta.mat"
    ):
        open_split("cars", "train", tmp_path / "missing")


def test_readers_of_official_layouts():
    for name in OFFICIAL:
        assert READERS[name] is layouts.OFFICIAL[name] and READERS[name].name == name
