"""Hostile files: none may run code, leave its folder, exhaust memory or end in a traceback.

Each row was once accepted, or is the simplest form of an attack."""

import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

import robust_backbones.detection  # isort: skip  # noqa: F401  (before Detectron2)
import torch

from classification.datasets import cifar, image_cache, layouts, shards
from classification.datasets.fetch import _download
from classification.datasets.open import open_split
from classification.datasets.specs import DATASETS
from classification.report import page_runs, records, tables
from classification.report.sections import Column, Kind, Section
from classification.study.file import read_study
from classification.study.storage import Store
from robust_backbones import zoo
from robust_backbones.checkpoint.io import read_checkpoint
from robust_backbones.core.errors import MAX_LENGTH, UserError
from robust_backbones.detection import config
from robust_backbones.detection.inspect import curves
from tests.fuzz.tasks import tar
from tests.support.hostile_files import refuses, regular
from tests.support.miniature_tasks import python2
from tests.support.small_data import CLASSES

# ---- messages


def test_a_message_obeys_no_terminal_and_has_an_end():
    text = str(UserError("class '\x1b[31mred\x07\udc80' is unknown\nsee --help"))
    assert text == "class '\\x1b[31mred\\x07\\udc80' is unknown\nsee --help"
    assert len(str(UserError("a" * 10**6))) <= MAX_LENGTH >= len(str(UserError("\0" * 10**4)))


# ---- code


class Evil:
    def __reduce__(self):
        return os.system, ("touch canary",)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch canary']",
        "!!python/object/new:os.system ['x']",
        "!!python/name:os.system",
    ],
)
def test_yaml_names_no_python_object(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.yaml"
    path.write_text(f"OUTPUT_DIR: {text}\n")
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\n")
    for name in ("a.yaml", "b.yaml"):
        with refuses("could not determine a constructor", name):
            config.load_config(tmp_path / name)
    path.write_text(f"output: {text}\n")
    with refuses("", path):  # as a list, or not at all
        read_study(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.pt"])
def test_no_pickle_is_executed(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for write in (
        lambda p: torch.save({"model": Evil()}, p),
        lambda p: torch.save({"model": Evil()}, p, _use_new_zipfile_serialization=False),
        lambda p: p.write_bytes(pickle.dumps({"model": Evil()})),
    ):
        write(tmp_path / name)
        with refuses("would execute code .*system", name):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "name", ["pipe:touch canary", "../train-0.tar", "/etc/x.tar", "a;b.tar", ""]
)
def test_an_index_of_shards_names_plain_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    index = {"version": 1, "classes": ["a"], "splits": {"train": {name: 1}}}
    Path(shards.INDEX).write_text(json.dumps(index))
    with refuses("Shards must be in the same folder", shards.INDEX):
        shards.open_shards(DATASETS["folder"], "train", shards.INDEX)
    assert not (tmp_path / "canary").exists()


# ---- folders


def test_names_in_archives_are_no_paths(tmp_path, monkeypatch):
    """Decoded images are arrays of numbers. Names of members are not used as file names."""
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.tar"
    names = [f"../../train/{name}/../../../0.png" for name in CLASSES]
    path.write_bytes(tar(regular(*names)))
    image_cache.read_decoded("train", path, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "cache"]


@pytest.mark.parametrize(
    "kind, name, link",
    [
        (tarfile.REGTYPE, "../outside", ""),
        (tarfile.SYMTYPE, "a", "../../outside"),
        (tarfile.LNKTYPE, "a", "../outside"),
        (tarfile.FIFOTYPE, "a", ""),
    ],
)
def test_what_is_fetched_unpacks_into_its_folder(tmp_path, monkeypatch, kind, name, link):
    import torchvision.datasets
    from torchvision.datasets.utils import extract_archive

    archive = tmp_path / "a.tar"
    archive.write_bytes(tar([(name, b"", kind, link)]))
    monkeypatch.setattr(
        torchvision.datasets, "DTD", lambda root, download: extract_archive(str(archive), root)
    )
    with refuses("could not download dtd", "torchvision"):
        _download("dtd", "DTD", tmp_path / "data", tmp_path)
    assert not (tmp_path / "outside").exists() and not list((tmp_path / "data").iterdir())
    assert tarfile.TarFile.extraction_filter is None or kind  # others' is as it was


def test_object_storage_brings_nothing_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    store = Store(f"file://{tmp_path}/bucket")
    monkeypatch.setattr(Store, "_sizes", lambda self, base: {"a/../../../result.json": 1})
    with refuses("is outside this folder"):
        store.fetch(store.folder / "part")


@pytest.mark.parametrize("name", ["robust://../../etc/passwd", "robust://resnet18_l2_eps3/../x"])
def test_published_names_are_those_of_the_table(name):
    with refuses("no published model is named"):
        zoo.find_model(name)


@pytest.mark.parametrize("labels", [["a"], [10], [-1], [None], 3])
def test_labels_of_cifar_that_are_none(tmp_path, labels):
    batch = {b"data": np.zeros((1, 3072), np.uint8), b"labels": labels}
    names = {b"label_names": [b"ant"]}
    for name, contents in (("test_batch", batch), ("batches.meta", names)):
        python2(tmp_path / name, contents)
    with refuses("the files are not the official ones", tmp_path):
        cifar.read_cifar("cifar10", "test", tmp_path)


def test_an_index_may_name_what_no_disk_takes(tmp_path):
    assert layouts._entries(tmp_path / ("a" * 5000)) == set()


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd"])
def test_an_index_names_images_of_its_folder(tmp_path, name):
    for place, text in (
        ("images_variant_trainval", f"{name[:-4]} a"),
        ("variants", "a"),
        ("images_variant_test", "x a"),
    ):
        (tmp_path / "data/images").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"data/{place}.txt").write_text(text + "\n")
    with refuses("leads out of its folder"):
        layouts.OFFICIAL["aircraft"]("train", tmp_path)


# ---- tables


def test_cells_are_no_formulas_links_or_commands():
    rows = [
        {"=a": "=cmd|' /C calc'!A0", "b": 1.5},
        {"=a": "+1", "b": 1.0},
        {"=a": "-1", "b": -1.0},
        {"=a": "@a", "b": 0.0},
        {"=a": "[a](javascript:alert(1))\x0c\\input{x}", "b": 1.0},
    ]
    section = Section("t", "t", [], [Column("=a"), Column("b", kind=Kind.MEASURE)], rows)
    lines = tables.comma(section).splitlines()
    assert [line[:2] for line in lines[:5]] == ["'=", "'=", "'+", "'-", "'@"]
    assert lines[3].endswith(",-1")  # numbers stay numbers
    assert "](" not in tables.markdown(section)
    latex = tables.latex(section)
    assert r"\textbackslash{}input\{x\}" in latex and "\x0c" not in latex


def test_the_page_of_pictures_shows_names_as_text(tmp_path):
    from robust_backbones.detection.inspect import page
    from robust_backbones.detection.inspect.gallery import Column as Predicted
    from robust_backbones.detection.inspect.gallery import Row
    from tests.support.html_tags import Tags
    from tests.support.report_parts import HOSTILE

    picture = {"file": f"pictures/{HOSTILE}", "column": HOSTILE, "text": HOSTILE, "alt": HOSTILE}
    path = page.write_page(
        tmp_path / "index.html",
        dataset=HOSTILE,
        size=1,
        looked_at=1,
        by_errors=False,
        totals=None,
        rows=[Row(f"/{HOSTILE}", {}, {}, [picture])],
        threshold=0.5,
        seed=0,
        semantic=False,
        columns=[Predicted(HOSTILE, None, {HOSTILE: "javascript:alert(1)"})],
    )
    tags = Tags(path.read_text()).found
    assert "script" not in {tag for tag, _ in tags}
    assert [tag for tag, _ in tags].count("img") == 1  # ours
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]
    addresses = [attrs[key] for _, attrs in tags for key in ("src", "href") if key in attrs]
    assert addresses and all(a.startswith("pictures/") for a in addresses)


