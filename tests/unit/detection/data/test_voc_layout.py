"""Folders of VOC's XML files: the names, folders and splits that are read, and the errors."""

import pytest

from robust_backbones.commands import check_data
from robust_backbones.core.errors import UserError
from robust_backbones.detection.data import custom, registry, validate
from robust_backbones.detection.data.voc_annotations import read_voc
from robust_backbones.detection.data.voc_layout import find_layout, read_split
from tests.support import ROOT
from tests.support.voc_data import voc

BOX = (2, 2, 9, 9)
TEN = {f"im {i}": [("cat" if i else "dog", BOX)] for i in range(10)}
SHARED = ROOT.parent / "shared" / "data"


def names(root, split):
    return read_split(find_layout(root), split).names


FOLDERS = [  # of the annotations and of the images, relative to the root
    ("Annotations", "JPEGImages"),  # VOC
    ("annotations", "images"),  # Kaggle's raccoons
    ("annots", "images"),  # Kaggle's kangaroos
    ("xml", "."),
    (".", "."),  # LabelImg
    ("Annotations", "."),
    ("labels", "pictures"),
]


@pytest.mark.parametrize("folders", FOLDERS, ids=map(str, FOLDERS))
def test_folders_without_splits(tmp_path, folders):
    """'train' and 'val' have no image in common, and together they are 'all'."""
    voc(tmp_path, TEN, None, folders)
    train, val = names(tmp_path, "train"), names(tmp_path, "val")
    assert (len(train), len(val)) == (8, 2)
    assert sorted(train + val) == names(tmp_path, "all") == sorted(TEN)
    found = read_voc(tmp_path, "val")
    assert found.classes == ["cat", "dog"]  # of the folder, not of the split
    assert all(image.file.is_file() for image in found.images)


def test_the_random_split_is_stable(tmp_path):
    """Runs of other versions must have the same split."""
    assert names(voc(tmp_path, TEN, None), "val") == ["im 1", "im 8"]


def test_the_random_split_is_stated_and_recorded(tmp_path, capsys, caplog):
    voc(tmp_path, TEN, None)
    (tmp_path / "JPEGImages" / "more.jpg").touch()
    rule = (
        "no ImageSets: 8 of 10 images are 'train' by a random split with seed 0; not used: "
        "1 image without an XML file"
    )
    text = f"mine=voc:{tmp_path}:train"
    assert check_data.main([text]) == 0
    printed = capsys.readouterr().out
    assert f"  note: {rule}\n" in printed and "note: not annotated, 1: " in printed

    from robust_backbones.detection import config, run_checks

    run_checks.check_inputs(config.dataset_config(text), train=False)
    assert f"dataset 'mine': {rule}" in caplog.text
    assert registry.fingerprint("mine")["split"] == rule


LINES = [  # lines of a split file, names of the XML files -> names
    ("a\nb\n", ["a", "b"], ["a", "b"]),
    ("\ufeffa\r\nb\r\n", ["a", "b"], ["a", "b"]),  # Windows
    ("a  1\nb -1\nc  0\n", ["a", "b", "c"], ["a", "b", "c"]),  # VOC's files of single classes
    ("my dog\nmy cat 1\n", ["my dog", "my cat"], ["my dog", "my cat"]),
    ("img 1\nimg 0\n", ["img 0", "img 1"], ["img 1", "img 0"]),
]


@pytest.mark.parametrize(("text", "files", "expected"), LINES)
def test_lines_of_a_split_file(tmp_path, text, files, expected):
    voc(tmp_path, {name: [] for name in files}, {"val": text})
    assert names(tmp_path, "val") == expected


def test_all_splits_of_a_folder_have_the_same_classes(tmp_path):
    images = {"a": [("cat", BOX)], "b": [("ape", BOX)], "c": [("yak", BOX)]}
    voc(tmp_path, images, {"train": "a\n", "test": "b\nabsent\n"})
    assert read_voc(tmp_path, "train").classes == ["ape", "cat"]  # no split lists c
    assert read_voc(tmp_path, "train", ["cat", "ape"]).images[0].objects[0].class_index == 0
    problems = read_voc(tmp_path, "train", ["ape"]).problems
    assert [problem.kind for problem in problems] == ["unknown class"]


