"""Chosen images as a data set of its own: COCO and VOC evaluators see these and no others."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from robust_backbones.core.errors import UserError
from robust_backbones.detection import config, run_checks
from robust_backbones.detection.data import catalog, custom, registry, subset
from tests.support.custom_data import coco
from tests.support.voc_data import voc
from tests.support.yolo_data import yolo

COCO, VOC = "digit_scenes_val", "digit_scenes_voc_val"


def test_all_images_are_the_data_set_itself():
    items = subset.choose(COCO, None, seed=0)
    assert [number for number, _ in items] == list(range(200))
    assert subset.register(COCO, items) == COCO


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


@pytest.mark.parametrize("dataset", [COCO, VOC])
def test_a_subset_has_its_images_annotations_and_classes(dataset):
    whole = {image.id: image for image in catalog.scored_annotations(dataset).images}
    for seed in (1, 2):  # the second choice takes the place of the first
        items = subset.choose(dataset, 5, seed)
        name = subset.register(dataset, items)
        ids = [item["image_id"] for _, item in items]
        found = catalog.scored_annotations(name)
        assert found.images == [whole[key] for key in ids] and found.source == name
        assert found.classes == catalog.scored_annotations(dataset).classes
        assert DatasetCatalog.get(name) == [item for _, item in items]
        meta, full = MetadataCatalog.get(name), MetadataCatalog.get(dataset)
        for key in ("thing_dataset_id_to_contiguous_id", "year", "evaluator_type"):
            assert meta.get(key) == full.get(key)


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_custom_data_are_scored_on_the_chosen_images_only(tmp_path, kind):
    box = ("cat", (1, 1, 9, 9))
    texts = {
        "coco": lambda: f"{tmp_path}:{coco(tmp_path)}",
        "voc": lambda: f"{voc(tmp_path, {'a': [box], 'b': [box, box]}, None)}:all",
        "yolo": lambda: f"{yolo(tmp_path, train='images')}:train",
    }
    cfg = config.dataset_config(f"mine={kind}:{texts[kind]()}")
    run_checks.check_inputs(cfg, train=False)
    name = subset.register("mine", subset.choose("mine", 1, 0))
    (image,) = catalog.scored_annotations(name).images
    (item,) = DatasetCatalog.get(name)
    assert image.id == item["image_id"] and len(image.objects) == len(item["annotations"])


CROWD = {"annotations__1__iscrowd": 1}
SOURCES = {  # a custom training set with two images
    "coco": lambda folder: f"mine=coco:{folder}:{coco(folder, **CROWD)}",
    "voc": lambda folder: f"mine=voc:{voc(folder, VOC_IMAGES, None)}:all",
    "yolo": lambda folder: f"mine=yolo:{yolo(folder, train='images')}:train",
}
VOC_IMAGES = {"a": [("cat", (1, 1, 9, 9))], "b": [("dog", (2, 2, 8, 8)), ("dog", (1, 1, 5, 5))]}


def held_out(cfg, share, **more):
    cfg = cfg.clone()
    cfg.DATASETS.HELD_OUT = share
    for key, value in more.items():
        cfg[key] = value
    return subset.hold_out(cfg).DATASETS


@pytest.mark.parametrize("kind", SOURCES)
def test_custom_training_images_are_held_out_with_all_their_objects(tmp_path, kind):
    cfg = config.dataset_config("")
    cfg.DATASETS.TRAIN = (SOURCES[kind](tmp_path),)
    custom.name_datasets(cfg)
    run_checks.check_inputs(cfg, train=False)
    custom.prepare_custom(cfg, train=True)
    whole = catalog.scored_annotations("mine")
    split = held_out(cfg, 0.5)
    assert split.TRAIN == ("mine_rest",) and split.TEST == ("mine_held_out",)
    parts = [catalog.scored_annotations(name) for name in ("mine_rest", "mine_held_out")]
    images = [image for part in parts for image in part.images]
    assert sorted(images, key=lambda i: str(i.id)) == sorted(whole.images, key=lambda i: str(i.id))
    # A class may be absent from a part.
    assert [part.classes for part in parts] == [whole.classes] * 2
    for name, part in zip(("mine_rest", "mine_held_out"), parts, strict=True):
        found = [item["image_id"] for item in DatasetCatalog.get(name)]
        assert found == [image.id for image in part.images]
    if kind == "coco":
        assert sum(thing.crowd for image in images for thing in image.objects) == 1


def test_the_same_images_are_held_out_in_every_run():
    cfg = config.dataset_config("")
    cfg.DATASETS.TRAIN = (COCO, VOC)
    found = []
    for seed in (0, 1):
        split = held_out(cfg, 0.2, SEED=seed)
        assert split.TRAIN == (f"{COCO}_rest", f"{VOC}_rest")
        assert split.TEST == (f"{COCO}_held_out", f"{VOC}_held_out")
        found.append({name: registry.fingerprint(name) for name in (*split.TRAIN, *split.TEST)})
    assert found[0] == found[1]
    assert [part["images"] for part in found[0].values()] == [160, 160, 40, 40]
    rule = f"40 of the 200 images of '{COCO}', by a random split with seed 0"
    assert found[0][f"{COCO}_held_out"]["split"] == rule
    assert cfg.DATASETS.TRAIN == (COCO, VOC)  # unchanged
    assert held_out(cfg, 0.0).TRAIN == (COCO, VOC)


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_an_empty_part_is_refused(share):
    cfg = config.dataset_config("")
    cfg.DATASETS.TRAIN = (COCO,)
    with pytest.raises(UserError, match=f"HELD_OUT is {share}, which is .* of the 200 images"):
        held_out(cfg, share)
