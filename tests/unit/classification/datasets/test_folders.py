"""Image folders, tar files of them, CIFAR's official files, and their errors."""

import pickle
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from classification.datasets import image_cache
from classification.datasets.open import open_split
from classification.datasets.shard_writer import write_shards
from classification.datasets.specs import DATASETS
from robust_backbones.core.errors import UserError
from tests.support import SHARED
from tests.support.small_data import CLASSES, pixels, write_tar, write_tree

REAL = SHARED / "data"


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "tree")


@pytest.fixture
def small_cifar(monkeypatch, tmp_path):
    """CIFAR specs for three classes and few images; an empty cache."""
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    for name in ("cifar10", "cifar100"):
        row = replace(DATASETS[name], classes=3, images={"train": 24, "test": 12})
        monkeypatch.setitem(DATASETS, name, row)


def truth(tree, split):
    """Return images and labels, sorted by name."""
    files = sorted((tree / split).rglob("*.png"))
    return np.stack([pixels(f) for f in files]), [CLASSES.index(f.parent.name) for f in files]


def test_images_are_sorted_by_class_and_name(tree):
    images, labels = truth(tree, "train")
    (tree / "train" / "ant" / "._000.png").write_text("macOS")
    (tree / "train" / "ant" / "notes.txt").write_text("")
    source = open_split("folder", "train", tree, image_size=16)
    assert len(source) == 24 and source.class_names == CLASSES
    assert source.labels.tolist() == labels and source.image_size == 16
    for i in (0, 7, 23):
        image, label = source[i]
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1), images[i])
    part = open_split("folder", "train", str(tree), limit=6, held_out=0.25)
    assert part.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_subfolders_belong_to_their_class(tree):
    (tree / "train" / "ant" / "more").mkdir()
    shutil.copy(tree / "train" / "bee" / "000.png", tree / "train" / "ant" / "more" / "x.PNG")
    source = open_split("folder", "train", tree)
    assert source.labels.bincount().tolist() == [9, 8, 8]


def test_a_folders_fingerprint_covers_names_sizes_and_labels(tree, tmp_path):
    def digest(root, **options):
        return open_split("folder", "train", root, **options).fingerprint()

    base = digest(tree)
    shutil.copytree(tree, tmp_path / "copy")
    assert base == digest(tmp_path / "copy") != digest(tree, limit=6)
    file = tmp_path / "copy" / "train" / "bee" / "003.png"
    file.write_bytes(file.read_bytes() + b"\0")
    longer = digest(tmp_path / "copy")
    file.rename(file.with_name("zzz.png"))
    assert len({base, longer, digest(tmp_path / "copy")}) == 3


def test_val_is_used_as_test(tree):
    (tree / "test").rename(tree / "val")
    assert len(open_split("folder", "test", tree)) == 12


def remove_images(tree):
    for file in (tree / "train" / "bee").iterdir():
        file.unlink()


def move_out_of_class_folders(tree):
    (tree / "test").rename(tree / "val")
    for file in sorted((tree / "val").rglob("*.png")):
        file.rename(tree / "val" / f"{file.parent.name}_{file.name}")


BREAKAGES = [
    (remove_images, "train", "bee: this class folder has no images. Add some"),
    (
        move_out_of_class_folders,
        "test",
        "val: 12 images are not in class folders. Move all images to .*val/<class>/",
    ),
    (
        lambda t: shutil.rmtree(t / "test"),
        "test",
        "no folder 'test' or .* 'validation'. It has the folders 'train'. Rename",
    ),
    (shutil.rmtree, "train", "tree does not exist. Give a folder with train/<class>/<image>"),
    (
        lambda t: (t / "test" / "cow").rename(t / "test" / "yak"),
        "train",
        "train and .*test have different classes: .* first has 'cow', .* second has 'yak'",
    ),
    (lambda t: [shutil.rmtree(t / "train" / c) for c in CLASSES], "train", "has no class folders"),
    (
        lambda t: [shutil.rmtree(t / "train" / c) for c in CLASSES[1:]],
        "train",
        "train has only one class folder, '.*'. Classification needs two",
    ),
]


@pytest.mark.parametrize("damage, split, message", BREAKAGES)
def test_wrong_layouts(tree, damage, split, message):
    damage(tree)
    with pytest.raises(UserError, match=message):
        open_split("folder", split, tree)


