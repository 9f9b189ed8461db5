"""AP under attack: radii as typed, doubts, and the whole path of the command."""

import json

import pytest
import torch
from PIL import Image

from tests.support.small_detectors import DIGITS, overrides, tiny_config, tiny_file

# isort: split
from detectron2.structures import Boxes, Instances

from robust_backbones.commands import attack
from robust_backbones.core.files import sha256
from robust_backbones.detection.robustness import attack_report, attacked_models


def row(ap, before=1.0, after=2.0):
    return {"bbox": {"AP": ap}, "loss_clean": before, "loss_attacked": after}


DOUBTS = [
    ({"eps 1/255": row(10.0)}, []),
    ({"eps 1/255": row(10.0, after=None)}, []),  # beyond float32
    ({"eps 1/255": row(None)}, []),
    ({"eps 1/255": row(10.0, after=1.0)}, ["loss_did_not_rise"]),
    (
        {"eps 1/255": row(31.0), "eps 2/255": row(5.0, after=0.5)},
        ["ap_above_clean", "loss_did_not_rise"],
    ),
]


@pytest.mark.parametrize(("attacked", "checks"), DOUBTS, ids=range(len(DOUBTS)))
def test_doubts(attacked, checks):
    found = attack_report.warnings({"clean": {"bbox": {"AP": 30.0}}, **attacked})
    assert [warning["check"] for warning in found] == checks
    assert all("eps" in warning["message"] for warning in found)


def instances(size, boxes, classes, scores=None):
    """Objects, or predictions where there are scores."""
    found = Instances(size)
    kind = "gt" if scores is None else "pred"
    found.set(f"{kind}_boxes", Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4)))
    found.set(f"{kind}_classes", torch.tensor(classes, dtype=torch.int64))
    if scores is not None:
        found.scores = torch.tensor(scores, dtype=torch.float32)
    return found


A, B, NEAR_A = [0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 7.5]  # IoU of A and NEAR_A: 0.75
IMAGE_APS = [  # objects (boxes, classes), predictions (boxes, classes, scores), AP
    (([A, B], [0, 1]), ([A, B], [0, 1], [0.9, 0.8]), 1.0),
    (([A, B], [0, 1]), ([A], [0], [0.9]), 0.5),
    (([A, B], [0, 1]), ([], [], []), 0.0),
    (([A], [0]), ([A], [1], [0.9]), 0.0),  # another class
    (([A], [0]), ([B, A], [0, 0], [0.9, 0.8]), 0.5),  # a false detection first
    (([A], [0]), ([B, A], [0, 0], [0.8, 0.9]), 1.0),  # or after it
    (([A], [0]), ([A, A], [0, 0], [0.9, 0.8]), 1.0),  # found once
    (([A], [0]), ([NEAR_A], [0], [0.9]), 0.6),  # at 0.5, 0.55, ..., 0.75
    (([], []), ([A, B], [0, 1], [0.9, 0.8]), -1.7),
]


@pytest.mark.parametrize(("objects", "predictions", "ap"), IMAGE_APS)
@pytest.mark.parametrize("scale", [1, 2])
def test_the_ap_of_an_image(objects, predictions, ap, scale):
    boxes, classes, scores = predictions
    boxes = [[scale * v for v in box] for box in boxes]
    found = instances((40 * scale, 40 * scale), boxes, classes, scores)
    assert attacked_models.image_ap(found, instances((40, 40), *objects)) == pytest.approx(ap)


@pytest.mark.parametrize(
    ("losses", "restarts", "words"),
    [
        (("all",), 1, "PGD-10 on one loss (all), with one random start"),
        (
            ("mask",),
            2,
            "PGD-10 on one loss (mask), with 2 random starts each; the strongest attack on "
            "each image counts",
        ),
        (
            ("all", "mask"),
            1,
            "PGD-10 on the losses all, mask, with one random start each; the strongest attack "
            "on each image counts",
        ),
    ],
)
def test_the_attack_in_words(losses, restarts, words):
    attack = attack_report.AttackSettings("linf", 10, losses, restarts)
    assert attack.describe() == words


def test_the_strongest_of_several_attacks_counts(tmp_path, weights, monkeypatch):
    """Per image, the try that leaves the lowest AP; here made up, by loss and image."""
    aps = iter([0.5, 0.2, 0.1, 0.9, 0.2, 0.3])  # all: two starts, classification: two, mask: two
    monkeypatch.setattr(attacked_models, "image_ap", lambda found, truth: next(aps))
    result = command(
        tmp_path,
        weights,
        "--images",
        "1",
        "--eps",
        "4/255",
        "--pictures",
        "0",
        "--loss",
        "all",
        "classification",
        "mask",
        "--restarts",
        "2",
    )
    row = result["metrics"]["attacks"]["eps 4/255"]
    assert row["strongest"] == {"classification": 1}
    assert (row["losses"], row["restarts"]) == (["all", "classification", "mask"], 2)
    assert next(aps, None) is None


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_file(tmp_path_factory.mktemp("weights") / "detector.pth", tiny_config())