def test_words_for_difficult_and_windows_paths_are_read(tmp_path):
    voc(tmp_path, {"a": [("cat", BOX)]}, None)
    path = tmp_path / "Annotations" / "a.xml"
    given = path.read_text().replace("a.jpg", "C:\\x\\b.jpg")
    (tmp_path / "JPEGImages" / "a.jpg").rename(tmp_path / "JPEGImages" / "b.jpg")
    path.write_text(given.replace("<bndbox>", "<difficult>True</difficult><bndbox>"))
    (image,) = read_voc(tmp_path, "all").images
    assert image.objects[0].difficult and image.file.name == "b.jpg"
    path.write_text(given.replace("<bndbox>", "<difficult>maybe</difficult><bndbox>"))
    with pytest.raises(UserError, match="is not a VOC annotation .'maybe'"):
        read_voc(tmp_path, "all")


LAYOUT = r"Annotations/\*.xml, JPEGImages/ and ImageSets/Main/SPLIT.txt"
MISTAKES = {
    "no folder": (
        lambda root: root / "none",
        "train",
        f"is not a folder. Give a folder with {LAYOUT}",
    ),
    "a file": (lambda root: root / "Annotations/a.xml", "train", "a.xml is not a folder. Give a"),
    "val of one image": (
        lambda root: root,
        "val",
        "split 'val' has no images: .* has only 1 with an XML file. Add images, or choose .* 'all'",
    ),
    "one too deep": (
        lambda root: root / "JPEGImages",
        "train",
        f"JPEGImages has no XML files. It contains no folders. VOC's layout is {LAYOUT}. Give a",
    ),
    "one too high": (
        lambda root: root.parent,
        "train",
        "has no XML files, but .*/voc/Annotations has. Give .*/voc as ROOT",
    ),
    "annotations only": (
        lambda root: root / "Annotations",
        "train",
        "voc/Annotations has XML files, but no images. Give a folder that contains both",
    ),
    "several": (
        lambda root: (
            voc(root / "valid", {"b": []}, None, (".", "."))
            and voc(root / "train", {"c": []}, None, (".", "."))
            and (root / "Annotations").rename(root.parent / "gone")
            and root
        ),
        "train",
        "has XML files in several folders: train/, valid/. Give one folder with XML files and im",
    ),
    "no such random split": (
        lambda root: root,
        "test",
        "split 'test' does not exist: .* has no ImageSets/Main/test.txt. Choose from train, val, a",
    ),
    "no such split": (
        lambda root: voc(root, {}, {"train": "a", "cat_val": "a 1"}),
        "test",
        "split 'test' does not exist in .*ImageSets/Main. Choose from train, cat_val",
    ),
    "with suffix": (
        lambda root: voc(root, {}, {"train": "a.jpg"}),
        "train",
        "train.txt lists 'a.jpg', but .*a.jpg.xml does not exist. List the names of XML files wi",
    ),
    "outside": (
        lambda root: voc(root, {}, {"train": "../a"}),
        "train",
        "train.txt is not a list of",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(tmp_path, mistake):
    change, split, message = MISTAKES[mistake]
    root = change(voc(tmp_path / "voc", {"a": [("cat", BOX)]}, None))
    with pytest.raises(UserError, match=message):
        read_voc(root, split)


def test_official_splits(tmp_path):
    for root, split, count in ((SHARED / "BCCD", "trainval", 292), (SHARED / "VOC2012", "val", 20)):
        if not root.is_dir():
            pytest.skip(f"{root} does not exist")
        found = read_voc(root, split)
        assert len(found.images) == count
        assert {problem.kind for problem in validate.check(found, pixels=False)} <= {
            *validate.NOTES,
            "no area",
        }
        loaded = custom.load_dicts(
            custom.parse_dataset(f"x=voc:{root}:{split}"), found.classes, True
        )
        assert len(loaded) == count
