"""Tables of image names and labels: columns, names of images, splits and errors."""

import pytest
from PIL import Image

from classification.datasets.__main__ import main
from classification.datasets.check import check_dataset
from classification.datasets.label_tables import list_table, read_table
from classification.datasets.open import open_split
from classification.datasets.shard_writer import write_shards
from robust_backbones.core.errors import UserError

NAMES = [f"{i}.png" for i in range(10)]
LABELS = ["cat", "dog"] * 5


@pytest.fixture
def folder(tmp_path):
    """Ten images in `images/`."""
    (tmp_path / "images").mkdir()
    for i, name in enumerate(NAMES):
        Image.new("RGB", (8, 8), (20 * i, 9, 9)).save(tmp_path / "images" / name)
    return tmp_path


def write(folder, header="filename,label", rows=None, name="labels.csv", encoding="utf-8"):
    rows = [f"{n},{y}" for n, y in zip(NAMES, LABELS, strict=True)] if rows is None else rows
    (folder / name).write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
    return folder / name


def cells(template):
    return [template.format(n=n, stem=n[:-4], y=y) for n, y in zip(NAMES, LABELS, strict=True)]


TABLES = {  # (header, line, name of the file)
    "plain": ("filename,label", "{n},{y}", "labels.csv"),
    "ids without extension": ("id,breed", "{stem},{y}", "labels.csv"),
    "in the folder": ("path,class", "images/{n},{y}", "train.csv"),
    "backslashes": ("File Path,Class Name", "images\\{n},{y}", "labels.csv"),
    "other columns": (",image_id,age,Label", "7,{stem},31,{y}", "labels.csv"),
    "several names": ("id,image,label", "77,{n},{y}", "labels.csv"),
    "label wins": ("filename,label,category", "{n},{y},pet", "labels.csv"),
    "semicolons": ("filename;species", "{n};{y}", "labels.csv"),
    "tabs": ("filename\tlabel", "{n}\t{y}", "labels.TSV"),
    "quotes": ('"filename","label"', '"{n}","{y}"', "labels.csv"),
    "./": ("file-name, target", "./{n}, {y}", "labels.csv"),
}