def command(folder, weights, *options, **more) -> dict:
    pairs = overrides(**{"MODEL.WEIGHTS": str(weights), "INPUT.MIN_SIZE_TEST": "64"} | more)
    attack.main(
        [
            "--config",
            str(DIGITS),
            "--output",
            str(folder),
            "--images",
            "3",
            "--steps",
            "2",
            *options,
            *pairs,
        ]
    )
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_the_whole_path_and_further_radii(tmp_path, weights, capsys):
    small = {"MODEL.BACKBONE.FREEZE_AT": "0"}
    result = command(tmp_path, weights, "--pictures", "1", "--eps", "8/255", "2/255", **small)
    assert result["kind"] == "detection-robustness"
    assert result["weights_sha256"] == sha256(weights)
    assert result["settings"]["eps"] == [2 / 255, 8 / 255]
    assert result["data"]["digit_scenes_val"]["images"] == 3
    rows = result["metrics"]["attacks"]
    assert list(rows) == ["clean", "eps 2/255", "eps 8/255"]
    for eps, found in zip((2 / 255, 8 / 255), list(rows.values())[1:], strict=True):
        assert {"AP", "AP50"} <= found["bbox"].keys() & found["segm"].keys()
        assert found["max_norm"] == pytest.approx(eps, rel=1e-4)
        assert found["mean_norm"] <= found["max_norm"]
        assert found["step_size"] == pytest.approx(2.5 * eps / 2)
        assert found["loss_attacked"] > found["loss_clean"]
    assert rows["eps 8/255"]["loss_attacked"] > rows["eps 2/255"]["loss_attacked"]
    with Image.open(tmp_path / "curve.png") as curve:
        assert curve.format == "PNG"
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert len(pictures) == 2 and pictures[0].endswith("_eps_2_255.png")
    with Image.open(tmp_path / "pictures" / pictures[0]) as picture:
        assert picture.size == (640, 320)  # 96 pixels, enlarged, twice

    again = command(tmp_path, weights, "--pictures", "1", "--eps", "2/255", "16/255", **small)
    shown = capsys.readouterr().out
    assert "2 of 3 conditions are measured already" in shown
    assert list(again["metrics"]["attacks"]) == ["clean", "eps 2/255", "eps 16/255"]
    assert again["metrics"]["attacks"]["eps 2/255"] == rows["eps 2/255"]
    with pytest.raises(SystemExit):
        command(tmp_path, weights, "--steps", "3", **small)
    assert "with different settings: steps is 2 there, 3 here" in capsys.readouterr().err


def test_equal_seeds_give_equal_figures_on_any_machine_state(tmp_path, weights):
    found = []
    for i, seed in enumerate((0, 0, 1)):
        torch.manual_seed(i)
        pairs = ("--images", "1", "--constraint", "l2", "--eps", "2", "--pictures", "0")
        result = command(tmp_path / str(i), weights, *pairs, "--seed", str(seed))
        found.append({**result["metrics"]["attacks"]["eps 2"], "seconds": 0})
    assert found[0] == found[1] != found[2]
    assert not (tmp_path / "0" / "pictures").exists()


MISTAKES = [
    (["--eps", "4"], "--eps 4: a linf radius must be below 1"),
    (["--eps", "two"], "'two' is not a finite number above 0"),
    (["--step-size", "0"], "'0' is not a finite number above 0"),
    (["--steps", "0"], "'0' is not a whole number of at least 1"),
    (["--loss", "boxes"], "invalid choice: 'boxes'"),
    (["--restarts", "0"], "'0' is not a whole number of at least 1"),
    (["--num-gpus", "99"], "--num-gpus 99: this machine has"),
    (["--images", "1000"], "--images is 1000, but 'digit_scenes_val' has 200"),
    (["MODEL.WEIGHTS", "none.pth"], "'none.pth' does not exist"),
    (["MODEL.WEIGHT", "x"], "MODEL.WEIGHT"),
    (["MODEL.WEIGHTS"], "'MODEL.WEIGHTS' has no value"),
    (["--loss", "mask", "MODEL.MASK_ON", "False"], "the detector has no mask loss"),
    (["--dataset", "digit_scenes_voc_val"], "'digit_scenes_voc_val' has no masks, which the"),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES, ids=[m[:30] for _, m in MISTAKES])
def test_errors_are_one_line_and_exit_with_2(tmp_path, weights, capfd, args, message):
    pairs = overrides(**{"MODEL.WEIGHTS": str(weights)})
    given = ["--config", str(DIGITS), "--images", "1", "--output", str(tmp_path / "run"), *pairs]
    with pytest.raises(SystemExit) as stop:
        attack.main([*given, *args])
    assert stop.value.code == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "run" / "result.json").exists()


def test_overrides_may_stand_anywhere():
    text = "--config a.yaml MODEL.WEIGHTS x.pth --eps 2 4 SEED 3 --steps 7"
    args = attack.parse(text.split())
    assert args.eps == [2, 4] and args.steps == 7
    assert args.opts == ["MODEL.WEIGHTS", "x.pth", "SEED", "3"]