def test_skipped_files_are_counted_once(tree, caplog, monkeypatch, tmp_path):
    for name in ("a.heic", "b.HEIC", "notes.txt", "Thumbs.db", "._a.jpg"):
        (tree / "train" / "bee" / name).write_text("x")
    for _ in range(2):
        open_split("folder", "train", tree)
    words = "3 files are skipped: 2 .heic (pip install pillow-heif), 1 .txt"
    assert [record.getMessage() for record in caplog.records] == [f"{tree / 'train'}: {words}"]
    lines = []
    write_shards(tree, tmp_path / "shards", 100, progress=lines.append)
    assert f"{tree / 'train'}: {words}" in lines


def test_a_class_without_readable_images(tree):
    for file in (tree / "train" / "bee").iterdir():
        file.rename(file.with_suffix(".heic"))
    message = r"bee: this class folder has no images, only \d+ .heic \(pip install pillow-heif\)"
    with pytest.raises(UserError, match=message):
        open_split("folder", "train", tree)


def test_an_unreadable_image_is_named(tree):
    file = tree / "train" / "bee" / "002.png"
    file.write_bytes(file.read_bytes()[:300])
    source = open_split("folder", "train", tree)
    with pytest.raises(UserError, match="bee/002.png cannot be read as an image .*. Replace"):
        source[10]
    file.write_text("<html>")
    with pytest.raises(UserError, match="bee/002.png cannot be read as an image"):
        source[10]


@pytest.mark.parametrize("name", ["imagenet", "cifar10"])
def test_a_wrong_number_of_classes(name, tree, monkeypatch, tmp_path):
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        UserError, match=f"found 3 classes, but {name} has 10.*. Use the dataset 'folder'"
    ):
        open_split(name, "train", tree)


def test_a_wrong_number_of_images(tree, small_cifar):
    (tree / "train" / "bee" / "002.png").unlink()
    with pytest.raises(UserError, match="found 23 train images, but cifar10 has 24 .*. Fetch it"):
        open_split("cifar10", "train", tree)


@pytest.mark.parametrize("mode, ending", [("w", "tar"), ("w:xz", "tar.xz"), ("w:gz", "tgz")])
def test_a_tar_file_equals_its_folder(tree, small_cifar, mode, ending, monkeypatch):
    path = write_tar(tree, tree.with_name(f"images.{ending}"), mode)
    for split in ("train", "test"):
        images, labels = truth(tree, split)
        for root in (tree, path):
            source = open_split("cifar10", split, root)
            assert np.array_equal(source.images.numpy(), images)
            assert source.labels.tolist() == labels and source.class_names == CLASSES
    # Decoded once; from now on the cache is used.
    monkeypatch.setattr(image_cache, "_decode", None)
    assert len(open_split("cifar10", "train", path)) == 24
    with pytest.raises(TypeError):
        (tree / "train" / "ant" / "000.png").write_bytes(
            (tree / "train" / "ant" / "001.png").read_bytes()
        )
        open_split("cifar10", "train", tree)


def test_a_truncated_tar_file_leaves_no_cache(tree, small_cifar, tmp_path):
    path = write_tar(tree, tmp_path / "images.tar.xz", "w:xz")
    path.write_bytes(path.read_bytes()[:-2000])
    for _ in range(2):
        with pytest.raises(UserError, match="images.tar.xz: cannot be read as a tar file"):
            open_split("cifar10", "train", path)


def test_wrong_contents_of_tar_files(tree, small_cifar, tmp_path):
    Image.new("RGB", (40, 32)).save(tree / "train" / "cow" / "002.png")
    path = write_tar(tree, tmp_path / "a.tar")
    with pytest.raises(
        UserError, match=r"a.tar: train/cow/002.png: the image has 40x32 pixels instead"
    ):
        open_split("cifar10", "train", path)
    shutil.rmtree(tree / "test" / "cow")
    Image.new("RGB", (32, 32)).save(tree / "train" / "cow" / "002.png")
    with pytest.raises(UserError, match=r"b.tar: test has no images of cow"):
        open_split("cifar10", "train", write_tar(tree, tmp_path / "b.tar"))
    shutil.rmtree(tree / "train")
    shutil.rmtree(tree / "test")
    (tree / "x.png").write_text("")
    with pytest.raises(UserError, match="c.tar has no images in class folders"):
        open_split("cifar10", "train", write_tar(tree, tmp_path / "c.tar"))


