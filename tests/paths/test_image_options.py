"""Commands on 16-bit images with an EXIF orientation: refused, scaled, turned, and recorded."""

import json

import numpy as np
import pytest
from PIL import Image

from classification.datasets import __main__ as datasets
from classification.interpret import __main__ as interpret
from classification.pretrain import __main__ as pretrain
from classification.robustness_eval import __main__ as robustness_eval
from classification.transfer import __main__ as transfer
from robust_backbones.commands import check_data
from tests.support.image_files import exif
from tests.support.transfer_runs import write_network

RANGE = ["--image-range", "0", "4095"]
MESSAGE = "has 16 bits per channel, with values from 0 to 4095. Only 8 bits are read unchanged. "


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two classes of 12-bit ramps in 16-bit files, which EXIF turns."""
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                ramp = np.linspace(0, 4095, 32 * 32).reshape(32, 32)
                pixels = np.roll(ramp, i + 9 * (split == "test"), label).astype(np.uint16)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png", exif=exif(6))
    return root


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network") / "net.pt", classes=2)


COMMANDS = {
    "transfer": (transfer, ["--probe", "knn", "--neighbors", "1"]),
    "paper": (
        transfer,
        ["--protocol", "paper", "--trials", "1", "--epochs", "1", "--batch-size", "4", "--lr", "1"],
    ),
    "robustness": (robustness_eval, ["--eps", "0.5", "--steps", "1"]),
    "interpret": (interpret, ["--mode", "invert", "--images", "1", "--steps", "1"]),
    "pretrain": (
        pretrain,
        ["--arch", "resnet18", "--method", "standard", "--epochs", "1", "--batch-size", "4"],
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_are_needed_and_recorded(data, network, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    command, options = COMMANDS[name]
    words = ["--dataset", "folder", "--data", str(data), "--image-size", "32", *options]
    words += ["--output", str(tmp_path / "run"), "--device", "cpu"]
    words += [] if name == "pretrain" else ["--weights", str(network)]
    with pytest.raises(SystemExit) as stopped:
        command.main(words)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert MESSAGE in error and "--image-range MIN MAX" in error
    command.main([*words, *RANGE])
    settings = json.loads((tmp_path / "run" / "result.json").read_text())["settings"]
    assert settings["image_range"] == [0, 4095]
    assert settings["orientation"] == ("ignored" if name == "paper" else "applied")
    command.main([*words, *RANGE])
    assert "finished" in capsys.readouterr().out


def test_both_checks_report_the_same_kinds_and_words(data, tmp_path, capsys):
    annotations = {
        "images": [{"id": 1, "file_name": "0.png", "width": 32, "height": 32}],
        "categories": [{"id": 1, "name": "c"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [1, 1, 9, 9],
                "area": 81,
                "iscrowd": 0,
            }
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    detection = [f"d=coco:{data / 'train' / 'cat'}:{tmp_path / 'a.json'}"]
    classification = ["check", "folder", "--data", str(data)]
    deep = "have more than 8 bits per channel; set the range of their values"
    scaled = "have more than 8 bits per channel, and are scaled to 8 bits"
    turned = "are rotated or mirrored as their EXIF orientation specifies"
    assert check_data.main(detection) == 1
    printed = capsys.readouterr().out
    assert f"error: deep, 1: images {deep}" in printed and f"turned, 1: images {turned}" in printed
    assert check_data.main([*detection, *RANGE]) == 0
    assert f"note: scaled, 1: images {scaled}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        datasets.main(classification)
    printed = capsys.readouterr().out
    assert f"12 {deep}" in printed and f"12 {turned}" in printed
    datasets.main([*classification, *RANGE])
    assert f"12 {scaled}" in capsys.readouterr().out


@pytest.mark.parametrize("values", [["5", "5"], ["nan", "1"], ["9", "0"], ["a", "1"]])
def test_invalid_ranges(values, capsys):
    with pytest.raises(SystemExit) as stopped:
        check_data.main(["voc_2007_train", "--image-range", *values])
    assert stopped.value.code == 2 and "--image-range" in capsys.readouterr().err
