"""Every command computes in float32 without TF32. Only training steps and features may use it."""

import json
from types import SimpleNamespace

import pytest
import torch

from classification.interpret import __main__ as interpret
from classification.interpret import run as interpret_run
from classification.pretrain import __main__ as pretrain
from classification.pretrain import run as pretrain_run
from classification.robustness_eval import __main__ as robustness_eval
from classification.robustness_eval import run as robustness_run
from classification.training import launch
from classification.training.learner import Learner
from classification.transfer import __main__ as transfer
from classification.transfer import features
from classification.transfer import run as transfer_run
from robust_backbones import arithmetic
from robust_backbones.commands import conversion
from robust_backbones.commands.check import devices
from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import IMAGENET
from robust_backbones.detection.inspect import page
from robust_backbones.detection.robustness import attack_evaluation, corruption_evaluation, grid
from robust_backbones.detection.training import run as detector_run
from robust_backbones.detection.training.run import Mode
from tests.support.detector_runs import small
from tests.support.pretrain_runs import FEW
from tests.support.small_models import blobs, convolutional, learning
from tests.support.tf32 import flags, reset
from tests.support.transfer_runs import TINY, write_network


class Reached(Exception):
    """The work of a command was about to start."""


@pytest.fixture(autouse=True)
def _reset():
    yield
    reset()


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return str(write_network(tmp_path_factory.mktemp("network") / "a.pt", "shufflenet_v2_x1_0", 10))


DIGITS = ("--dataset", "digits", "--device", "cpu")
WEIGHTS = ("--weights", "NETWORK", *DIGITS)
# Entry of a command -> its arguments, and the function that does its work.
CLASSIFIERS = {
    "pretrain": (pretrain.main, FEW, pretrain_run, "_train"),
    "pretrain bfloat16": (pretrain.main, [*FEW, "--precision", "bfloat16"], pretrain_run, "_train"),
    "transfer": (transfer.main, ("--weights", "NETWORK", *TINY), transfer_run, "_work"),
    "robustness_eval": (robustness_eval.main, WEIGHTS, robustness_run, "_attack"),
    "interpret": (interpret.main, WEIGHTS, interpret_run, "_optimize"),
}

ATTACK = dict.fromkeys(
    ("dataset", "constraint", "radii", "steps", "step_size", "losses", "restarts", "images")
    + ("pictures", "batch_size", "seed")
)
CORRUPTIONS = dict.fromkeys(("dataset", "kinds", "images", "batch_size", "seed")) | {
    "severities": [1]
}
OTHERS = {
    "train": (
        lambda: detector_run.run(small(".", ""), Mode(eval_only=True)),
        detector_run,
        "_setup",
    ),
    "attack": (lambda: attack_evaluation.evaluate("", [], None, **ATTACK), grid, "find_target"),
    "corrupt": (
        lambda: corruption_evaluation.evaluate("", [], None, **CORRUPTIONS),
        grid,
        "find_target",
    ),
    "visualize": (lambda: page.draw_images(SimpleNamespace()), page, "_columns"),
}


def stopped_at(monkeypatch, module, name, start) -> tuple[bool, bool]:
    """Start a command with TF32, and return the TF32 flags when it calls the function."""
    seen = []

    def work(*args, **kwargs):
        seen.append(flags())
        raise Reached

    monkeypatch.setattr(module, name, work)
    arithmetic.set_tf32(True)
    with pytest.raises(Reached):
        start()
    return seen[0]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_commands_turn_tf32_off(name, network, tmp_path, monkeypatch):
    entry, options, module, work = CLASSIFIERS[name]
    words = [network if word == "NETWORK" else word for word in options]
    start = lambda: entry([*words, "--output", str(tmp_path / "run")])  # noqa: E731
    assert stopped_at(monkeypatch, module, work, start) == (False, False)