def official(folder, name, images, labels, split, binary):
    """Write files with the format of the official archives."""
    folder.mkdir(exist_ok=True)
    flat = images.reshape(len(images), -1)
    fives = [f"data_batch_{i}" for i in range(1, 6)]
    files = {"cifar10": {"train": fives, "test": ["test_batch"]}}.get(name, {split: [split]})[split]
    for file, rows in zip(files, np.array_split(np.arange(len(flat)), len(files)), strict=True):
        chosen = np.array(labels, np.uint8)[rows]
        if binary:
            heads = [chosen] if name == "cifar10" else [chosen * 0 + 9, chosen]
            block = np.concatenate([np.stack(heads, 1), flat[rows]], 1)
            block.tofile(folder / f"{file}.bin")
        else:
            key = b"labels" if name == "cifar10" else b"fine_labels"
            batch = {b"data": flat[rows], key: chosen.tolist(), b"coarse_labels": [9]}
            (folder / file).write_bytes(pickle.dumps(batch, protocol=3))
    if binary:
        file = "batches.meta.txt" if name == "cifar10" else "fine_label_names.txt"
        (folder / file).write_text("\n".join(CLASSES) + "\n\n")
    else:
        file = "batches.meta" if name == "cifar10" else "meta"
        key = b"label_names" if name == "cifar10" else b"fine_label_names"
        (folder / file).write_bytes(pickle.dumps({key: [c.encode() for c in CLASSES]}, protocol=3))


FOLDER_NAMES = {
    ("cifar10", True): "cifar-10-batches-bin",
    ("cifar10", False): "cifar-10-batches-py",
    ("cifar100", True): "cifar-100-binary",
    ("cifar100", False): "cifar-100-python",
}


@pytest.mark.parametrize("name, binary", FOLDER_NAMES)
def test_official_files(tree, small_cifar, tmp_path, name, binary):
    folder = tmp_path / FOLDER_NAMES[name, binary]
    for split in ("train", "test"):
        official(folder, name, *truth(tree, split), split, binary)
    for split in ("train", "test"):
        images, labels = truth(tree, split)
        for root in (tmp_path, folder):
            source = open_split(name, split, root)
            assert np.array_equal(source.images.numpy(), images)
            assert source.labels.tolist() == labels and source.class_names == CLASSES


class Bomb:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_with_other_objects_is_not_executed(tree, small_cifar, tmp_path, capsys):
    folder = tmp_path / "cifar-10-batches-py"
    official(folder, "cifar10", *truth(tree, "train"), "train", False)
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Bomb()}))
    with pytest.raises(UserError, match="data_batch_3: rejected, .*GLOBAL builtins.print"):
        open_split("cifar10", "train", tmp_path)
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": 3, b"labels": [1]}))
    with pytest.raises(UserError, match="cifar-10-batches-py: the files are not the official ones"):
        open_split("cifar10", "train", tmp_path)
    assert "executed" not in capsys.readouterr().out


def test_a_truncated_binary_file(tree, small_cifar, tmp_path):
    folder = tmp_path / "cifar-100-binary"
    official(folder, "cifar100", *truth(tree, "test"), "test", True)
    (folder / "test.bin").write_bytes((folder / "test.bin").read_bytes()[:-1])
    with pytest.raises(UserError, match="test.bin: 36887 bytes are not a whole number of images"):
        open_split("cifar100", "test", folder)


def test_the_error_for_a_wrong_folder_names_the_official_one(small_cifar, tmp_path):
    with pytest.raises(UserError, match="has no folders and no images. .*cifar-10-batches-bin"):
        open_split("cifar10", "train", tmp_path)


def test_real_jpegs_of_cifar10(monkeypatch, tmp_path):
    """One image of a hundred: decoding 60,000 takes half a minute."""
    whole, path = REAL / "cifar10-jpegs.tar.xz", tmp_path / "few.tar.xz"
    if not whole.is_file():
        pytest.skip(f"{whole} is not there")
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path))
    with tarfile.open(whole) as archive, tarfile.open(path, "w:xz") as few:
        for member in archive:
            if member.isfile() and member.name.endswith("06.jpg"):
                few.addfile(member, archive.extractfile(member))
    row = replace(DATASETS["cifar10"], images={"train": 500, "test": 100})
    monkeypatch.setitem(DATASETS, "cifar10", row)
    source = open_split("cifar10", "test", path)
    assert source.labels.tolist() == [i // 10 for i in range(100)]
    assert source.class_names[:2] == ("airplane", "automobile")
    with tarfile.open(path) as archive:
        file = archive.extractfile("test/airplane/0006.jpg")
        assert np.array_equal(pixels(file), source.images[0].numpy())
    assert len(open_split("cifar10", "train", path, limit=100)) == 100


def test_splits_can_be_pickled(tree, small_cifar):
    for name in ("folder", "cifar10"):
        source = open_split(name, "test", tree)
        twin = pickle.loads(pickle.dumps(source))
        assert twin.fingerprint() == source.fingerprint() and torch.equal(
            twin.labels, source.labels
        )
