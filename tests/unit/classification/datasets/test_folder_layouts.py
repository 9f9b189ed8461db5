"""Layouts of image folders: each recognized one, its splits, and the errors of the others."""

import hashlib
import tarfile

import pytest
from PIL import Image

from classification.datasets import folders
from classification.datasets.check import check_dataset, lines
from classification.datasets.image_cache import read_decoded
from classification.datasets.open import open_split
from classification.datasets.shard_index import find_shards
from classification.datasets.shard_writer import write_shards
from robust_backbones.core.errors import UserError

CATS, DOGS = [f"cat/{i}.png" for i in range(10)], [f"dog/{i}.png" for i in range(5)]


def create(root, *names):
    """Write a small image, or an empty file of another type, for each name; `{a,b}` means both."""
    for name in names:
        start, _, rest = name.partition("{")
        inner, _, end = rest.partition("}")
        for part in inner.split(","):
            path = root / f"{start}{part}{end}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if folders.is_image(path.name):
                color = tuple(hashlib.md5(f"{start}{part}{end}".encode()).digest()[:3])
                Image.new("RGB", (8, 8), color).save(path)
            else:
                path.touch()
    return root


def names(split, root):
    found = folders.list_tree(split, root, divide=True)
    return [(found.folder / name).relative_to(root).as_posix() for name in found.names]


SPLIT_FOLDERS = [
    ("train", "test"),
    ("Train", "Test"),
    ("TRAINING", "testing"),
    ("Training", "Validation"),
    ("train", "val"),
    ("train", "Valid"),
]


@pytest.mark.parametrize("wrapper", ["", "data/", "data/data/"])
@pytest.mark.parametrize("train, test", SPLIT_FOLDERS)
def test_names_of_split_folders(tmp_path, train, test, wrapper):
    create(tmp_path, f"{wrapper}{train}/{{cat,dog}}/1.png", f"{wrapper}{test}/{{cat,dog}}/2.png")
    for split, folder, image in (("train", train, 1), ("test", test, 2)):
        assert names(split, tmp_path) == [
            f"{wrapper}{folder}/{c}/{image}.png" for c in ("cat", "dog")
        ]
        assert open_split("folder", split, tmp_path).origin == f"{folder}/"


def test_a_split_folder_may_repeat_its_name(tmp_path):
    create(tmp_path, "train/train/{cat,dog}/1.png", "test/Test/{cat,dog}/2.png")
    assert names("test", tmp_path) == ["test/Test/cat/2.png", "test/Test/dog/2.png"]
    assert open_split("folder", "train", tmp_path).class_names == ("cat", "dog")


def test_val_is_not_used_next_to_test(tmp_path, caplog):
    create(tmp_path, "{train,test,valid}/{cat}/1.png".replace("{cat}", "cat"))
    create(tmp_path, "{train,test,valid}/dog/1.png", "docs/x.png")
    open_split("folder", "train", tmp_path)
    open_split("folder", "test", tmp_path)
    said = f"{tmp_path}/test is the test split, so {tmp_path}/valid is not used"
    assert caplog.messages == [said]
    report = check_dataset("folder", tmp_path)
    found = {(f.kind, f.level, f.file) for f in report.findings if "unused" in f.kind}
    assert found == {
        ("unused split", "warning", f"{tmp_path}/valid"),
        ("unused", "note", f"{tmp_path}/docs"),
    }


JUNK_FOLDERS = ("__MACOSX", ".ipynb_checkpoints", ".git", "@eaDir", "lost+found", "$RECYCLE.BIN")
JUNK_FILES = (".DS_Store", "Thumbs.db", "desktop.ini", "._1.png")


@pytest.mark.parametrize("top", ["{train,test}/{}/", "{}/"], ids=["splits", "classes"])
def test_junk_is_ignored_at_every_level(tmp_path, top):
    classes = ("cat", "dog")
    for name in classes:
        create(tmp_path, *(top.replace("{}", name) + f"{i}.png" for i in range(5)))
    plain = names("train", tmp_path)
    levels = {"", *(f"{path.relative_to(tmp_path).as_posix()}/" for path in tmp_path.rglob("*/"))}
    junk = set()
    for level in levels:
        for folder in JUNK_FOLDERS:
            create(tmp_path, f"{level}{folder}/1.png", f"{level}{folder}/cat/2.png")
            junk.add(str(tmp_path / level / folder))
        for file in JUNK_FILES:
            (tmp_path / level / file).write_bytes(b"junk")
            junk.add(str(tmp_path / level / file))
    assert names("train", tmp_path) == plain
    assert open_split("folder", "train", tmp_path).class_names == classes
    report = check_dataset("folder", tmp_path)
    assert {f.file for f in report.findings if f.kind == "junk"} == junk
    assert report.usable and "are ignored, because other programs created them" in "\n".join(
        lines(report)
    )


def test_class_folders_are_divided_by_class(tmp_path, caplog):
    create(tmp_path, *CATS, *DOGS)
    parts = {split: names(split, tmp_path) for split in ("train", "test")}
    assert sorted(parts["train"] + parts["test"]) == sorted(CATS + DOGS)
    # A fixed expectation: the split is the same on every machine.
    assert parts["test"] == EXPECTED_TEST
    train, test = (open_split("folder", split, tmp_path) for split in parts)
    assert test.labels.tolist() == [0, 0, 1] and train.labels.bincount().tolist() == [8, 4]
    assert caplog.messages == [
        f"{tmp_path} has no test folder: 20 % of each class, seed 0, are test images"
    ]
    assert test.describe()["split"] == "20 % of each class, seed 0"
    assert train.origin == "80 % of each class, seed 0"
    assert train.fingerprint() != test.fingerprint()
    report = check_dataset("folder", tmp_path)
    assert report.layout == "class folders without splits"
    assert report.splits["test"]["split"] == test.origin
    assert ", from 20 % of each class, seed 0, fingerprint" in "\n".join(lines(report))


