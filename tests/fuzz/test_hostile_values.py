"""Invalid values in files, and values that claim more memory or time than the file can have."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

import robust_backbones.detection  # isort: skip  # noqa: F401  (before Detectron2)
import torch

from classification.datasets import image_cache, shards
from classification.datasets.image_files import read_fast
from classification.datasets.specs import DATASETS
from classification.report import records
from classification.study.file import read_study
from robust_backbones.checkpoint.io import load_file
from robust_backbones.core.images import decode
from robust_backbones.detection import config
from robust_backbones.detection.checkpointer import StrictCheckpointer
from robust_backbones.detection.data import (
    coco_annotations,
    coco_predictions,
    segmentations,
    voc_annotations,
)
from robust_backbones.detection.evaluation import coco_scores, saved
from robust_backbones.detection.inspect import curves, predictor
from tests.fuzz.pictures import bomb
from tests.fuzz.tasks import SPARSE, tar
from tests.fuzz.texts import LAUGHS, LOOP
from tests.support.hostile_files import refuses, regular


def test_a_tensor_is_no_larger_than_its_file(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"fc.weight": torch.zeros(1).expand(2**40)}, path)
    with refuses("has shape .1099511627776,., but the file contains only 1 values", path):
        load_file(path)
    torch.save({"x": torch.zeros(2, dtype=torch.float8_e5m2)}, path)
    with refuses("'x' has dtype torch.float8_e5m2", path):
        load_file(path)
    contents = {"model": {}}
    contents["model"]["again"] = contents  # a container can contain itself
    torch.save(contents, path)
    assert load_file(path)["model"]["again"]


def test_an_array_is_no_larger_than_its_file(tmp_path):
    class Huge:
        def __reduce__(self):
            rebuild, arguments, _ = np.zeros(1).__reduce__()
            return rebuild, (arguments[0], (10**6,), b"d")

    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"a": Huge()}, 2))
    with refuses("is not a complete checkpoint", path):
        load_file(path)
    for swapped in (np.arange(6, dtype=">f4").reshape(2, 3), np.asfortranarray(np.eye(3)[:2])):
        path.write_bytes(pickle.dumps({"a": swapped, "b": swapped[0, 1]}, 2))
        found = load_file(path)  # without NumPy's own functions
        assert found["a"].tolist() == swapped.tolist() and found["b"] == swapped[0, 1]
    weights = np.arange(1000.0)
    path.write_bytes(pickle.dumps({str(i): weights for i in range(1000)}, 2))
    found = load_file(path)  # an array with a thousand names is stored once
    assert found["0"].data_ptr() == found["999"].data_ptr()


def test_a_refused_checkpoint_leaves_nothing_to_the_next(tmp_path):
    """PyTorch would validate the sparse tensor with the next file, and fail or crash there."""
    bad, good = tmp_path / "bad.pth", tmp_path / "good.pth"
    wrong = torch.sparse_coo_tensor([[9]], [1.0], (2,), check_invariants=False)
    torch.save({"a": wrong, "b": Path("x")}, bad)
    torch.save({"a": torch.ones(1)}, good)
    with refuses("contains sparse tensors", bad):
        load_file(bad)
    assert load_file(good)["a"].tolist() == [1]


@pytest.mark.parametrize("name", ["a.pkl", "a.pth"])
def test_a_pickle_remembers_no_more_objects_than_it_has(tmp_path, name):
    """Python would allocate memory for 2**24 objects."""
    path = tmp_path / name
    path.write_bytes(b"\x80\x02}r" + (2**24).to_bytes(4, "little") + b".")
    with refuses("is not a complete checkpoint", path):
        load_file(path)


@pytest.mark.parametrize("model", [{"a": "text"}, [torch.zeros(1)], torch.zeros(1), None])
def test_a_detector_is_a_dictionary_of_tensors(tmp_path, model):
    path = tmp_path / "a.pth"
    torch.save({"model": model}, path)
    with refuses("'model' is not a dictionary of tensors", path):
        StrictCheckpointer(torch.nn.Linear(1, 1))._load_file(str(path))


@pytest.mark.parametrize(
    "metadata", [{"mean": "red"}, {"std": []}, {"mean": [None] * 3}, {"classes": "red"}]
)
def test_metadata_of_a_detector_that_are_none(metadata):
    class Model(torch.nn.Module):
        input_format = "RGB"
        pixel_mean = pixel_std = torch.zeros(3)

    with refuses("metadata of the weights are invalid"):
        checkpointer = StrictCheckpointer(Model())
        checkpointer.classes = ["a"]
        checkpointer._load_model({"model": {}, "metadata": metadata})


@pytest.mark.parametrize("zipped", [True, False])
def test_a_word_without_end_takes_no_time(tmp_path, zipped):
    """PyTorch's error formatting would take hours."""
    path = tmp_path / "a.pth"
    torch.save({"x" * 10**6: 1, "a text " * 10**5: 2}, path, _use_new_zipfile_serialization=zipped)
    with refuses("a string of 1000000 characters contains a word", path):
        load_file(path)


