"""Learning rates chosen from runs on held-out training images: the choice, its record, refusals."""

import json
import shutil

import pytest
import yaml

from robust_backbones.commands import train
from robust_backbones.core.errors import UserError
from robust_backbones.detection import launch
from tests.support.custom_data import coco
from tests.support.detector_runs import DIGITS, overrides

RATES = {"low": "0.01", "high": "0.02", "huge": "1e30"}
DIVERGED = "huge"


def start(folder, weights, data, runs=(), resume=False, **more):
    """Run `train` in this process, for two iterations."""
    keys = overrides(folder, weights, **{"SOLVER.MAX_ITER": "2"} | more)
    datasets = {"TRAIN": [data], "TEST": [data.replace("cells", "test")]}
    mode = launch.Mode(resume=resume)
    launch.launch(str(DIGITS), keys, datasets, mode, launch.Processes(), list(map(str, runs)))
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def candidates(tmp_path_factory, resnet18_backbone):
    """Finished runs with other learning rates, one of which diverged, and their data."""
    folder = tmp_path_factory.mktemp("candidates")
    data = f"cells=coco:{folder}:{coco(folder)}"
    for name, rate in RATES.items():
        more = {"SOLVER.BASE_LR": rate, "DATASETS.HELD_OUT": "0.5", "SEED": "3"}
        more |= {"SOLVER.CLIP_GRADIENTS.ENABLED": "False", "SOLVER.WARMUP_ITERS": "0"}
        start(folder / name, resnet18_backbone, data, **more)
    return folder, data


SAME = {"SOLVER.CLIP_GRADIENTS.ENABLED": "False", "SOLVER.WARMUP_ITERS": "0"}


@pytest.fixture
def copies(candidates, tmp_path):
    """Copies of the runs, which a test may change, with AP 40 and 50."""
    folder, data = candidates
    for name, ap in zip(("low", "high"), (40.0, 50.0), strict=True):
        shutil.copytree(folder / name, tmp_path / name)
        change(
            tmp_path / name, lambda r, ap=ap: r["metrics"]["cells_held_out"]["bbox"].update(AP=ap)
        )
    shutil.copytree(folder / DIVERGED, tmp_path / DIVERGED)
    return tmp_path, data


def ap_of(result):
    return result["metrics"]["cells_held_out"]["bbox"]


def change(run, edit):
    path = run / "result.json"
    result = json.loads(path.read_text())
    edit(result)
    path.write_text(json.dumps(result))


def test_a_candidate_is_evaluated_on_held_out_images(candidates):
    folder, _ = candidates
    result = json.loads((folder / "low" / "result.json").read_text())
    assert list(result["metrics"]) == ["cells_held_out"]
    assert {name: part["images"] for name, part in result["data"].items()} == {
        "cells_rest": 1,
        "cells_held_out": 1,
    }
    config = yaml.safe_load((folder / "low" / "config.yaml").read_text())
    assert config["DATASETS"]["TRAIN"] == ["cells"] and not config["DATASETS"]["TEST"]


def test_a_candidate_that_diverges_is_a_result(candidates):
    folder, _ = candidates
    result = json.loads((folder / DIVERGED / "result.json").read_text())
    assert result["metrics"]["cells_held_out"]["bbox"]["AP"] is None
    (warning,) = result["warnings"]
    assert warning["check"] == "diverged" and "training diverged" in warning["message"]


def test_the_best_rate_is_used_and_recorded(copies, resnet18_backbone, capsys):
    folder, data = copies
    runs = [folder / name for name in (DIVERGED, "high", "low")]
    result = start(folder / "final", resnet18_backbone, data, runs, **SAME)
    assert "0.02 has the highest AP on held-out images (0.01: AP 40.0, 0.02: AP 50.0, 1e+30: " in (
        printed := capsys.readouterr().err
    )
    assert "at the end" not in printed  # a larger rate diverged
    solver = result["settings"]["SOLVER"]
    assert solver["BASE_LR"] == 0.02 and list(result["metrics"]) == ["test"]
    assert solver["CANDIDATES"] == {
        "CHOSEN": 0.02,
        "RATES": [0.01, 0.02, 1e30],
        "APS": [40.0, 50.0, None],
        "RUNS": [str(folder / name) for name in RATES],
        "HELD_OUT": 0.5,
    }
    # The choice is kept if the run is resumed without the option, and belongs to this run only.
    config = folder / "final" / "config.yaml"
    (folder / "final" / "result.json").unlink()
    launch.launch(str(config), [], {}, launch.Mode(resume=True), launch.Processes())
    again = json.loads((folder / "final" / "result.json").read_text())
    assert again["settings"] == result["settings"]
    other = ["OUTPUT_DIR", str(folder / "other"), "SOLVER.MAX_ITER", "1"]
    launch.launch(str(config), other, {}, launch.Mode(), launch.Processes())
    other = json.loads((folder / "other" / "result.json").read_text())
    assert other["settings"]["SOLVER"]["CANDIDATES"]["RATES"] == []