@pytest.mark.parametrize("header, line, name", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables(folder, header, line, name, encoding):
    path = write(folder, header, cells(line), name, encoding)
    table = read_table(path)
    assert table.images == [f"images/{n}" for n in NAMES] and table.labels == LABELS
    train, test = (open_split("folder", split, path) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("cat", "dog")
    assert train.labels.bincount().tolist() == [4, 4] and test.labels.tolist() == [0, 1]
    for part in (train, test):  # images have their own labels
        for (image, label), i in zip(
            (part[k] for k in range(len(part))), _numbers(part), strict=True
        ):
            assert label == i % 2 and image.getpixel((0, 0))[0] == 20 * i


def _numbers(part):
    return [int(part.images.path(k).stem) for k in range(len(part))]


def test_the_division_is_printed_and_recorded(folder, caplog):
    path = write(folder)
    test = open_split("folder", "test", path)
    assert test.describe()["split"] == "20 % of each class, seed 0"
    said = f"{path} has no column 'split': 20 % of each class, seed 0, are test images"
    assert caplog.messages == [said]
    report = check_dataset("folder", path)
    assert (
        report.layout
        == "table of labels (filename from column 'filename', label from column 'label')"
    )
    assert report.usable and report.splits["test"]["images"] == 2


def test_images_that_the_table_does_not_list_are_reported(folder):
    path = write(folder, rows=cells("{n},{y}")[:-2])
    found = [(f.kind, f.file) for f in check_dataset("folder", path).findings]
    assert found == [("unused", f"{folder}/images/{n}") for n in NAMES[-2:]]


@pytest.mark.parametrize(
    "labels, names",
    [(["10", "2"], ("2", "10")), (["1.5", "b"], ("1.5", "b")), (["b", "B"], ("B", "b"))],
)
def test_classes_are_numbers_or_text(folder, labels, names):
    rows = [f"{n},{labels[i % 2]}" for i, n in enumerate(NAMES)]
    assert tuple(list_table("train", write(folder, rows=rows)).class_names) == names


@pytest.mark.parametrize("column", ["split", "Subset", "data set"])
@pytest.mark.parametrize("test, unused", [("test", None), ("validation", None), ("test", "val")])
def test_a_column_selects_the_split(folder, column, test, unused, caplog):
    splits = ["Train"] * 6 + [test] * 2 + [unused or "Train"] * 2
    rows = [f"{line},{part}" for line, part in zip(cells("{n},{y}"), splits, strict=True)]
    path = write(folder, f"filename,label,{column}", rows)
    parts = {split: open_split("folder", split, path) for split in ("train", "test")}
    assert sorted(_numbers(parts["test"])) == [6, 7]
    assert sorted(_numbers(parts["train"])) == [*range(6), *(() if unused else (8, 9))]
    assert parts["test"].origin == f"labels.csv, {column} '{test}'"
    assert caplog.messages == (
        [f"{path}: images with {column} 'val' are not used"] if unused else []
    )


LINES = cells("{n},{y}")
ERRORS = [
    ("a.png,cat", None, "name of a filename, .* 'a.png', 'cat'. That line is an image. Add a line"),
    ("stem,cat", None, "no column has the name of a filename, .* 'stem', 'cat'. Rename one to 'fi"),
    ("image,a,b,c", None, "name of a label, .* Rename one .*If each class has a column of its own"),
    ("filename,score", None, "name of a label, such as 'label'.* 'filename', 'score'. Re"),
    ("filename,class,species", None, "columns 'class', 'species' may all be the label.*to 'label'"),
    (None, [], "has no lines below the names of its columns"),
    (None, [*LINES, "x.png,cat", "y,dog"], "2 of 12 listed images do not exist, .* 'x.png', 'y'"),
    (None, [*LINES, "labels.csv,cat"], "1 listed file cannot be read as images: 1 .csv. Convert"),
    (None, [*LINES, "../a.png,cat"], "1 of 11 listed images do not exist, for example '../a.png'"),
    (None, [*LINES, LINES[0]], "1 image is listed twice, for example 'images/0.png'. Keep one"),
    (None, [*LINES, "images/0,dog"], "1 image is listed twice"),
    (None, [LINES[0], "1.png,", LINES[2]], "line 3 has no value for 'label'"),
    (None, [LINES[0], "1.png"], "line 3 has no value for 'label'"),
    (None, [LINES[0], LINES[2]], "'label' has only one value, 'cat'"),
    (None, LINES[:2], "class 'cat' has one image"),
    ("filename,label,split", [f"{line},train" for line in LINES], "the values 'train'. Allowed"),
    ("filename,label,split", [f"{line},{i}" for i, line in enumerate(LINES)], "values '0', '1', "),
    (
        "filename,label,split",
        [f"{line},{'test' if 'cat' in line else 'train'}" for line in LINES],
        "'cat' have test images, but no training images",
    ),
    ("filename,label,split", LINES, "line 2 has no value for 'split'"),
]  # fmt: skip


@pytest.mark.parametrize("header, rows, message", ERRORS, ids=[e[2][:30] for e in ERRORS])
def test_errors(folder, header, rows, message):
    path = write(folder, header or "filename,label", rows)
    with pytest.raises(UserError, match=message):
        open_split("folder", "train", path)


def test_ambiguous_images(folder):
    (folder / "more").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "more" / "3.png")
    with pytest.raises(
        UserError, match="'3.png' may be 'images/3.png', 'more/3.png'. Include the fold"
    ):
        read_table(write(folder))
    Image.new("RGB", (8, 8)).save(folder / "images" / "4.jpg")
    with pytest.raises(
        UserError, match="'4' may be 'images/4.jpg', 'images/4.png'. Include the fold"
    ):
        read_table(write(folder, rows=["4,cat", "5,dog"]))


@pytest.mark.parametrize(
    "contents, message",
    [
        (b"\xff\xfe\x00", "cannot be read as a UTF-8 table"),
        (b"", "has no lines"),
        (None, "cannot read"),
    ],
)
def test_files_that_are_no_tables(tmp_path, contents, message):
    path = tmp_path / "labels.csv"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(UserError, match=message):
        open_split("folder", "train", path)


def test_absolute_names(folder):
    table = read_table(write(folder, rows=cells(f"{folder}/images/{{n}},{{y}}")))
    assert table.images == [f"images/{n}" for n in NAMES]


def test_commands(folder, capsys):
    path = write(folder)
    main(["check", "folder", "--data", str(path)])
    assert "test     2 images, 2 classes" in capsys.readouterr().out
    pytest.importorskip("webdataset")
    write_shards(path, folder / "shards", 100)
    assert len(open_split("folder", "train", folder / "shards")) == 8