EXPECTED_TEST = ["cat/1.png", "cat/9.png", "dog/2.png"]


def test_another_image_does_not_change_the_other_images_split(tmp_path):
    create(tmp_path, *CATS, *DOGS)
    before = set(names("test", tmp_path))
    create(tmp_path, "dog/new.png")
    after = set(names("test", tmp_path))
    assert len(before & after) >= len(before) - 1 and len(after) == len(before)


ERRORS = [
    (["train/{cat,dog}/1.png", "Train/x/1.png"], "'Train' and 'train' both mean the train split"),
    (["{train,test,testing}/x/1.png"], "'test' and 'testing' both mean the test split"),
    (["{train,val,valid}/x/1.png"], "'val' and 'valid' both mean the val split"),
    (["{foo,bar}/x/1.png"], "has the folders 'bar', 'foo'. Expected .* Rename the folders of the"),
    (["{test,foo}/{x}/1.png"], "has no folder 'train'. It has the folders 'foo', 'test'. Rename"),
    (["{a,b,c,d,e,f,g}/x/1.png"], "has the folders 'a', 'b', 'c', 'd', 'e' and 2 more. Expected"),
    (["{1,2,3}.png"], "has 3 images. Expected .* Move the images into one folder per class"),
    (["1.png", "names.csv"], "If names.csv lists names and labels, pass --data .*/names.csv"),
    (["train/1.png", "names.csv", "test/2.png"], "1 image is not in class folders. .*names.csv"),
    (["cat/1.png", "2.png", "dog/1.png"], "1 image is not in class folders. Move all"),
    (["cat/1.png"], "has the folders 'cat'. Expected .* One class is not enough. Add a folder for"),
    (["{train,bus,car}/{1}.png".replace("{1}", "1")], "If 'train' is a class, rename it"),
    (["{test,train}/1.png", "{sample,test,train}.csv"], "pass --data .*/train.csv"),
    (
        ["{cat,dog}/{1}.png".replace("{1}", "1")],
        "class 'cat' has one image. Training and test need",
    ),
    (["{cat,dog}/1.png", "models/x.pth"], "models: .* has no images, only 1 .pth. Add some"),
    (["dog/1.png", "cat/train/1.png", "cat/test/2.png"], "only the folders 'test', 'train'. Move"),
    (["{a,b}/train/x/1.png"], "has the folders 'a', 'b'. .* Pass one dataset, such as .*/a"),
    (["README.md"], "has no folders and no images. .* Check the path"),
]


@pytest.mark.parametrize("files, message", ERRORS, ids=[message[:30] for _, message in ERRORS])
def test_errors_say_what_was_found_and_what_to_rename(tmp_path, files, message):
    create(tmp_path, *files)
    with pytest.raises(UserError, match=message):
        open_split("folder", "train", tmp_path)


def test_a_training_folder_alone_can_be_divided_by_name(tmp_path):
    create(tmp_path, *(f"train/{name}" for name in CATS + DOGS))
    with pytest.raises(
        UserError, match=f"give {tmp_path}/train as the dataset: 20 % of its images"
    ):
        open_split("folder", "test", tmp_path)
    assert len(open_split("folder", "test", tmp_path / "train")) == 3


@pytest.mark.parametrize("name", ["imagenet", "cars", "cifar10"])
def test_only_the_dataset_folder_is_divided(tmp_path, monkeypatch, name):
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    create(tmp_path / "data", *CATS, *DOGS)
    with pytest.raises(UserError, match=r"no split folders|does not contain cars: it has the fold"):
        open_split(name, "train", tmp_path / "data")


def test_shards_of_a_divided_folder(tmp_path):
    pytest.importorskip("webdataset")
    create(tmp_path / "data", *CATS, *DOGS)
    write_shards(tmp_path / "data", tmp_path / "out", 100)
    assert len(open_split("folder", "train", tmp_path / "out")) == 12
    assert len(open_split("folder", "test", tmp_path / "out")) == 3


def test_names_of_shards(tmp_path):
    create(tmp_path, "Train-0.tar", "validation-{0,1}.tar", "other-0.tar")
    assert [url.rsplit("/")[-1] for url in find_shards(str(tmp_path), "test").urls] == [
        "validation-0.tar",
        "validation-1.tar",
    ]
    create(tmp_path, "train-1.tar")
    with pytest.raises(UserError, match="'Train' and 'train' both mean the train split"):
        find_shards(str(tmp_path), "train")


def test_a_tar_file_is_read_like_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    tree = create(tmp_path / "a", "{Train,test,val}/cat/1.png", "train/Train/dog/1.png"[6:])
    create(tree, "{test,val}/dog/{1}.png".replace("{1}", "2"), "Train/cat/__MACOSX/1.png")
    create(tree, "test/cat/3.png", "__MACOSX/Train/cat/9.png")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tree, "a")
    for split, labels in (("train", [0, 1]), ("test", [0, 0, 1])):
        packed = read_decoded(split, tmp_path / "a.tar", 8)
        unpacked = read_decoded(split, tree, 8)
        assert packed.labels.tolist() == unpacked.labels.tolist() == labels
        assert (packed.images == unpacked.images).all() and packed.origin == unpacked.origin
