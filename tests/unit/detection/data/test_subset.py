"""Chosen images as a data set of its own: COCO and VOC evaluators see these and no others."""

import json

import pytest

from robust_backbones.core.errors import UserError
from robust_backbones.detection import config
from robust_backbones.detection.data import catalog, subset
from tests.support.custom_data import coco
from tests.support.small_detectors import DatasetCatalog
from tests.support.voc_data import voc
from tests.support.yolo_data import yolo

COCO, VOC = "digit_scenes_val", "digit_scenes_voc_val"


def test_all_images_are_the_data_set_itself(tmp_path):
    items = subset.choose(COCO, None, seed=0)
    assert [number for number, _ in items] == list(range(200))
    assert subset.register(COCO, items, tmp_path / "unused") == COCO
    assert not (tmp_path / "unused").exists()


def test_the_choice_is_random_sorted_and_the_seeds():
    first, again, other = (subset.choose(COCO, 20, seed) for seed in (0, 0, 1))
    numbers = [number for number, _ in first]
    assert numbers == sorted(set(numbers)) and len(numbers) == 20 and numbers != list(range(20))
    assert numbers == [number for number, _ in again]
    assert numbers != [number for number, _ in other]
    whole = DatasetCatalog.get(COCO)
    assert all(item["image_id"] == whole[number]["image_id"] for number, item in first)


@pytest.mark.parametrize("wanted", [0, 201])
def test_too_many_or_no_images(wanted):
    with pytest.raises(UserError, match=f"--images is {wanted}, but '{COCO}' has 200. Give 1 to"):
        subset.choose(COCO, wanted, seed=0)


def test_a_coco_subset_has_its_images_annotations_and_classes(tmp_path):
    from detectron2.data import MetadataCatalog

    for seed in (1, 2):  # the second choice takes the place of the first
        items = subset.choose(COCO, 5, seed)
        name = subset.register(COCO, items, tmp_path)
        meta, whole = MetadataCatalog.get(name), MetadataCatalog.get(COCO)
        contents = json.loads((tmp_path / "instances.json").read_text())
        assert meta.json_file == str(tmp_path / "instances.json")
        ids = {item["image_id"] for _, item in items}
        assert {row["id"] for row in contents["images"]} == ids
        full = json.load(open(whole.json_file))
        kept = [row for row in full["annotations"] if row["image_id"] in ids]
        assert contents["annotations"] == kept and contents["categories"] == full["categories"]
        assert meta.thing_dataset_id_to_contiguous_id == whole.thing_dataset_id_to_contiguous_id
        assert DatasetCatalog.get(name) == [item for _, item in items]


def test_a_voc_subset_has_its_files(tmp_path):
    from detectron2.data import MetadataCatalog

    items = subset.choose(VOC, 60, seed=0)
    meta = MetadataCatalog.get(subset.register(VOC, items, tmp_path))
    stems = [item["image_id"] for _, item in items]
    assert meta.dirname == str(tmp_path) and meta.year == 2012
    assert (tmp_path / "ImageSets/Main/val.txt").read_text().split() == stems
    assert {p.stem for p in (tmp_path / "Annotations").iterdir()} == set(stems)


def test_a_voc_subset_without_a_class_is_refused(tmp_path):
    items = subset.choose(VOC, 1, seed=0)
    with pytest.raises(UserError, match="The 1 chosen images have no .*Use a larger --images"):
        subset.register(VOC, items, tmp_path)


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_custom_data_are_scored_on_the_chosen_images_only(tmp_path, kind):
    box = ("cat", (1, 1, 9, 9))
    texts = {
        "coco": lambda: f"{tmp_path}:{coco(tmp_path)}",
        "voc": lambda: f"{voc(tmp_path, {'a': [box], 'b': [box, box]}, None)}:all",
        "yolo": lambda: f"{yolo(tmp_path, train='images')}:train",
    }
    cfg = config.dataset_config(f"mine={kind}:{texts[kind]()}")
    config.check_inputs(cfg, train=False)
    name = subset.register("mine", subset.choose("mine", 1, 0), tmp_path / "subset")
    (image,) = catalog.scored_annotations(name).images
    (item,) = DatasetCatalog.get(name)
    assert image.id == item["image_id"] and len(image.objects) == len(item["annotations"])
