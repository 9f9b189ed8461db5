"""Dataset checks: each kind of damage, overlaps, printed lines and exit codes."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from classification.datasets.__main__ import main
from classification.datasets.check import KINDS, check_dataset, lines
from classification.datasets.open import open_split
from classification.datasets.specs import DATA_VARIABLE, DATASETS
from tests.support.image_files import exif
from tests.support.miniature_tasks import TASKS, picture, use

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(DATA_VARIABLE, raising=False)


@pytest.fixture
def tree(monkeypatch, tmp_path):
    """An undamaged image folder with 12 + 6 images."""
    use(monkeypatch, "folder", tmp_path)
    return tmp_path / "folder"


def image(mode="RGB"):
    return Image.fromarray(picture(RNG, 0, 3, 32)).convert(mode)


def found(report):
    """Count the findings of each kind."""
    kinds = [finding.kind for finding in report.findings]
    return {kind: kinds.count(kind) for kind in kinds}


@pytest.mark.parametrize("layout", ["official", "folders"])
@pytest.mark.parametrize("name", TASKS)
def test_small_tasks_have_no_findings(monkeypatch, tmp_path, name, layout):
    use(monkeypatch, name, tmp_path, layout=layout)
    report = check_dataset(name, tmp_path)
    assert report.usable and not report.findings and report.path.startswith(str(tmp_path))
    for split, numbers in report.splits.items():
        source = open_split(name, split, tmp_path)
        assert numbers["images"] == len(source) and numbers["classes"] == 3
        assert numbers["fingerprint"] == source.fingerprint()
        assert numbers["smallest class"] == numbers["largest class"] == len(source) // 3
    expected = {"cifar10": "in memory", "cifar100": "in memory"}.get(name, layout)
    if not DATASETS[name].shards:
        assert report.layout == expected


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def animate(path):
    image().save(path, "GIF", save_all=True, append_images=[image()])


def save_16_bit(path):
    pixels = RNG.integers(0, 2**16, (32, 32), dtype=np.uint16)
    Image.fromarray(pixels).save(path, "PNG")


DAMAGE = [  # change of one training image -> expected findings
    (cut, {"truncated": 1}),
    (lambda p: p.write_bytes(b""), {"unreadable": 1}),
    (lambda p: p.write_text("<html>404"), {"unreadable": 1}),
    (lambda p: image().save(p, "PNG"), {"format": 1}),
    (animate, {"format": 1, "animated": 1}),
    (lambda p: image("L").save(p), {"gray": 1}),
    (lambda p: image("CMYK").save(p), {"cmyk": 1}),
    (lambda p: image("RGBA").save(p, "PNG"), {"format": 1, "transparent": 1}),
    (save_16_bit, {"format": 1, "deep": 1}),
    (lambda p: image().save(p), {}),
    (lambda p: shutil.copy(p, p.with_name("copy.jpg")), {"duplicate": 1}),
    (lambda p: shutil.copy(p, p.parent.parent / "bee" / "copy.jpg"), {"two labels": 1}),
    (lambda p: shutil.copy(p, p.parents[2] / "test" / "ant" / "c.jpg"), {"overlap": 1, "leak": 1}),
    # A lossless copy: the same pixels in a different file.
    (lambda p: Image.open(p).save(p.with_name("copy.png")), {"duplicate": 1}),
    (lambda p: [p.with_suffix(s).write_text("x") for s in (".heic", ".txt")], {"skipped": 2}),
    (lambda p: Image.open(p).save(p.with_name("train9.gif")), {}),
    (lambda p: image().save(p, exif=exif(6)), {"turned": 1}),
    (lambda p: image().save(p, exif=exif(9)), {"bad orientation": 1}),
    (lambda p: image("P").save(p, "PNG", transparency=3), {"format": 1, "transparent": 1}),
    (lambda p: (p.unlink(), p.symlink_to("gone.jpg")), {"missing file": 1}),
    (lambda p: shutil.rmtree(p.parent), {"layout": 1}),
]


@pytest.mark.parametrize("damage, expected", DAMAGE)
def test_each_damage_gives_exactly_its_findings(tree, damage, expected):
    damage(tree / "train" / "ant" / "train0002.jpg")
    report = check_dataset("folder", tree)
    assert found(report) == expected
    levels = {KINDS[kind][0] for kind in expected}
    assert report.usable == ("error" not in levels)
    for finding in report.findings:
        assert (
            finding.kind == "layout"
            or "train0002." in finding.file + finding.detail
            or (finding.kind == "leak" and finding.detail == "1 of 7 test images are also in train")
        )


@pytest.mark.parametrize(
    ("names", "similar"),
    [
        (["Cat", "cat", "dog"], ["cat"]),
        (["e\u0301", "\u00e9"], ["\u00e9"]),
        (["ice cream", "ice_cream", "Ice  cream"], ["ice cream", "ice_cream"]),
        (["-1", "1", "11", "1-1"], []),
    ],
)
def test_class_names_that_are_almost_equal(tmp_path, names, similar):
    for name in names:
        for i in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            image().save(tmp_path / name / f"{i}.png")
    report = check_dataset("folder", tmp_path)
    assert sorted(f.file for f in report.findings if f.kind == "similar classes") == similar
    assert report.usable


def test_few_shared_images_are_only_a_warning(monkeypatch, tmp_path):
    use(monkeypatch, "folder", tmp_path, per_class={"test": 34}, size=16)
    folder = tmp_path / "folder"
    shutil.copy(folder / "train" / "bee" / "train0001.jpg", folder / "test" / "bee" / "x.jpg")
    report = check_dataset("folder", tmp_path)
    assert found(report) == {"overlap": 1} and report.usable


def test_birdsnap_counts_and_empty_classes_are_only_warnings(monkeypatch, tmp_path):
    use(monkeypatch, "birdsnap", tmp_path)
    counts = {"images": {"train": 12, "test": 6}}
    row = DATASETS["birdsnap"]
    monkeypatch.setitem(DATASETS, "birdsnap", type(row)(**(vars(row) | counts)))
    for number in (100, 101):
        (tmp_path / f"birdsnap/birdsnap/download/images/bee/{number}.jpg").unlink()
    report = check_dataset("birdsnap", tmp_path)
    assert found(report) == {"count": 1, "no images": 1} and report.usable
    text = "\n".join(lines(report))
    assert "4 test images instead of 6" in text and "classes have no images: bee" in text


def test_embedded_data_needs_no_path(capsys):
    main(["check", "faces", "digits"])
    out = capsys.readouterr().out
    assert (
        out.count("no problems found") == 2 and "150 images, 2 classes with 75 to 75 images" in out
    )


def test_the_command_continues_after_an_unusable_dataset(tree, monkeypatch, tmp_path, capsys):
    use(monkeypatch, "dtd", tmp_path)
    for i in range(4):
        cut(tree / "train" / "cow" / f"train{i:04}.jpg")
    image("L").save(tree / "test" / "bee" / "test0001.jpg")
    arguments = ["check", "folder", "dtd", "--data", str(tmp_path), "--output"]
    for report in (tmp_path / "report.json", tmp_path / "report.csv"):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, str(report)])
        assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert "error    4 are truncated: " in out and ": train/cow/train0000.jpg (" in out
    assert "and 1 more" in out and "warning  1 are grayscale" in out
    assert f"dtd: {tmp_path}/dtd/dtd/dtd, layout: official" in out and "no problems found" in out
    assert "error: folder: not usable. Fix the errors above." in err
    contents = json.loads((tmp_path / "report.json").read_text())
    assert [(r["name"], r["usable"], len(r["findings"])) for r in contents] == [
        ("folder", False, 5),
        ("dtd", True, 0),
    ]
    with open(tmp_path / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["level"] for row in rows] == ["error"] * 4 + ["warning"]
    assert rows[0]["dataset"] == "folder" and rows[0]["file"].endswith("train0000.jpg")


def test_progress_is_printed(tree, monkeypatch, capsys):
    monkeypatch.setattr("classification.progress.LOG_SECONDS", 0)
    check_dataset("folder", tree)
    assert "checking folder train, " in capsys.readouterr().err


def test_shards_are_only_counted(tree, monkeypatch, tmp_path):
    pytest.importorskip("webdataset")
    from classification.datasets.shard_writer import write_shards

    write_shards(tree, tmp_path / "shards", 6)
    report = check_dataset("folder", tmp_path / "shards")
    assert report.usable and "not checked" in report.layout
    assert report.splits["train"]["images"] == 12


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["check", "mnist"], "dataset 'mnist' is unknown. For your own images, choose folder"),
        (
            ["check", "cars"],
            "dataset 'cars' needs data, .* Pass --data DIR, or set ROBUST_BACKBONES_DATA",
        ),
        (["check", "digits", "cars", "--data", "/nowhere"], "cars: not usable"),
    ],
)
def test_user_mistakes(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and re.search(message, capsys.readouterr().err)