def test_a_result_whose_values_are_of_other_types(tmp_path):
    from tests.support.report_parts import result

    result(tmp_path)
    path = tmp_path / "result.json"
    contents = json.loads(path.read_text())
    contents["data"]["test"]["images"] = {"a": 1}
    path.write_text(json.dumps(contents))
    assert records.read([tmp_path]) == (
        [],
        [f"{path} is not a valid result (invalid description of the data)."],
    )


def test_numbers_that_json_does_not_have_stay_out_of_the_page(tmp_path):
    from tests.support.report_parts import result

    result(tmp_path)
    path = tmp_path / "result.json"
    path.write_text(path.read_text().replace('"seconds": 1.0', '"seconds": Infinity'))
    (tmp_path / "per_class.csv").write_text("class,images,right,recall_percent\na,1,1,nan\n")
    found = records.read([tmp_path])[0]
    json.dumps(page_runs.collect_runs(found).json(), allow_nan=False)
    assert found[0].seconds == float("inf")


def test_shards_of_hostile_names_are_read_into_memory(tmp_path):
    path = tmp_path / "train-0.tar"
    path.write_bytes(tar(regular("../0.png") + [("../0.cls", b"0", tarfile.REGTYPE, "")]))
    row = open_split("folder", "train", _with_index(tmp_path))
    assert len(list(shards.read_samples(row.urls))) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [shards.INDEX, "train-0.tar"]


def _with_index(folder: Path) -> Path:
    index = {"version": 1, "classes": ["a"], "splits": {"train": {"train-0.tar": 1}}}
    (folder / shards.INDEX).write_text(json.dumps(index))
    return folder


def test_a_name_is_not_taken_for_mathematics(tmp_path):
    from robust_backbones.detection.inspect import visualize

    names, image = ["$\\frac$", "$a_{$"], np.zeros((40, 60, 3), np.uint8)
    objects = visualize.Truth(
        np.array([[1, 1, 9, 9], [20, 20, 30, 30]]), np.array([0, 1]), np.zeros(2, bool), None
    )
    assert visualize.draw_truth(image, objects, names).max() > 0
    curves.draw({name: {f"loss{name}": {1: 1.0}} for name in names}, tmp_path / "a.png")
