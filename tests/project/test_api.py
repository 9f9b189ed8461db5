"""The public names: documented, importable at their first use, and correct."""

import hashlib
import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

import classification
import robust_backbones
from classification.transfer import features
from classification.transfer.rows import Rows
from robust_backbones import UserError, arithmetic, weights, zoo
from tests.support import ROOT, documents
from tests.support.commands import HEAVY
from tests.support.networks import random_network, robustness_contents
from tests.support.tf32 import flags

PACKAGES = ("robust_backbones", "robust_backbones.detection", "classification")
NAMES = [(each, name) for each in PACKAGES for name in importlib.import_module(each).__all__]


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_public_names_are_documented(package, name):
    """Every argument is described, and every function describes its errors and its source."""
    found = getattr(importlib.import_module(package), name)
    text = inspect.getdoc(found)
    assert text and name in dir(importlib.import_module(package))
    if inspect.isfunction(found):
        described = text.partition("Args:")[2].partition("\n\n")[0]
        for argument in inspect.signature(found).parameters:
            if "for the other arguments" not in text.lower():
                assert re.search(rf"\b{argument}\b[^:]*:", described), argument


def test_importing_the_packages_imports_nothing_slow():
    code = "import classification, robust_backbones; dir(classification)"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    )
    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "lazy_loader" in imported and not imported & {*HEAVY, "numpy"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="classification attribute nothing"):
        _ = classification.nothing


