"""Common corruptions: repeatable, of any image size; mPC and rPC by hand; the command."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robust_backbones import corruptions
from robust_backbones.commands import corrupt
from robust_backbones.core.errors import UserError
from robust_backbones.detection.robustness import corruption_report
from tests.support.small_detectors import (
    DIGITS,
    DatasetCatalog,
    DatasetMapper,
    overrides,
    tiny_config,
    tiny_file,
)

try:
    corruptions.package_version()
    ABSENT = None
except UserError as error:
    ABSENT = str(error)
needs_package = pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))


@pytest.fixture(scope="module")
def photo():
    """`size=(H, W)` -> uint8 RGB."""
    from skimage import data

    whole = Image.fromarray(data.astronaut())
    return lambda size: np.asarray(whole.resize(size[::-1]))


def distance(a, b) -> float:
    return float(np.sqrt(((a.astype(float) - b.astype(float)) ** 2).mean()))


@needs_package
def test_the_kinds_are_those_of_the_benchmark():
    import imagecorruptions

    assert list(corruptions.KINDS) == imagecorruptions.get_corruption_names("common")
    for group, kinds in corruptions.GROUPS.items():
        assert list(kinds) == imagecorruptions.get_corruption_names(group)


@needs_package
@pytest.mark.parametrize("kind", corruptions.KINDS)
def test_a_corruption_is_repeatable_and_leaves_no_trace(photo, kind):
    image = photo((96, 96))
    before = image.copy(), np.random.get_state()[1].tolist()
    first, again, other = (corruptions.corrupt(image, kind, 3, seed) for seed in (7, 7, 8))
    assert first.shape == image.shape and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, image)
    fixed = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert np.array_equal(first, other) == (kind in fixed)
    assert np.array_equal(image, before[0])
    assert np.random.get_state()[1].tolist() == before[1]


@needs_package
def test_frost_is_one_of_the_authors_five_pictures(monkeypatch, photo):
    """The package has a sixth, weaker one."""
    import cv2

    read, used = cv2.imread, []
    monkeypatch.setattr(cv2, "imread", lambda path: used.append(Path(path).stem) or read(path))
    for seed in range(40):
        corruptions.corrupt(photo((40, 40)), "frost", 1, seed)
    assert set(used) == {f"frost{i}" for i in range(1, 6)}


@needs_package
@pytest.mark.parametrize("kind", corruptions.KINDS)
def test_severity_5_is_further_from_the_image_than_1(photo, kind):
    image = photo((128, 160))
    near, far = (corruptions.corrupt(image, kind, severity, 0) for severity in (1, 5))
    assert distance(far, image) > 1.1 * distance(near, image)


@needs_package
@pytest.mark.parametrize("size", [(32, 33), (97, 131), (131, 97)])
@pytest.mark.parametrize("severity", [1, 5])
def test_any_image_size_will_do(photo, size, severity, capsys):
    for kind in corruptions.KINDS:
        assert corruptions.corrupt(photo(size), kind, severity, 0).shape == (*size, 3)
    assert capsys.readouterr().out == ""


@needs_package
@pytest.mark.parametrize(
    ("size", "kind", "severity", "message"),
    [
        ((31, 40), "fog", 1, "an image has 40 x 31 pixels, but corruptions need at least 32 x 32"),
        (
            (40, 40),
            "rain",
            1,
            "corruption 'rain' at severity 1 is unknown. Choose a severity from 1, 2",
        ),
        ((40, 40), "fog", 6, "corruption 'fog' at severity 6 is unknown.* a kind from gaussian"),
    ],
)
def test_what_cannot_be_corrupted(photo, size, kind, severity, message):
    with pytest.raises(UserError, match=message):
        corruptions.corrupt(photo(size), kind, severity, 0)


def test_an_absent_package_is_told_of_before_any_work(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(SystemExit) as stop:
        corrupt.main(["--config", "digits_mask_rcnn_robust.yaml"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Run: pip install numba && pip install --no-deps imagecorruptions-imaug" in error


def test_another_package_of_that_name_is_not_taken(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", object())
    monkeypatch.setattr(corruptions, "PACKAGE", "no-such-distribution")
    with pytest.raises(UserError, match="no-such-distribution is not installed"):
        corruptions.package_version()


CHOICES = [
    (None, list(corruptions.KINDS)),
    (["fog"], ["fog"]),
    (["pixelate", "noise"], ["gaussian_noise", "shot_noise", "impulse_noise", "pixelate"]),
    (["fog", "weather"], ["snow", "frost", "fog", "brightness"]),
]


@pytest.mark.parametrize(("names", "kinds"), CHOICES)
def test_kinds_are_chosen_by_name_or_group(names, kinds):
    assert corruptions.choose(names) == kinds


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_a_clean_image_is_what_detectron2_makes_of_it(channels):
    cfg = tiny_config(**{"INPUT.MIN_SIZE_TEST": "150"})
    cfg.INPUT.FORMAT = channels
    item = DatasetCatalog.get("digit_scenes_val")[3]
    (clean,) = corruption_report.conditions(cfg, [], [], seed=0)
    found, expected = clean.load(3, item), DatasetMapper(cfg, is_train=False)(item)
    assert torch.equal(found.pop("image"), expected.pop("image"))
    assert found == expected


@needs_package
def test_the_files_image_is_corrupted_and_then_resized():
    cfg = tiny_config(**{"INPUT.MIN_SIZE_TEST": "192"})
    item = DatasetCatalog.get("digit_scenes_val")[3]
    (_, pixelate) = corruption_report.conditions(cfg, ["pixelate"], [5], seed=0)
    pixels = np.asarray(Image.open(item["file_name"]).convert("RGB"))
    small = Image.fromarray(corruptions.corrupt(pixels, "pixelate", 5, 0))
    expected = np.asarray(small.resize((192, 192), Image.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(pixelate.load(3, item)["image"].numpy(), expected)


@needs_package
def test_noise_differs_by_image_kind_severity_and_seed():
    cfg, item = tiny_config(), DatasetCatalog.get("digit_scenes_val")[3]
    clean = corruption_report.conditions(cfg, [], [], 0)[0].load(3, item)["image"].float()
    noises = [
        (
            corruption_report.conditions(cfg, ["gaussian_noise"], [severity], seed)[1].load(
                number, item
            )
        )["image"].float()
        - clean
        for number, severity, seed in [(3, 1, 0), (3, 1, 0), (4, 1, 0), (3, 2, 0), (3, 1, 1)]
    ]
    first, again, *others = [noise.flatten() / noise.norm() for noise in noises]
    assert torch.equal(first, again)
    assert all(abs(first @ other) < 0.1 for other in others)  # unrelated, not scaled


def rows(clean, cells):
    """`cells`: `{(kind, severity): (AP, AP50)}`."""
    found = {"clean": {"bbox": {"AP": clean[0], "AP50": clean[1]}}}
    for (kind, severity), (ap, ap50) in cells.items():
        row = {"corruption": kind, "severity": severity, "bbox": {"AP": ap, "AP50": ap50}}
        found[f"{kind} {severity}"] = row
    return found


def test_mpc_is_a_mean_of_means_and_rpc_its_share():
    """By hand; kinds count alike even where one has fewer severities."""
    cells = {("fog", 1): (40.0, 60.0), ("fog", 5): (20.0, 30.0), ("snow", 1): (10.0, 15.0)}
    found = corruption_report.summary(rows((50.0, 75.0), cells))
    assert found["by_corruption"] == {
        "fog": {"bbox": {"AP": 30.0, "AP50": 45.0}},
        "snow": {"bbox": {"AP": 10.0, "AP50": 15.0}},
    }
    assert found["mPC"] == {"bbox": {"AP": 20.0, "AP50": 30.0}}
    assert found["rPC"] == {"bbox": {"AP": 40.0, "AP50": 40.0}}
    assert found["complete"] is False


def test_what_has_no_value_stays_without():
    found = corruption_report.summary(rows((0.0, None), {("fog", 1): (0.0, None)}))
    assert found["mPC"] == {"bbox": {"AP": 0.0, "AP50": None}}
    assert found["rPC"] == {"bbox": {"AP": None, "AP50": None}}


def test_complete_is_all_15_kinds_at_5_severities():
    cells = {(k, s): (10.0, 20.0) for k in corruptions.KINDS for s in corruptions.SEVERITIES}
    found = corruption_report.summary(rows((20.0, 40.0), cells))
    assert found["complete"] is True
    last = corruption_report.table(found).splitlines()[-1]
    assert last.startswith("rPC, % of clean") and last.endswith(" 50.0")
    cells.popitem()
    assert corruption_report.summary(rows((20.0, 40.0), cells))["complete"] is False


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_file(tmp_path_factory.mktemp("weights") / "detector.pth", tiny_config())


@needs_package
def test_the_whole_path_and_further_kinds(tmp_path, weights, capsys):
    given = [
        "--config",
        str(DIGITS),
        "--output",
        str(tmp_path),
        "--images",
        "3",
        *overrides(**{"MODEL.WEIGHTS": str(weights)}),
    ]
    corrupt.main([*given, "--corruptions", "fog", "contrast", "--severities", "5", "1"])
    result = json.loads((tmp_path / "result.json").read_text())
    metrics = result["metrics"]
    assert result["kind"] == "detection-corruptions"
    assert result["settings"]["corruptions"] == ["fog", "contrast"]
    assert result["settings"]["severities"] == [1, 5]
    assert result["settings"]["package"].startswith("imagecorruptions-imaug ")
    names = ["clean", "fog 1", "fog 5", "contrast 1", "contrast 5"]
    assert list(metrics["corruptions"]) == names
    assert set(metrics["mPC"]) == set(metrics["rPC"]) == {"bbox", "segm"}
    mean = np.mean([metrics["corruptions"][name]["bbox"]["AP"] for name in names[1:]])
    assert metrics["mPC"]["bbox"]["AP"] == pytest.approx(mean)
    with open(tmp_path / "table.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["corruption"], line["severity"]) for line in lines] == [
        ("clean", "0"),
        ("fog", "1"),
        ("fog", "5"),
        ("contrast", "1"),
        ("contrast", "5"),
    ]
    for line, row in zip(lines, metrics["corruptions"].values(), strict=True):
        assert float(line["box AP"]) == pytest.approx(row["bbox"]["AP"], abs=1e-4)
        assert float(line["mask AP50"]) == pytest.approx(row["segm"]["AP50"], abs=1e-4)
        assert line["box APl"] == ""  # no large digit
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.format == "PNG"
    assert "Do not compare them" in capsys.readouterr().out

    corrupt.main([*given, "--corruptions", "fog", "pixelate", "--severities", "1"])
    assert "2 of 3 conditions are measured already" in capsys.readouterr().out
    again = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert again["corruptions"]["fog 1"] == metrics["corruptions"]["fog 1"]
    with pytest.raises(SystemExit):
        corrupt.main([*given, "--seed", "1"])
    assert "seed is 0 there, 1 here" in capsys.readouterr().err


@needs_package
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--corruptions", "rain"], "corruption 'rain' is unknown. Choose from the groups noise"),
        (["--severities", "6"], "invalid choice: 6"),
        (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty. Give the checkpoint of a trained"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(tmp_path, weights, capfd, args, message):
    pairs = overrides(**{"MODEL.WEIGHTS": str(weights)})
    with pytest.raises(SystemExit) as stop:
        corrupt.main(["--config", str(DIGITS), "--output", str(tmp_path), *pairs, *args])
    assert stop.value.code == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1 and message in lines[0]
