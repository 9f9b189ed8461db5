"""The command on a few digits: results, repeated and skipped runs, errors."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from classification.datasets.open import open_split
from classification.datasets.shard_writer import write_shards
from classification.interpret import __main__ as interpret
from classification.interpret import optimize
from classification.interpret.options import MODES, STARTS, parser, settings_of
from classification.interpret.plan import make_plan
from classification.interpret.report import warnings
from classification.models import load_classifier
from robust_backbones.core.files import sha256
from robust_backbones.weights import short_name
from tests.support.networks import random_network
from tests.support.small_data import write_tree

FEW = [
    "--dataset",
    "digits",
    "--classes",
    "3",
    "0",
    "--units",
    "7",
    "--images",
    "3",
    "--steps",
    "3",
    "--device",
    "cpu",
    "--batch-size",
    "2",
]


def save(path, classes, seed=0):
    network = random_network("shufflenet_v2_x1_0", classes)
    torch.manual_seed(seed)
    torch.nn.init.normal_(network.fc.weight, std=0.1)
    torch.save(network.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Two networks and an evaluation classifier of ten classes."""
    folder = tmp_path_factory.mktemp("weights")
    return [save(folder / f"{name}.pth", 10, seed) for seed, name in enumerate(("a", "b", "third"))]


def run(weights, output, *more):
    interpret.main(
        [
            "--weights",
            *weights[:2],
            *FEW,
            "--eval-weights",
            weights[2],
            "--output",
            str(output),
            *more,
        ]
    )


@pytest.fixture(scope="module")
def done(weights, tmp_path_factory):
    """The folder of a finished run; tests must not change it."""
    output = tmp_path_factory.mktemp("interpret") / "run"
    run(weights, output)
    return output


def read(output):
    return json.loads((output / "result.json").read_text())


def numbers(output):
    return read(output)["metrics"]["networks"]


def read_image(path):
    """Read an image as `(1, 3, H, W)` in [0, 1]."""
    return torch.from_numpy(np.asarray(Image.open(path)) / np.float32(255)).permute(2, 0, 1)[None]


def test_the_result_is_complete(done, weights):
    result = read(done)
    assert result["kind"] == "interpret" and result["weights_sha256"] == sha256(weights[0])
    assert result["settings"]["networks"] == {"a": sha256(weights[0]), "b": sha256(weights[1])}
    assert result["settings"]["eval_network"] == sha256(weights[2])
    assert result["settings"]["step_size"] == pytest.approx(32 / 224)
    assert result["data"]["test"]["images"] == 360 and result["data"]["test"]["fingerprint"]
    for row in numbers(done).values():
        seen, inverted = row["visualization"], row["inversion"]
        kinds = [(p["kind"], p["number"]) for p in seen["images"]]
        assert kinds == [("class", 3), ("class", 0), ("unit", 7)]
        assert all(p["score"] > p["start"] for p in seen["images"])
        assert 0 <= seen["eval_confidence"] <= 100 and 0 <= seen["own_confidence"] <= 100
        assert inverted["representation_distance"] < inverted["start_representation_distance"]
        assert len(inverted["images"]) == 3 and 0 <= inverted["eval_agreement"] <= 100
    files = {".lock", "figure.png", "figure.svg", "image", "networks", "result.json", "start"}
    assert {path.name for path in done.iterdir()} == files
    assert (done / "figure.svg").read_text().count("<image") == 3 * 6 + 3


