"""Folders of semantic masks: class indices as stored, and an error for everything else."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from robust_backbones.commands import check_data
from robust_backbones.core.errors import UserError
from robust_backbones.detection.data import custom, registry, semantic_masks, validate
from robust_backbones.detection.data.annotations import Mask
from robust_backbones.detection.data.semantic_masks import read_mask, read_masks
from tests.support.mask_data import STRIPES, mask_folders

# isort: split
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES


def palette(indices: np.ndarray, bits: int = 8) -> Image.Image:
    """A palette image whose colors say nothing about its indices."""
    found = Image.fromarray(indices).convert("P")
    found.putdata(indices.ravel().tolist())
    found.putpalette([255, 0, 0, 0, 0, 0, 9, 9, 9] + [7] * (3 * ((1 << bits) - 3)))
    return found


BINARY = (STRIPES > 1).astype(np.uint8)
READ = {
    "gray": (Image.fromarray(STRIPES), STRIPES),
    "palette": (palette(STRIPES), STRIPES),
    "palette of 4 bits": (palette(STRIPES, 4), STRIPES),
    "1 bit": (Image.fromarray(BINARY * 255).convert("1"), BINARY),
}


@pytest.mark.parametrize("kind", READ)
def test_indices_are_read_as_stored(tmp_path, kind):
    stored, wanted = READ[kind]
    stored.save(tmp_path / "a.png", bits=4 if "4" in kind else 8)
    found = read_mask(Mask(str(tmp_path / "a.png")), classes=3)
    assert found.dtype == np.uint8 and np.array_equal(found, wanted)


def test_without_the_zero_label_classes_start_at_1(tmp_path):
    stored = np.array([[0, 1, 150, 255]], np.uint8)
    Image.fromarray(stored).save(tmp_path / "a.png")
    found = read_mask(Mask(str(tmp_path / "a.png"), reduce_zero_label=True), classes=150)
    assert found.tolist() == [[255, 0, 149, 255]]


def test_images_and_masks_are_paired(tmp_path):
    found = read_masks(*mask_folders(tmp_path, names="sky\nsea\nsand\n"))
    assert (found.classes, found.ids, found.problems) == (["sky", "sea", "sand"], [0, 1, 2], [])
    assert [image.id for image in found.images] == ["a", "b"]
    image = found.images[0]
    assert (image.file, image.width, image.height) == (tmp_path / "images/a.jpg", 40, 30)
    assert image.mask == Mask(str(tmp_path / "masks/a.png"))


NAMES = [  # classes.txt, names of the run, result
    ("sky\nsea\nsand", ["x", "y", "z"], ["sky", "sea", "sand"]),
    ("\ufeffsky \r\n sea\r\n\r\n", None, ["sky", "sea"]),
    ("", ["x", "y", "z"], ["x", "y", "z"]),
    ("", None, ["0", "1", "2"]),
]


@pytest.mark.parametrize(("text", "run", "wanted"), NAMES)
def test_class_names(tmp_path, text, run, wanted):
    assert read_masks(*mask_folders(tmp_path, names=text), run).classes == wanted


def other(shape=(30, 40), value=0, dtype=np.uint8):
    return np.full(shape, value, dtype)


RGB = Image.fromarray(other((30, 40, 3)))
WRONG = {  # masks besides the valid b -> kind of the problem, end of its text
    "RGB": ({"a": RGB}, "invalid mask", "has mode RGB"),
    "RGBA": ({"a": RGB.convert("RGBA")}, "invalid mask", "has mode RGBA"),
    "gray with alpha": ({"a": RGB.convert("LA")}, "invalid mask", "has mode LA"),
    "16 bits": ({"a": other(dtype=np.uint16)}, "invalid mask", "has mode I;16"),
    "another size": (
        {"a": other((40, 30))},
        "wrong size",
        "the mask has 30 x 40 pixels, the image 40 x 30",
    ),
    "an index too large": (
        {"a": other(value=7)},
        "unknown class",
        "1200 pixels have an index of up to 7, but the classes are 0 to 2, and 255 for pixels "
        "without a label",
    ),
    "no labels": ({"a": other(value=255)}, "no labels", "no pixel has a label"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_masks_are_reported(tmp_path, case):
    masks, kind, text = WRONG[case]
    found = read_masks(*mask_folders(tmp_path, {"b": STRIPES} | masks, "sky\nsea\nsand"))
    found.problems += semantic_masks.count_pixels(found)
    (problem,) = [p for p in validate.check(found) if p.kind != "empty class"]
    assert (problem.kind, problem.text) == (kind, text) and problem.image.startswith("a.")


def _drop(name):
    return lambda root: (root / name).unlink()


def _write(name, contents):
    return lambda root: (root / name).write_bytes(contents)


BROKEN = {  # change of the two valid pairs -> kind of the problem, file, start of its text
    "no mask": (_drop("masks/a.png"), "no partner", "a.jpg", "no mask "),
    "no image": (_drop("images/a.jpg"), "no partner", "a.png", "no image a in "),
    "a damaged mask": (_write("masks/a.png", b"\x89PNG\r\n"), "invalid mask", "a.png", ""),
    "a damaged image": (
        _write("images/a.jpg", b"x"),
        "unreadable",
        "a.jpg",
        "unknown image format",
    ),
    "other files": (_write("masks/a.jpg", b"x"), "skipped", "", "1 .jpg"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_reported(tmp_path, case):
    change, kind, name, text = BROKEN[case]
    folders = mask_folders(tmp_path)
    change(tmp_path)
    found = read_masks(*folders, ["0", "1", "2"])
    found.problems += semantic_masks.count_pixels(found)
    (problem,) = found.problems
    assert (problem.kind, problem.image) == (kind, name) and problem.text.startswith(text)


def _jpegs(root):
    for path in (root / "masks").glob("*.png"):
        path.rename(path.with_suffix(".jpg"))


def _empty(root):
    for path in (root / "images").iterdir():
        path.unlink()


REFUSED = {
    "no folder": (lambda root: (root / "masks").rename(root / "x"), "masks is not a folder. Give"),
    "no images": (_empty, "images has no images. Give the folder of the images"),
    "JPEG masks": (_jpegs, "masks has no PNG files. It contains 2 .jpg. Give the folder of the"),
    "two images": (_write("images/a.png", b""), "images has a.jpg and a.png. Remove one"),
    "a repeated name": (_write("masks/classes.txt", b"sky\nsky\n"), "2 lines, 1 of them different"),
    "an empty list": (_write("masks/classes.txt", b"\n"), "classes.txt has 0 lines"),
    "a binary list": (_write("masks/classes.txt", b"\xff\x00\xff"), "is not a list of class names"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_folders_are_refused(tmp_path, case):
    change, message = REFUSED[case]
    folders = mask_folders(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        read_masks(*folders)


MASK_ERRORS = {
    "RGB": (RGB, "has mode RGB. It must be an 8-bit PNG with one channel"),
    "index": (Image.fromarray(other(value=3)), "1200 pixels have an index of up to 3, but the"),
}


@pytest.mark.parametrize("case", MASK_ERRORS)
def test_a_mask_is_refused_where_it_is_used(tmp_path, case):
    stored, message = MASK_ERRORS[case]
    stored.save(tmp_path / "a.png")
    with pytest.raises(UserError, match=message):
        read_mask(Mask(str(tmp_path / "a.png")), classes=3)


def test_gray_masks_of_4_bits_are_refused(tmp_path):
    """Pillow multiplies their values by 17."""

    def chunk(kind, contents):
        check = zlib.crc32(kind + contents)
        return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\x12"))
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))
    with Image.open(path) as image:
        assert np.asarray(image).tolist() == [[17, 34]]
    with pytest.raises(UserError, match="has fewer than 8 bits per pixel"):
        read_mask(Mask(str(path)))


def test_the_check_counts_pixels(tmp_path, capsys):
    images, masks = mask_folders(tmp_path, names="sky\nsea\nsand\nship\n")
    text, file = f"beach=mask:{images}:{masks}", tmp_path / "summary.json"
    assert check_data.main([text, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "beach: 2 images, 2400 labeled pixels, 4 classes" in printed
    assert "sky 800, sea 800, sand 800, ship 0" in printed
    assert "note: empty class, 1" in printed and "no pixel of class ship" in printed
    (summary,) = json.loads(file.read_text())
    assert summary["objects"] == [800, 800, 800, 0] and summary["errors"] == 0
    Image.fromarray(other()).save(masks / "a.png")
    check_data.main([text, "--json", str(file), "--no-pixels"])
    assert json.loads(file.read_text())[0]["digest"] != summary["digest"]
    Image.fromarray(other(value=9)).save(masks / "a.png")
    assert check_data.main([text]) == 1


def test_digests_of_data_cover_the_masks(tmp_path):
    images, masks = mask_folders(tmp_path)
    source = custom.parse_dataset(f"beach=mask:{images}:{masks}")
    found = []
    for value in (0, 0, 1):
        Image.fromarray(other(value=value)).save(masks / "a.png")
        DatasetCatalog.register("beach", lambda: custom.load_dicts(source, ["x", "y"], False))
        found.append(registry.fingerprint("beach"))
        DatasetCatalog.remove("beach")
    assert found[0] == found[1] != found[2] and found[0]["images"] == 2


def test_ade20k_is_read_as_published(tmp_path, monkeypatch):
    for split in ("training", "validation"):
        folders = mask_folders(tmp_path / split, {"ADE_1": other(value=150)})
        for folder, name in zip(folders, ("images", "annotations"), strict=True):
            (tmp_path / name).mkdir(exist_ok=True)
            folder.rename(tmp_path / name / split)
    meta = MetadataCatalog.get("ade20k_val")
    assert meta.evaluator_type == "sem_seg" and len(meta.stuff_classes) == 150
    assert meta.stuff_classes == [name.strip() for name in ADE20K_SEM_SEG_CATEGORIES]
    for key, folder in {"image_root": "images", "sem_seg_root": "annotations"}.items():
        monkeypatch.setitem(meta.__dict__, key, str(tmp_path / folder / "validation"))
    assert check_data.main(["ade20k_val"]) == 0
    (item,) = DatasetCatalog.get("ade20k_val")
    assert (read_mask(semantic_masks.mask_of(item), 150) == 149).all()
    assert (item["image_id"], item["height"], item["width"]) == ("ADE_1", 30, 40)