@pytest.fixture(scope="module")
def digits():
    """A classifier with random weights, and training and test images."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 5), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
    )
    model = classification.Classifier.wrap(net, mean=(0.5,) * 3, std=(0.5,) * 3, features="4")
    splits = (classification.open_split("digits", name, limit=200) for name in ("train", "test"))
    return model.eval(), *splits


def test_a_probe_is_that_of_a_transfer_run(digits, tmp_path):
    model, train, test = digits
    x, x_test = (classification.extract_features(model, each) for each in (train, test))
    probe = classification.fit_probe(x, train.labels)
    right = (probe(x_test).argmax(1) == test.labels).double().mean().item()
    small = {"limit": 200, "test_limit": 200, "trials": 1}
    found = classification.measure_transfer(model, tmp_path / "run", dataset="digits", **small)
    assert 100 * right == pytest.approx(found["accuracy"]) and right > 0.5
    [record] = classification.read_results(tmp_path)
    assert record.accuracies == (found["accuracy"],)


def test_features_are_float32_without_tf32(digits, monkeypatch):
    """Features are cached for all programs, so they do not depend on the state of this one."""
    model, _, test = digits
    seen = []
    extract = lambda *args, **options: seen.append(flags()) or Rows([torch.zeros(1, 1)])  # noqa: E731
    monkeypatch.setattr(features, "extract", extract)
    arithmetic.set_tf32(True)
    try:
        classification.extract_features(model, test)
        assert seen == [(False, False)] and flags() == (True, True)
    finally:
        arithmetic.set_tf32(False)
    with pytest.raises(UserError, match="precision 'fp16' is unknown. .*Choose from float32"):
        classification.extract_features(model, test, precision="fp16")


def test_results_that_cannot_be_read_are_warnings(tmp_path):
    (tmp_path / "result.json").write_text("{")
    with pytest.warns(UserWarning, match="result.json is not a valid result"):
        assert classification.read_results(tmp_path) == []


def test_a_converted_file_has_the_features_of_its_source(resnet18_file, tmp_path):
    target = tmp_path / "converted.pth"
    with pytest.warns(UserWarning, match=r"ImageNet's are assumed. Pass statistics="):
        differences = robust_backbones.convert_weights(resnet18_file, target)
    assert list(differences) == ["stem", "res2", "res3", "res4", "res5"]
    assert max(differences.values()) <= 1e-5
    for options, message in (({}, "exists. Overwrite"), ({"to": "onnx"}, "'onnx' is unknown")):
        with pytest.raises(UserError, match=message):
            robust_backbones.convert_weights(resnet18_file, target, **options)


def test_a_backbone_computes_the_features_of_the_classifier(resnet18_backbone):
    from robust_backbones.detection import load_backbone

    with pytest.warns(UserWarning, match="assumed"):
        backbone, statistics = load_backbone(resnet18_backbone)
    net, x = random_network("resnet18").eval(), torch.rand(1, 3, 64, 96)
    x = classification.Classifier.wrap(net, mean=statistics.mean, std=statistics.std).normalize(x)
    body = nn.Sequential(*list(net.children())[:-2])  # without the pooling and the last layer
    torch.testing.assert_close(backbone.eval()(x)["res5"], body(x), rtol=1e-4, atol=1e-4)


PAGE = ROOT / "docs/reference/api.md"
PUBLISHED = "resnet50_l2_eps3"
# Parts of the examples, and what makes them small.
SMALL = {
    "image_size=32)": "image_size=32, limit=40)",
    "images=100": "images=10, steps=1",
    "trials=1": "trials=1, penalty=1.0, limit=50, test_limit=50",
    "cfg.merge_from_list([": "cfg.merge_from_list([*TINY, ",
}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A small network in place of the published one, for ten classes."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    torch.save(robustness_contents(random_network("resnet18").state_dict()), mirror / "net.ckpt")
    digest = hashlib.sha256((mirror / "net.ckpt").read_bytes()).hexdigest()
    row = replace(zoo.find_model(PUBLISHED), arch="resnet18", place="hf://a/b/net.ckpt")
    monkeypatch.setitem(zoo.MODELS, PUBLISHED, replace(row, sha256=digest))
    monkeypatch.setenv(weights.MIRROR, str(mirror))
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return row


def test_the_example_of_the_readme_runs(published):
    [block] = [b for b in documents.blocks(ROOT / "README.md") if b.language == "python"]
    values = {"images": torch.rand(2, 3, 64, 64), "labels": torch.tensor([3, 7])}
    exec(compile(block.text, str(block), "exec"), values)
    assert values["features"].shape == (2, 512)
    change = (values["adversarial"] - values["images"]).flatten(1).norm(dim=1)
    assert ((change > 1) & (change <= 3 + 1e-4)).all()


def run_examples(detection: bool, **values) -> dict:
    """Run the examples of the page before or in its section on detectors, in one namespace."""
    text = PAGE.read_text(encoding="utf-8")
    assert not [old for old in SMALL if old not in text]
    start = text[: text.index("## Detectors")].count("\n")
    for block in documents.blocks(PAGE):
        if (block.line > start) == detection:
            code = block.text
            for old, new in SMALL.items():
                code = code.replace(old, new)
            exec(compile(code, str(block), "exec"), values)
    return values


@pytest.mark.filterwarnings("error")
def test_the_examples_with_classifiers_run(published, capsys):
    values = run_examples(detection=False)
    assert (
        values["found"].arch == "resnet18"
        and values["each"] is zoo.list_models("resnet50", "l2")[-1]
    )
    assert 0 <= values["robust"].top1 <= values["clean"].top1 <= 100
    assert (values["x_adv"] - values["x"]).flatten(1).norm(dim=1).max() <= 0.5 + 1e-5
    said = capsys.readouterr().out
    assert "transfer digits" in said and "robustness digits" in said


def test_the_examples_with_detectors_run(published, tmp_path, monkeypatch, pytestconfig):
    from tests.support import detector_runs
    from tests.support.detectors import photograph

    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", pytestconfig.cache_folder.name)  # has the scenes
    Image.fromarray(photograph()).save(tmp_path / "photo.jpg")
    tiny = detector_runs.overrides("output/api/detector", "", **{"DATASETS.TEST": "()"})
    values = run_examples(detection=True, TINY=tiny)
    clean, attacked = values["predictor"].preprocess(photograph()), values["attacked"]
    assert attacked["image"].shape == clean["image"].shape
    assert len(values["found"]) == 5
    assert values["statistics"].equal(published.statistics)
