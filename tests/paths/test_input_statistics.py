"""Input statistics and class names in whole commands: used, printed, recorded, compared."""

import json
import re

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from classification.datasets import loader
from classification.datasets.open import open_images
from classification.interpret import __main__ as interpret
from classification.models import Classifier, save_classifier
from classification.robustness_eval import __main__ as robustness_eval
from robust_backbones.checkpoint.io import read_checkpoint
from robust_backbones.commands import convert
from robust_backbones.core.input_statistics import IMAGENET, PRESETS
from tests.support.networks import random_network
from tests.support.small_data import CLASSES, write_tree
from tests.support.transfer_runs import run as transfer

ARCH, IMAGES = "shufflenet_v2_x1_0", 60
ASSUMED = IMAGENET.of("assumed").to_json()
NONE = PRESETS["none"].of("given").to_json()


def batch(split, count):
    source = open_images("digits", split)
    return next(loader.load_batches(source.subset(range(count)), count))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A state dict of a network for images in [0, 1] whose last layer knows the digits."""
    net = random_network(ARCH)
    head, net.fc = net.fc, torch.nn.Identity()
    x, y = batch("train", 400)
    with torch.no_grad():
        features = net(x).numpy()
    center, scale = features.mean(0), features.std(0) + 1e-6
    found = LogisticRegression(max_iter=300).fit((features - center) / scale, y.numpy())
    weight = found.coef_ / scale
    head.weight.data = torch.tensor(weight).float()
    head.bias.data = torch.tensor(found.intercept_ - weight @ center).float()
    net.fc = head
    path = tmp_path_factory.mktemp("weights") / "plain.pth"
    torch.save(net.state_dict(), path)
    return path


def accuracy(path, statistics, run) -> float:
    """Accuracy of torchvision's network on the images of a run, normalized by hand, percent."""
    net = random_network(ARCH)
    net.load_state_dict(torch.load(path))
    rows = (run / "per_image.jsonl").read_text().splitlines()
    indices = [json.loads(row)["index"] for row in rows]
    x, y = (part[indices] for part in batch("test", 360))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (statistics.mean, statistics.std))
    with torch.no_grad():
        return 100 * (net((x - mean) / std).argmax(1) == y).double().mean().item()


def robustness(weights, output, *options) -> dict:
    words = ["--weights", str(weights), "--device", "cpu", "--steps", "1", "--eps", "0.1"]
    words += ["--images", str(IMAGES)] if "--dataset" not in options else []
    if "--dataset" not in options:
        words += ["--dataset", "digits"]
    robustness_eval.main([*words, "--output", str(output), *options])
    return json.loads((output / "result.json").read_text())


def refused(function, *args) -> None:
    with pytest.raises(SystemExit) as stop:
        function(*args)
    assert stop.value.code == 2


def test_stated_statistics_give_the_networks_own_accuracy(plain, tmp_path, capsys):
    assumed = robustness(plain, tmp_path / "assumed")
    out, err = capsys.readouterr()
    assert f"warning: mean and std are not stated in {plain}: ImageNet's are assumed. Give" in err
    assert assumed["settings"]["statistics"] == ASSUMED
    assert assumed["metrics"]["clean_top1"] == pytest.approx(
        accuracy(plain, IMAGENET, tmp_path / "assumed")
    )

    given = robustness(plain, tmp_path / "given", "--statistics", "none")
    assert f"not stated in {plain}: mean 0 0 0, std 1 1 1 (given" in capsys.readouterr().out
    assert given["settings"]["statistics"] == NONE
    own = accuracy(plain, PRESETS["none"], tmp_path / "given")
    assert given["metrics"]["clean_top1"] == pytest.approx(own) and own > 50  # chance: 10
    assert "accuracy_at_chance" not in {w["check"] for w in given["warnings"]}

    # A converted file states them, and contradictions are errors.
    file = tmp_path / "stated.safetensors"
    convert.main([str(plain), str(file), "--to", "safetensors", "--statistics", "none"])
    stated = robustness(file, tmp_path / "stated")
    assert stated["settings"]["statistics"] == NONE | {"source": "file"}
    assert stated["metrics"]["clean_top1"] == pytest.approx(own)
    capsys.readouterr()
    refused(robustness, file, tmp_path / "x", "--statistics", "imagenet")
    assert "the file states mean 0 0 0, std 1 1 1, but the options state" in capsys.readouterr().err


