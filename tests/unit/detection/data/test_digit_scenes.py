"""The bundled scenes: exact, repeatable, without leakage, in both layouts."""

import json
import multiprocessing
import xml.etree.ElementTree as ET
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from sklearn.datasets import load_digits

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data import digit_scenes
from robust_backbones.detection.data import registry as data


@pytest.fixture(scope="module")
def root():
    return digit_scenes.ensure()


@pytest.mark.parametrize("split", digit_scenes.SPLITS)
def test_both_layouts_say_the_same(root, split):
    from detectron2.data import DatasetCatalog

    coco = DatasetCatalog.get(f"digit_scenes_{split}")
    voc = DatasetCatalog.get(f"digit_scenes_voc_{split}")
    assert len(coco) == len(voc) == digit_scenes.SPLITS[split]
    for a, b in zip(coco, voc, strict=True):
        assert a["file_name"] == b["file_name"]
        boxes = [np.array(o["bbox"]) for o in a["annotations"]]
        corners = [np.concatenate([box[:2], box[:2] + box[2:]]) for box in boxes]
        np.testing.assert_array_equal(corners, [o["bbox"] for o in b["annotations"]])
        classes = [o["category_id"] for o in a["annotations"]]
        assert classes == [o["category_id"] for o in b["annotations"]]
        assert 1 <= len(classes) <= 4


def test_masks_boxes_and_areas_agree(root):
    contents = json.loads((root / digit_scenes.coco_file("val")).read_text())
    assert [c["name"] for c in contents["categories"]] == list(digit_scenes.CLASSES)
    for row in contents["annotations"]:
        mask = coco_mask.decode(row["segmentation"]).astype(bool)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top, width, height = row["bbox"]
        assert (left, top) == (columns[0], rows[0])
        assert (left + width, top + height) == (columns[-1] + 1, rows[-1] + 1)
        assert row["area"] == mask.sum() > 20


def test_semantic_masks_have_the_pixels_of_the_objects(root):
    from detectron2.data import DatasetCatalog

    semantic = DatasetCatalog.get("digit_scenes_semantic_val")
    coco = DatasetCatalog.get("digit_scenes_val")
    assert [item["file_name"] for item in semantic] == [item["file_name"] for item in coco]
    for item, other in zip(semantic[:20], coco, strict=False):
        wanted = np.zeros((96, 96), int)
        for row in other["annotations"]:
            wanted[coco_mask.decode(row["segmentation"]) > 0] = row["category_id"] + 1
        with Image.open(item["sem_seg_file_name"]) as mask:
            assert mask.mode == "L" and np.array_equal(np.asarray(mask), wanted)
    names = (root / digit_scenes.MASKS / "classes.txt").read_text().split()
    assert tuple(names) == digit_scenes.SEMANTIC_CLASSES == ("background", *digit_scenes.CLASSES)


def test_masks_lie_on_the_drawn_digits():
    """On a black background, masks hold the bright pixels, and objects do not overlap."""
    bunch = load_digits()
    black = [np.zeros((200, 200), np.uint8)]
    image, objects = digit_scenes.draw_scene(
        (bunch.images, bunch.target), black, np.random.default_rng(1)
    )
    union = np.any([o["mask"] for o in objects], axis=0)
    assert sum(o["mask"].sum() for o in objects) == union.sum()  # no overlap
    assert image[union].max(axis=1).min() > 40
    assert image[~union].sum(axis=1).mean() < image[union].sum(axis=1).mean() / 5


def test_scenes_are_repeatable():
    bunch = load_digits()
    textures = [np.arange(200 * 200, dtype=np.uint8).reshape(200, 200)]
    draws = [
        digit_scenes.draw_scene((bunch.images, bunch.target), textures, np.random.default_rng(seed))
        for seed in (5, 5, 6)
    ]
    np.testing.assert_array_equal(draws[0][0], draws[1][0])
    assert (draws[0][0] != draws[2][0]).any()


def test_pretraining_has_seen_no_validation_digit():
    from classification.datasets import embedded

    assert digit_scenes.DIGITS_TRAIN == embedded.DIGITS_TRAIN


def test_training_and_validation_share_no_digit_and_no_texture():
    (train, _), train_textures = digit_scenes._sources("train")
    (val, _), val_textures = digit_scenes._sources("val")
    assert len(train) + len(val) == len(load_digits().images) == 1797
    assert not {d.tobytes() for d in train} & {d.tobytes() for d in val}
    for a, b in zip(train_textures, val_textures, strict=True):
        assert a.shape[1] + b.shape[1] == 512  # side by side in the photograph
        assert min(*a.shape, *b.shape) >= digit_scenes.SIZE


def test_20_processes_at_once_draw_the_scenes_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path))
    monkeypatch.setattr(digit_scenes, "SPLITS", {"train": 2, "val": 2})
    name = f"digit_scenes_v{digit_scenes.VERSION}"
    (tmp_path / f".{name}.partial" / "JPEGImages").mkdir(parents=True)  # left by a kill
    write = digit_scenes._write_split

    def noted(root, split):
        with open(tmp_path / "drawn.txt", "a") as file:
            file.write(f"{split}\n")
        write(root, split)

    monkeypatch.setattr(digit_scenes, "_write_split", noted)
    with ProcessPoolExecutor(20, multiprocessing.get_context("fork")) as pool:
        roots = set(pool.map(_ensure, range(20)))
    assert roots == {tmp_path / name}
    assert (tmp_path / "drawn.txt").read_text().split() == ["train", "val"]
    assert {path.name for path in tmp_path.iterdir()} == {name, f"{name}.lock", "drawn.txt"}
    (root,) = roots
    assert len(list((root / "JPEGImages").iterdir())) == 4
    xml = ET.parse(root / "Annotations" / "val_00001.xml")
    assert xml.find("size/width").text == "96"
    assert Image.open(root / "JPEGImages" / "val_00001.jpg").size == (96, 96)


def _ensure(_):
    return digit_scenes.ensure()


def test_a_data_set_that_is_not_on_disk_is_named(monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    for name in ("coco_2017_train", "voc_2007_test"):
        with pytest.raises(UserError, match=f"'{name}': .* not exist.* set DETECTRON2_DATASETS"):
            data.check_dataset(name)