def test_a_checkpoint_does_not_unpack_to_more_than_it_is(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with refuses("it would unpack to 1000000 bytes", path):
        load_file(path)


@pytest.mark.parametrize(
    "text, message",
    [
        (LAUGHS, "more than 100000 entries"),
        (LOOP, "more than 100000 entries"),
        (b"a: " + b"[" * 5000, "RecursionError|recursion"),
        (b"- a\n", "must be a mapping"),
        (b"SEED: &a 1\n_BASE_: a.yaml\n", "recursion"),
        (b"SEED: !!timestamp x\n", "groupdict"),
        (b"VERSION: 1\n", "VERSION is 1. Only 2"),
        (b"\0", "unacceptable character"),
    ],
)
def test_configs_that_are_none(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_bytes(text)
    with refuses(message, path.name):
        config.load_config(path)


def test_a_base_that_is_no_config(tmp_path):
    path, base = tmp_path / "a.yaml", tmp_path / "b.txt"
    path.write_text("_BASE_: b.txt")
    base.write_text("text")
    with refuses("is not a config", "a _BASE_ of", path, base):
        config.load_config(path)


@pytest.mark.parametrize(
    "text",
    [
        b"output: o\ncommand: [x]\n",
        b"output: !!timestamp x\n",
        b"\1",
        b"output: o\nname: ..\n",
        b"output: o\nname: .x\n",
    ],
)
def test_study_files_that_are_none(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_bytes(text)
    with refuses("", path.name):
        read_study(path)


DEEP = b"[" * 100_000
HUGE_NUMBER = b'{"a": ' + b"9" * 5000 + b"}"


@pytest.mark.parametrize("text", [DEEP, HUGE_NUMBER])
def test_deep_and_huge_json(tmp_path, text):
    for name in ("result.json", "metrics.json", shards.INDEX):
        (tmp_path / name).write_bytes(text)
    path = tmp_path / "result.json"
    with refuses("is not JSON", path):
        coco_annotations.read_coco(tmp_path, path)
    assert "result.json is not a valid result" in records.read([tmp_path])[1][0]
    with refuses("contains no training iteration", "metrics.json"):
        curves.read(tmp_path)
    with refuses("cannot be read as an index of shards", shards.INDEX):
        shards.open_shards(DATASETS["folder"], "train", tmp_path)


VOC = (
    "<annotation>{}<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>9</xmax>"
    "<ymax>9</ymax></bndbox></object></annotation>"
)
DTD = '<!DOCTYPE a [<!ENTITY a "{}"><!ENTITY b {}>]>'


@pytest.mark.parametrize(
    "text, message",
    [
        (DTD.format("x" * 99, '"' + "&a;" * 99 + '"') + VOC.format("", "&b;", 1), "DOCTYPE"),
        (DTD.format("x", 'SYSTEM "file:///etc/passwd"') + VOC.format("", "&b;", 1), "DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "http://localhost/a.dtd">' + VOC.format("", "a", 1), "DOCTYPE"),
        (VOC.format("<size><width>inf</width></size>", "a", 1), "infinity"),
        (VOC.format("", "a", "one"), "could not convert"),
        (VOC.format("", "&b;", 1), "undefined"),
        ('<?xml version="1.0" encoding="x"?>' + VOC.format("", "a", 1), "unknown encoding"),
        ("<a>" * 100_000, "no element found"),
    ],
)
def test_voc_annotations_that_are_none(tmp_path, text, message):
    for part in ("Annotations", "ImageSets/Main"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\n")
    path = tmp_path / "Annotations/a.xml"
    path.write_text(text)
    with refuses(message, path):
        voc_annotations.read_voc(tmp_path, "train")
    for name in ("../../a", "//", "/etc/passwd"):
        (tmp_path / "ImageSets/Main/train.txt").write_text(f"{name}\n")
        with refuses("is outside the folder", tmp_path, "train.txt", name):
            voc_annotations.read_voc(tmp_path, "train")


@pytest.mark.parametrize(
    "part, message",
    [
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "extends from 0 to"),
        ([[0, 0, float("nan"), 1, 1, 1]], "finite"),
        ([["a"] * 6], "finite"),
        ([6], "finite"),
        ("x", "is 'x', neither"),
        ([[10**400] * 6], "finite"),
        ({"size": [10**9, 10**9], "counts": "x"}, "claim"),
        ({"size": 3, "counts": "x"}, "size 3"),
        ({"size": [2, 2], "counts": [9]}, "do not sum"),
        ({"size": [2, 2], "counts": [-1, 5]}, "sum to"),
        ({"size": [2, 2], "counts": None}, "NoneType"),
        ({"size": [2, 2], "counts": "é"}, "str"),
        ([[0, 0, 5, 0, 5, 5]], None),
        ([[1, 2]], None),
        ({"size": [2, 2], "counts": [1, 3]}, None),
    ],
)
def test_masks_that_would_crash_pycocotools(tmp_path, part, message):
    found = segmentations.segmentation_fault(part)
    assert found is None if message is None else message in found
    if message:
        image = {"id": 1, "file_name": "a", "width": 2, "height": 2}
        mark = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}
        mark["segmentation"] = part
        contents = {"images": [image], "categories": [{"id": 1}], "annotations": [mark]}
        read = coco_annotations.parse_coco(contents, "marks")
        assert message in read.images[0].objects[0].mask_fault
        with refuses("", "marks"):
            coco_scores.score(read, [], "segm")
        assert coco_scores.score(read, [], "bbox")["AP"] == 0
        sound = coco_annotations.parse_coco(contents | {"annotations": []}, "marks")
        with refuses("", "rows"):
            coco_predictions.check_predictions([mark | {"score": 1}], sound, ["segm"], "rows")


@pytest.mark.parametrize(
    "change", [{"file_name": 3}, {"width": [1]}, {"width": 10**400}, {"id": [1]}]
)
def test_coco_images_that_are_none(tmp_path, change):
    path = tmp_path / "a.json"
    image = {"id": 1, "file_name": "a.jpg", "width": 2, "height": 2} | change
    path.write_text(json.dumps({"images": [image], "categories": [], "annotations": []}))
    with refuses("is not a COCO annotation file", path):
        coco_annotations.read_coco(tmp_path, path)


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "..\\a.jpg", "C:\\a.jpg", "a/../../b"])
def test_coco_images_outside_their_folder(tmp_path, name):
    path = tmp_path / "a.json"
    image = {"id": 1, "file_name": name, "width": 2, "height": 2}
    contents = {"images": [image], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    path.write_text(json.dumps(contents))
    found = coco_annotations.read_coco(tmp_path, path)
    (problem,) = found.problems
    assert problem.kind == "outside folder"
    assert f"is outside the folder {tmp_path}" in problem.text


def test_coco_ids_of_two_kinds(tmp_path):
    path = tmp_path / "a.json"
    images = [{"id": key, "file_name": "a.jpg"} for key in (1, "b")]
    path.write_text(json.dumps({"images": images, "categories": [], "annotations": []}))
    with refuses("is not a COCO annotation file", path):
        coco_annotations.read_coco(tmp_path, path)


def test_a_mask_in_an_image_without_a_size(tmp_path):
    path = tmp_path / "a.json"
    row = {
        "id": 7,
        "image_id": 1,
        "category_id": 3,
        "bbox": [0, 0, 1, 1],
        "segmentation": [[1, 1, 4, 1, 4, 5]],
    }
    contents = {"images": [{"id": 1}], "categories": [{"id": 3}], "annotations": [row]}
    found = coco_annotations.parse_coco(contents, str(path))
    with refuses("object 7 .3. has a mask, but its image has no height and width", path):
        coco_scores.score(found, [], "bbox")


@pytest.mark.parametrize("size", [(13_000, 13_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_that_claims_gigapixels(tmp_path, size):
    path = tmp_path / "a.png"
    path.write_bytes(bomb(*size))
    for read in (
        lambda: decode(path),
        lambda: read_fast(path, 9),
        lambda: predictor.as_array(path),
    ):
        with refuses("pixels", path):
            read()


def test_a_file_in_an_archive_that_claims_a_terabyte(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "train-0.tar"
    path.write_bytes(tar(regular("0.png"), headers=SPARSE))
    with refuses("'0.png' is sparse or claims", path):
        list(shards.read_samples([str(path)]))
    path.write_bytes(tar(regular("train/a/0.png"), headers=SPARSE))
    with refuses("sparse", path):
        image_cache.read_decoded("train", path, 4)


@pytest.mark.parametrize(
    "part", [{"size": [8, 8], "counts": "0P3"}, {"size": [8, 8], "counts": "_"}]
)
def test_run_lengths_that_do_not_fill_an_image(part):
    row = {"image_id": 7, "bbox": [0, 0, 1, 1], "score": 1, "category_id": 0, "segmentation": part}
    with refuses("image 7", "rows.json"):
        saved.to_instances([row], 8, 8, "rows.json")