def test_networks_of_timm(tmp_path, capsys):
    """Both networks have other own sizes than the images. Only the files state their names."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    paths = [str(tmp_path / f"{name}.pth") for name in ("test_convnext", "test_vit")]
    for path in paths:
        name = Path(path).stem
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=10)
        torch.save({"arch": name, "state_dict": network.state_dict()}, path)
    run([*paths, paths[0]], tmp_path / "run", "--eval-weights", save(tmp_path / "e.pth", 10))
    for name, row in numbers(tmp_path / "run").items():
        seen, inverted = row["visualization"], row["inversion"]
        assert all(p["score"] > p["start"] for p in seen["images"]), name
        assert inverted["representation_distance"] < inverted["start_representation_distance"]
        assert len([*(tmp_path / "run" / "networks" / name).iterdir()]) == 6
    settings = read(tmp_path / "run")["settings"]
    assert settings["archs"] == {Path(path).stem: f"timm:{Path(path).stem}" for path in paths}
    assert settings["statistics"]["test_vit"]["source"] == "assumed"
    assert f"mean and std are not stated in {paths[0]}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run([*paths, paths[0]], tmp_path / "other", "--image-size", "20")
    assert "timm:test_convnext does not accept images of this size" in capsys.readouterr().err


def test_the_numbers_describe_the_images(done, weights):
    """The numbers are recomputed from the PNG files, which are rounded to bytes."""
    source, net, evaluation = open_split("digits", "test"), *map(load_classifier, weights[1:])
    row = numbers(done)["b"]
    for found in row["inversion"]["images"]:
        name = f"image_{found['index']}.png"
        target, image = (
            read_image(done / "image" / name),
            read_image(done / "networks" / "b" / name),
        )
        expected = source.images[found["index"]][None]
        torch.testing.assert_close(target, expected, atol=0.5 / 255 + 1e-6, rtol=0)
        distance = ((image - expected).norm() / expected.norm()).item()
        assert found["pixel_distance"] == pytest.approx(distance, rel=0.01)
        features = [optimize.representations(net, x) for x in (image, expected)]
        distance = ((features[0] - features[1]).norm() / features[1].norm()).item()
        assert found["representation_distance"] == pytest.approx(distance, rel=0.05)
        agrees = evaluation(image).argmax() == evaluation(expected).argmax()
        assert found["eval_agrees"] == int(agrees)
    for found in row["visualization"]["images"][:2]:
        image = read_image(done / "networks" / "b" / f"class_{found['number']}.png")
        for name, network in (("own", net), ("eval", evaluation)):
            confidence = 100 * network(image).softmax(1)[0, found["number"]].item()
            assert found[f"{name}_confidence"] == pytest.approx(confidence, rel=0.1)


def test_runs_are_reproducible_and_networks_share_their_starts(done, weights, tmp_path):
    run(weights, tmp_path, "--batch-size", "5")
    rows, again = numbers(done), numbers(tmp_path)
    for name, row in rows.items():
        for part in ("visualization", "inversion"):
            means = {k: v for k, v in row[part].items() if k != "images"}
            found = {k: v for k, v in again[name][part].items() if k != "images"}
            assert found == pytest.approx(means, rel=1e-3, abs=1e-5)
    a, b = (
        [p["start_pixel_distance"] for p in row["inversion"]["images"]] for row in rows.values()
    )
    assert a == b


def test_start_from_images_and_another_seed(done, weights, tmp_path):
    run(weights, tmp_path / "run", "--start", "image", "--seed", "1")
    source = open_split("digits", "test")
    for start in (tmp_path / "run" / "start").iterdir():
        distances = (source.images - read_image(start)).abs().amax((1, 2, 3))
        assert distances.min() < 1 / 255
    targets = {path.name for path in (tmp_path / "run" / "image").iterdir()}
    assert targets != {path.name for path in (done / "image").iterdir()}
    for name in targets:
        one, other = (read_image(tmp_path / "run" / kind / name) for kind in ("start", "image"))
        assert not torch.equal(one, other)


@pytest.mark.parametrize("start", STARTS)
def test_the_modes_do_not_depend_on_each_other(start):
    def plan(*more):
        args = ["--weights", "w", "--dataset", "digits", "--start", start, "--output", "x", *more]
        args = parser("").parse_args(args)
        return make_plan(settings_of(args), open_split("digits", "test"), 10)

    large, few = plan("--images", "9"), plan("--classes", "1", "--images", "2")
    assert large.indices[:2] == few.indices and len(large.targets) == 5
    for name in ("target_starts", "starts", "images"):
        assert len(getattr(few, name)) < len(getattr(large, name))
        assert torch.equal(getattr(large, name)[: len(getattr(few, name))], getattr(few, name))


def test_visualizing_from_noise_needs_no_data(weights, tmp_path, monkeypatch):
    monkeypatch.delenv("ROBUST_BACKBONES_DATA", raising=False)
    # The name "start" must not collide with the row of start images.
    interpret.main(
        [
            "--weights",
            weights[0],
            "--name",
            "start",
            "--mode",
            "visualize",
            "--steps",
            "1",
            "--image-size",
            "40",
            "--device",
            "cpu",
            "--output",
            str(tmp_path),
        ]
    )
    result = read(tmp_path)
    assert result["data"] == {} and result["settings"]["dataset"] is None
    row = result["metrics"]["networks"]["start"]
    assert len(row["visualization"]["images"]) == 5 and "inversion" not in row
    assert Image.open(tmp_path / "networks" / "start" / "class_4.png").size == (40, 40)


def test_a_finished_run_is_skipped_and_a_different_one_rejected(done, weights, capsys):
    before = (done / "result.json").read_bytes()
    run(weights, done)
    assert "finished. Nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        run(weights, done, "--steps", "4")
    assert stop.value.code == 2 and "steps is 3 there, 4 here" in capsys.readouterr().err
    assert (done / "result.json").read_bytes() == before


@pytest.mark.parametrize(
    "more, message",
    [
        (["--units", "2000"], "--units 2000: a has no such unit. Choose from 0 to 1023"),
        (["--classes", "10"], "--classes 10: a has no such class. Choose from 0 to 9"),
        (["--images", "361"], "361 images to invert were requested, but digits has only 360 test"),
        (["--images", "200", "--start", "image"], "200 .* and 200 start images were requested"),
        (["--name", "x"], "--name has 1 names for 2 networks. Give one name per network"),
        (["--name", "x", "x"], "two networks are called 'x'. Give different names"),
        (["--name", "x", "a/b"], "'a/b' is not valid as a folder name"),
        (["--mode", "invert"], "--units does not apply to --mode invert. Remove it"),
        (["--steps", "0"], "'0' is not a whole number of at least 1"),
        (["--eps", "-1"], "'-1' is not a finite number above 0"),
        (["--mode", "dream"], "invalid choice: 'dream'.*visualize.*invert.*both"),
        (["--eval-weights", "nowhere.pt"], "file 'nowhere.pt' does not exist"),
        (
            ["--device", "abacus"],
            "--device abacus: torch cannot use this device. Choose from .*cpu",
        ),
    ],
)
def test_user_mistakes(weights, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stop:
        run(weights, tmp_path / "run", *more)
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, last), last
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "classes, message",
    [
        (7, "third.pth: it has 7 classes, but a has 10. Choose a classifier with the same"),
        (None, "--eval-weights .*: this is the network a itself. Choose"),
    ],
)
def test_evaluation_classifiers_that_do_not_fit(weights, tmp_path, capsys, classes, message):
    evaluation = save(tmp_path / "third.pth", classes) if classes else weights[0]
    with pytest.raises(SystemExit) as stop:
        run([*weights[:2], evaluation], tmp_path / "run")
    assert stop.value.code == 2 and re.search(message, capsys.readouterr().err)


def test_shards_are_rejected_before_anything_is_written(weights, tmp_path, capsys):
    tree = write_tree(tmp_path / "tree", {"train": 2, "test": 2})
    shards = write_shards(tree, tmp_path / "shards", 3)
    with pytest.raises(SystemExit) as stop:
        interpret.main(
            [
                "--weights",
                weights[0],
                "--dataset",
                "folder",
                "--data",
                str(shards),
                "--output",
                str(tmp_path / "run"),
            ]
        )
    assert stop.value.code == 2 and not (tmp_path / "run").exists()
    assert "these are shards, whose images cannot be read by index" in capsys.readouterr().err


@pytest.mark.parametrize(
    "now, start, warned", [(0.2, 1.0, False), (0.6, 1.0, True), (float("nan"), 1.0, True)]
)
def test_unmatched_representations_give_a_warning(now, start, warned):
    row = {"representation_distance": now, "start_representation_distance": start}
    found = warnings({"net": {"inversion": row}, "other": {"visualization": {}}})
    assert [w["check"] for w in found] == ["not_matched"] * warned


@pytest.mark.parametrize(
    "weights, label",
    [
        ("robust://resnet50_l2_eps3", "resnet50_l2_eps3"),
        ("output/pretrain/digits/checkpoint.pt", "digits"),
        ("checkpoint.pt", "checkpoint"),
        ("a/b.safetensors", "b"),
    ],
)
def test_labels(weights, label):
    assert short_name(weights) == label


def test_help_explains_every_option_and_is_fast():
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "classification.interpret", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.perf_counter() - start < 1.5
    text = done.stdout.split("networks and images:\n")[1]
    found = [" ".join(part.split()) for part in re.split(r"\n  --", "\n" + text)[1:]]
    assert len(found) >= 18 and all(re.search("default|required", option) for option in found)
    assert MODES == ("visualize", "invert", "both")