@pytest.mark.parametrize("name", OTHERS)
def test_detector_commands_turn_tf32_off(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(corruption_evaluation.corruptions, "package_version", lambda: "1")
    start, module, work = OTHERS[name]
    assert stopped_at(monkeypatch, module, work, start) == (False, False)


def test_convert_and_check_turn_tf32_off(monkeypatch):
    source = SimpleNamespace(
        arch="resnet18", layout="torchvision", sha256="", tensors={}, statistics=IMAGENET
    )
    monkeypatch.setitem(conversion.TARGETS, "x", SimpleNamespace(contents=lambda source: {}))
    convert = lambda: conversion.convert(source, "", "", "x", check=True)  # noqa: E731
    assert stopped_at(monkeypatch, conversion, "_verify", convert) == (False, False)
    arithmetic.set_tf32(True)
    devices.devices(None)
    assert flags() == (False, False)


@pytest.mark.parametrize("command", ["pretrain", "transfer"])
def test_tf32_is_refused_on_a_cpu(command, network, tmp_path, capsys):
    entry, options, *_ = CLASSIFIERS[command]
    words = [network if word == "NETWORK" else word for word in options]
    with pytest.raises(SystemExit) as stop:
        entry([*words, "--precision", "tf32", "--output", str(tmp_path / "run")])
    assert stop.value.code == 2 and not (tmp_path / "run").exists()
    assert "error: --precision tf32: the device cpu has no TF32. Use --precision float32" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_training_step_uses_tf32_in_all_passes_and_nothing_after_it_does(precision):
    arithmetic.set_tf32(False)
    model, seen = convolutional(), set()
    model[0].register_forward_hook(lambda *args: seen.add(flags()))
    model[0].weight.register_hook(lambda gradient: seen.add(flags()))
    learner = Learner(model, learning(precision=precision))
    learner.step(*blobs(8), [0.1], seed=0)
    seen.clear()  # the first step checks the folded network in float32
    learner.step(*blobs(8), [0.1], seed=1)
    assert seen == {(precision == "tf32",) * 2} and flags() == (False, False)


def test_features_use_tf32_in_this_precision_only():
    model = torch.nn.Linear(2, 2)
    model.features = lambda x: seen.append(flags()) or model(x[:, 0, 0, :2])
    seen, x = [], torch.zeros(2, 3, 4, 4)
    arithmetic.set_tf32(False)
    for precision in ("float32", "tf32", "bfloat16"):
        found = features._compute(model, [(x, None)], precision, None, "", lambda *args: None)
        assert found.dtype == "float32" and flags() == (False, False)
    assert seen == [(False, False), (True, True), (False, False)]


@pytest.mark.parametrize(
    ("training", "device", "warned"),
    [
        (learning(), "cuda", True),
        (learning(precision="tf32"), "cuda", False),
        (learning(precision="bfloat16"), "cuda", False),
        (None, "cuda", False),
        (learning(), "cpu", False),
    ],
)
def test_float32_training_on_a_gpu_names_the_faster_precisions(
    training, device, warned, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(launch.results, "hardware", lambda *args: {})  # asks the driver
    launch.once(tmp_path / "run", {}, training, torch.device(device), lambda: None, "")
    expected = f"{launch.FASTER}\n" if warned else ""
    assert capsys.readouterr().err == expected


def test_a_run_with_another_precision_is_another_run(tmp_path):
    """It is neither finished nor resumed. Other hardware does not matter."""
    settings = {"precision": "float32"}
    result = {"settings": settings, "hardware": {"gpus": ["another"], "precision": "float32"}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    once = lambda recorded: launch.once(  # noqa: E731
        tmp_path, recorded, None, torch.device("cpu"), lambda: 1 / 0, ""
    )
    once(settings)
    with pytest.raises(UserError, match="precision is float32 there, bfloat16 here"):
        once({"precision": "bfloat16"})


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        ({}, {"SOLVER.PRECISION": "bfloat16"}, "trains in float32, not in bfloat16. Set SOLVER.P"),
        ({"SOLVER.PRECISION": "float16"}, {}, "trains in float16, not in float32"),
        ({"SOLVER.AMP.ENABLED": "True"}, {"SOLVER.PRECISION": "float16"}, None),
        ({}, {"SOLVER.PRECISION": "float32"}, None),
    ],
)
def test_a_detector_does_not_resume_in_another_precision(tmp_path, before, after, refused):
    (tmp_path / "config.yaml").write_text(small(tmp_path, "", **before).dump())
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    cfg = small(tmp_path, "", **after)
    if refused:
        with pytest.raises(UserError, match=refused):
            detector_run.continued(cfg, True, False)
    else:
        detector_run.continued(cfg, True, False)