def test_a_rate_at_the_end_is_a_warning(copies, resnet18_backbone, capsys):
    folder, data = copies
    runs = [folder / "high", folder / "low"]
    start(folder / "final", resnet18_backbone, data, runs, **SAME)
    assert "WARNING: 0.02 is at the end of these learning rates. A larger one may be better." in (
        capsys.readouterr().err
    )


def unfinished(folder):
    (folder / "low" / "result.json").unlink()


def damaged(folder):
    (folder / "low" / "result.json").write_text("{}")


def same_rate(folder):
    shutil.rmtree(folder / "low")
    shutil.copytree(folder / "high", folder / "low")


def on_test_images(folder):
    path = folder / "low" / "config.yaml"
    path.write_text(path.read_text().replace("HELD_OUT: 0.5", "HELD_OUT: 0.0"))


def other_division(folder):
    path = folder / "low" / "config.yaml"
    path.write_text(path.read_text().replace("HELD_OUT: 0.5", "HELD_OUT: 0.4"))


def other_settings(folder):
    path = folder / "low" / "config.yaml"
    path.write_text(path.read_text().replace("MAX_ITER: 2", "MAX_ITER: 9"))


def other_weights(folder):
    change(folder / "low", lambda result: result.update(weights_sha256="0" * 64))


def other_images(folder):
    change(folder / "low", lambda r: r["data"]["cells_rest"].update(fingerprint="0"))


def all_diverged(folder):
    for name in ("low", "high"):
        change(folder / name, lambda r: ap_of(r).update(AP=None))


REFUSED = {
    unfinished: "low: the run is not finished",
    damaged: "low: not a valid result of a detector",
    shutil.rmtree: "high: the folder does not exist",
    same_rate: "high and .*low have the same SOLVER.BASE_LR, 0.02",
    on_test_images: "low: the run was evaluated on its test images",
    other_division: "DATASETS.HELD_OUT is 0.5, but another candidate has 0.4",
    other_settings: "low: the run has different settings: SOLVER.MAX_ITER is 9 there, 2 here",
    other_weights: "low: the run started from different weights",
    other_images: "low: the run used different training images",
    all_diverged: "no candidate has an AP",
}


@pytest.mark.parametrize("edit", REFUSED, ids=lambda edit: edit.__name__)
def test_what_cannot_be_compared_is_refused(copies, resnet18_backbone, edit):
    folder, data = copies
    edit(folder)
    with pytest.raises(UserError, match=f"--choose-lr.*{REFUSED[edit]}"):
        start(folder / "new", resnet18_backbone, data, [folder / "high", folder / "low"], **SAME)
    assert not (folder / "new").exists()  # nothing was spent


GIVEN = {
    "--choose-lr sets SOLVER.BASE_LR. Remove": {"SOLVER.BASE_LR": "0.1"},
    "--choose-lr: DATASETS.HELD_OUT is 0.2, but this run": {"DATASETS.HELD_OUT": "0.2"},
}


@pytest.mark.parametrize("message", GIVEN)
def test_keys_that_contradict_the_choice_are_refused(copies, resnet18_backbone, message):
    folder, data = copies
    runs = [folder / "high", folder / "low"]
    with pytest.raises(UserError, match=message):
        start(folder / "new", resnet18_backbone, data, runs, **SAME | GIVEN[message])
    with pytest.raises(UserError, match="has one run, .*high. Give at least two"):
        start(folder / "new", resnet18_backbone, data, runs[:1], **SAME)


def test_keys_may_follow_the_runs():
    words = ["--config", "x.yaml", "--choose-lr", "a", "b", "SEED", "1", "--num-gpus", "2"]
    args = train.parse(words)
    assert args.choose_lr == ["a", "b"] and args.opts == ["SEED", "1"] and args.num_gpus == 2