def test_chance_is_named_with_its_causes_and_not_with_gradients(tmp_path, capsys):
    net = random_network(ARCH)
    net.fc.weight.data.zero_()  # always the same class, and no gradient
    torch.save(net.state_dict(), tmp_path / "constant.pth")
    result = robustness(tmp_path / "constant.pth", tmp_path / "run")
    (warning,) = result["warnings"]
    assert warning["check"] == "accuracy_at_chance"
    causes = (
        r"input statistics \(mean 0.485 .*, assumed.*order of the classes \(the weights have no "
        r"class names.*size \(32 pixels here, unknown in training\) or the range"
    )
    assert re.search(causes, warning["message"])
    assert "gradient" not in warning["message"]


@pytest.mark.parametrize("to", ["robustness", "safetensors", "detectron2"])
def test_a_conversion_does_not_turn_an_assumption_into_a_statement(to, tmp_path, resnet18_file):
    first = tmp_path / ("a.safetensors" if to == "safetensors" else "a.pth")
    convert.main([str(resnet18_file), str(first), "--to", to])
    assert read_checkpoint(first).statistics.source == "assumed"
    second = first.with_name(f"b{first.suffix}")
    convert.main([str(first), str(second), "--to", to, "--statistics", "half"])
    assert read_checkpoint(second).statistics == PRESETS["half"].of("file")


def test_torchvisions_format_says_what_it_loses(tmp_path, resnet18_file, capsys):
    target = tmp_path / "t.pth"
    words = [str(resnet18_file), str(target), "--to", "torchvision"]
    convert.main([*words, "--mean", "0.4", "0.5", "0.6", "--std", "0.2", "0.2", "0.2"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith("Pass --mean 0.4 0.5 0.6 --std 0.2 0.2 0.2 where you load it.")
    assert f"mean and std, class names and training settings are not in {target}" in line
    assert read_checkpoint(target).statistics == IMAGENET.of("assumed")


TRANSFERS = [
    ((), "weights", ASSUMED),
    (("--statistics", "none"), "weights", NONE),
    (("--normalization", "target"), "target", NONE | {"source": "dataset"}),
]


@pytest.mark.parametrize(("options", "normalization", "used"), TRANSFERS)
def test_transfer(plain, tmp_path, capsys, options, normalization, used):
    result = transfer(plain, tmp_path / "run", "--penalty", "1", *options)
    assert result["settings"]["normalization"] == normalization
    assert result["settings"]["statistics"] == used
    assumed = "ImageNet's are assumed" in capsys.readouterr().err
    assert assumed == (used["source"] == "assumed")


def test_interpret(plain, tmp_path, capsys):
    stated = tmp_path / "stated.safetensors"
    convert.main([str(plain), str(stated), "--to", "safetensors", "--statistics", "none"])
    words = ["--weights", str(plain), str(stated), "--mode", "visualize", "--classes", "0"]
    words += ["--image-size", "32", "--steps", "1", "--device", "cpu"]
    interpret.main([*words, "--output", str(tmp_path / "run")])
    settings = json.loads((tmp_path / "run/result.json").read_text())["settings"]
    assert settings["statistics"] == {"plain": ASSUMED, "stated": NONE | {"source": "file"}}
    assert capsys.readouterr().err.count("ImageNet's are assumed") == 1
    refused(interpret.main, [*words, "--statistics", "half", "--output", str(tmp_path / "x")])


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("data") / "animals")


CLASS_NAMES = [
    (CLASSES, None),
    (None, None),
    (("cow", "bee", "ant"), "class 0 is 'cow', but 'ant' in folder. The names are the same in"),
    (("ant", "bee", "pig"), "class 2 is 'pig', but 'cow' in folder. Choose the data"),
    (("ant", "bee"), "class 2 is 'missing', but 'cow' in folder"),
]


@pytest.mark.parametrize(("names", "message"), CLASS_NAMES)
def test_class_names_are_compared(animals, tmp_path, capsys, names, message):
    metadata = {"class_names": list(names), "image_size": 64} if names else {}
    weights = tmp_path / "w.pt"
    save_classifier(weights, Classifier.build(ARCH, 3).state_dict(), metadata)
    options = ["--dataset", "folder", "--data", str(animals), "--image-size", "32"]
    if message:
        refused(robustness, weights, tmp_path / "run", *options)
        assert message in capsys.readouterr().err
        return
    result = robustness(weights, tmp_path / "run", *options)
    assert result["settings"]["classes_compared_by"] == ("names" if names else "number")
    sizes = [w["message"] for w in result["warnings"] if w["check"] == "image_size"]
    assert len(sizes) == (names is not None)
    assert ("was trained with 64 x 64" in capsys.readouterr().err) == (names is not None)
