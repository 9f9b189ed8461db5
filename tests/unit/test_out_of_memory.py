"""Running out of GPU memory is one line that names the options which help."""

import contextlib
import logging
import sys

import pytest
import torch

from classification.training import launch
from classification.transfer import run as transfer_run
from robust_backbones.core.errors import UserError, memory_advice, user_errors
from robust_backbones.detection.robustness import grid
from robust_backbones.detection.robustness.grid import Condition, Target
from robust_backbones.detection.training import trainer
from robust_backbones.detection.training.trainer import Trainer
from tests.support.small_detectors import tiny_config
from tests.support.small_models import learning
from tests.support.transfer_runs import run, write_network

# isort: split
from detectron2.engine import DefaultTrainer

REQUEST = "Tried to allocate 20.00 GiB"
MESSAGE = f"CUDA out of memory. {REQUEST}. GPU 0 has a total capacity of 79 GiB."
ONLY_HERE = "out of GPU memory .Tried to allocate 20.00 GiB.[.] "


def fail(*args, **kwargs):
    raise torch.OutOfMemoryError(MESSAGE)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError(MESSAGE), f"error: out of GPU memory ({REQUEST}). Stop other pro"),
        (RuntimeError("CUDA error: out of memory\nmore"), "error: out of GPU memory (CUDA error: "),
    ],
)
def test_any_command_prints_one_line(capsys, error, line):
    with pytest.raises(SystemExit) as stop, user_errors():
        raise error
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith(line) and len(err.splitlines()) == 1
    assert "set CUDA_VISIBLE_DEVICES= to use the CPU." in err


def test_other_errors_remain():
    for context in (user_errors(), memory_advice("Use less.")):
        with pytest.raises(RuntimeError, match="shape"), context:
            raise RuntimeError("shape")


def test_training_of_a_classifier(tmp_path):
    settings = learning(batch_size=512, accumulate=2)
    with pytest.raises(UserError) as error:
        launch.once(tmp_path / "run", {}, settings, torch.device("cpu"), fail, "")
    assert str(error.value).startswith(
        f"--batch-size 512 --accumulate 2: out of GPU memory ({REQUEST}"
    )
    assert "Use a larger --accumulate" in str(error.value)


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        (
            [],
            "Use --precision bfloat16, a smaller --image-size, a single --penalty or --device cpu",
        ),
        (["--penalty", "1"], "Use --precision bfloat16, a smaller --image-size or --device cpu."),
        (
            ["--precision", "bfloat16", "--probe", "knn"],
            "Use a smaller --image-size or --device cpu",
        ),
    ],
)
def test_probes(tmp_path, monkeypatch, capsys, options, fix):
    monkeypatch.setattr(transfer_run.fixed_feature, "run", fail)
    with pytest.raises(SystemExit):
        run(write_network(tmp_path / "net.pt"), tmp_path / "run", *options)
    assert f"({REQUEST}). {fix}" in capsys.readouterr().err


def step(cfg, monkeypatch) -> None:
    made = Trainer(cfg)
    monkeypatch.setattr(made._trainer, "run_step", fail)
    made.iter = 0
    made.run_step()


def evaluation(cfg, monkeypatch) -> None:
    monkeypatch.setattr(DefaultTrainer, "test", fail)
    Trainer.test(cfg, torch.nn.Identity())


def attack(cfg, monkeypatch) -> None:
    monkeypatch.setattr(grid, "load_model", lambda cfg: torch.nn.Identity())
    monkeypatch.setattr(grid.subset, "register", lambda *args: "digits")
    monkeypatch.setattr(grid, "build_evaluator", lambda *args: None)
    monkeypatch.setattr(grid, "measure", fail)
    target = Target(cfg, "", "digits", [])
    grid.measure_all(target, [Condition("clean", fail)], {}, cfg.OUTPUT_DIR, batch_size=8)


SIZE = "a smaller INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST, or MODEL.DEVICE cpu."


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (step, f"SOLVER.IMS_PER_BATCH 4, SOLVER.ACCUMULATE 1: {ONLY_HERE}Use a larger SOLVER"),
        (evaluation, f"^INPUT.MAX_SIZE_TEST 1333: {ONLY_HERE}Use {SIZE}"),
        (
            attack,
            f"^--batch-size 8, INPUT.MAX_SIZE_TEST 1333: {ONLY_HERE}Use a smaller --batch-size",
        ),
    ],
)
def test_detectors(tmp_path, monkeypatch, work, message):
    with pytest.raises(UserError, match=message):
        work(tiny_config(OUTPUT_DIR=str(tmp_path)), monkeypatch)


def test_a_detector_that_cannot_be_built(monkeypatch):
    """The cause is the memory, not the config. Detectron2 logs no traceback."""
    monkeypatch.setattr(DefaultTrainer, "build_model", fail)
    with pytest.raises(torch.OutOfMemoryError):
        Trainer.build_model(tiny_config())
    with contextlib.suppress(torch.OutOfMemoryError):
        try:
            fail()
        finally:
            record = logging.makeLogRecord({"exc_info": sys.exc_info()})
    assert not trainer._no_traceback(record)
