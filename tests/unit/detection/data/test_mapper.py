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
