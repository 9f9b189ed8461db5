"""Images of detectors: the results of Detectron2's mapper, and what it reads silently wrong."""

import random

import numpy as np
import pytest
import torch

import robust_backbones.detection  # noqa: F401  (before Detectron2, which it makes run)

# isort: split
from detectron2.data import DatasetMapper, detection_utils
from detectron2.structures import BoxMode
from PIL import Image

from robust_backbones.core.errors import UserError
from robust_backbones.core.images import Decoding
from robust_backbones.detection.data import mapper
from robust_backbones.detection.data.mapper import ImageMapper, read_image
from tests.support import small_segmenters
from tests.support.image_files import BY_TITLE, KINDS
from tests.support.small_detectors import tiny_config

READ = [kind for kind in KINDS if kind.pixels is not None]


def item_of(path):
    triangle = [[2.0, 2.0, 20.0, 3.0, 9.0, 18.0]]
    box = {"bbox": [2, 2, 20, 18], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    marks = [box | {"segmentation": triangle, "iscrowd": 0}]
    return {"file_name": str(path), "image_id": 1, "annotations": marks}


def mapped(make, cfg, is_train, item):
    np.random.seed(0)
    random.seed(0)
    return make(cfg, is_train)(item)


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("title", ["JPEG", "PNG"])
def test_ordinary_images_are_mapped_as_by_detectron2(tmp_path, title, channels, is_train):
    cfg = tiny_config()
    cfg.INPUT.FORMAT = channels
    item = item_of(BY_TITLE[title].write(tmp_path))
    ours, theirs = (mapped(make, cfg, is_train, item) for make in (ImageMapper, DatasetMapper))
    assert ours.keys() == theirs.keys() and torch.equal(ours["image"], theirs["image"])
    if is_train:
        ours, theirs = ours["instances"], theirs["instances"]
        assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
        assert torch.equal(ours.gt_masks.tensor, theirs.gt_masks.tensor)


def test_semantic_segmentation_is_mapped_as_by_detectron2(tmp_path):
    path = BY_TITLE["PNG"].write(tmp_path)
    Image.fromarray(np.arange(24 * 32, dtype=np.uint8).reshape(24, 32)).save(tmp_path / "s.png")
    item = {"file_name": str(path), "sem_seg_file_name": str(tmp_path / "s.png")}
    makers = (ImageMapper, DatasetMapper)
    ours, theirs = (mapped(make, tiny_config(), True, item) for make in makers)
    assert ours.keys() == theirs.keys() and torch.equal(ours["sem_seg"], theirs["sem_seg"])


def semantic_item(tmp_path, mask):
    path = BY_TITLE["PNG"].write(tmp_path)
    mask.save(tmp_path / "s.png")
    return {"file_name": str(path), "sem_seg_file_name": str(tmp_path / "s.png")}


def test_crops_for_semantic_segmentation_follow_the_resize(tmp_path):
    """All crops have the same size, image and mask move together, and classes are not mixed."""
    crop = {"INPUT__CROP__ENABLED": "True", "INPUT__CROP__SIZE": "[40, 40]"}
    cfg = small_segmenters.tiny_config(INPUT__MIN_SIZE_TRAIN="(48, 96)", **crop)
    columns = np.arange(32, dtype=np.uint8)[None].repeat(24, 0) // 8 * 3
    item = semantic_item(tmp_path, Image.fromarray(columns))
    gray = np.stack([columns * 10] * 3, -1)
    Image.fromarray(gray).save(item["file_name"])
    for seed in range(5):
        np.random.seed(seed)
        found = ImageMapper(cfg, True)(item)
        assert found["image"].shape == (3, 40, 40) and found["sem_seg"].shape == (40, 40)
        assert set(found["sem_seg"].unique().tolist()) <= {0, 3, 6, 9}
        near = (found["image"][0].float() / 10 - found["sem_seg"]).abs() <= 1.5
        assert near.float().mean() > 0.9
    np.random.seed(0)
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    shares = [
        torch.bincount(ImageMapper(cfg, True)(item)["sem_seg"].ravel()).max() for _ in range(9)
    ]
    assert max(shares) < 0.75 * 40 * 40


SEMANTIC_MISTAKES = {
    "another size": (Image.new("L", (24, 32)), "s.png has 24 x 32 pixels, but .*a.png has 32 x 24"),
    "an index": (Image.new("L", (32, 24), 11), "s.png: 768 pixels have an index of up to 11, but"),
    "colors": (Image.new("RGB", (32, 24)), "s.png has mode RGB. It must be an 8-bit PNG"),
}


@pytest.mark.parametrize("case", SEMANTIC_MISTAKES)
def test_wrong_masks_are_refused(tmp_path, case):
    mask, message = SEMANTIC_MISTAKES[case]
    with pytest.raises(UserError, match=message):
        ImageMapper(small_segmenters.tiny_config(), True)(semantic_item(tmp_path, mask))


@pytest.mark.parametrize("channels", ["RGB", "BGR", "YUV-BT.601"])
@pytest.mark.parametrize("kind", READ, ids=[kind.title for kind in READ])
def test_images_are_read_as_by_detectron2(tmp_path, kind, channels):
    path = kind.write(tmp_path)
    found = read_image(path, channels=channels)
    if kind.title == "TIFF with EXIF orientation":  # Detectron2 turns it twice
        assert found.shape[:2] == (24, 32)
        return
    assert np.array_equal(found, detection_utils.read_image(str(path), channels))


def test_16_bit_images_are_scaled_or_refused(tmp_path):
    kind = BY_TITLE["16-bit gray PNG"]
    item = item_of(kind.write(tmp_path))
    with pytest.raises(UserError, match=r"a.png has 16 bits .*: INPUT.IMAGE_RANGE \[MIN,MAX\]"):
        ImageMapper(tiny_config(), False)(item)
    cfg = tiny_config(**{"INPUT.IMAGE_RANGE": "[0,4095]", "INPUT.MIN_SIZE_TEST": "24"})
    found = ImageMapper(cfg, False)(item)["image"].numpy().transpose(1, 2, 0)
    assert np.array_equal(found, kind.scaled)


def test_a_wrong_size_is_named(tmp_path):
    item = item_of(BY_TITLE["PNG"].write(tmp_path)) | {"width": 24, "height": 32}
    with pytest.raises(UserError, match="a.png: the image has 32 x 24 pixels, .* for 24 x 32"):
        ImageMapper(tiny_config(), True)(item)


@pytest.mark.parametrize("value", ["[5]", "[5,5]", "[1,0]", "['a','b']"])
def test_an_invalid_range_is_refused(value):
    with pytest.raises(UserError, match="INPUT.IMAGE_RANGE .*: give two finite numbers"):
        mapper.decoding_of(tiny_config(**{"INPUT.IMAGE_RANGE": value}))


def test_configs_of_other_projects_have_no_range():
    cfg = tiny_config()
    del cfg.INPUT["IMAGE_RANGE"]
    assert mapper.decoding_of(cfg) == Decoding()
