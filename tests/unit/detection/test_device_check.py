"""Detectors in channels_last and with a compiled backbone take the same steps, and are measured."""

import shutil

import pytest
import torch
from torch import nn

from robust_backbones.core.errors import UserError
from robust_backbones.core.measurements import OK, SKIPPED
from robust_backbones.detection import device_check, run_checks
from robust_backbones.detection.training.trainer import Trainer
from tests.support.small_detectors import tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def compiled(monkeypatch) -> list:
    """Arguments of all compilations, which trace the network but generate no code."""
    arguments, plain = [], nn.Module.compile

    def traced(self, **options):
        arguments.append(options)
        plain(self, backend="eager", fullgraph=True, **options)

    monkeypatch.setattr(nn.Module, "compile", traced)
    torch._dynamo.reset()
    yield arguments
    torch._dynamo.reset()


def test_compiled_and_channels_last_steps_have_the_same_loss(compiled, monkeypatch):
    every = {**device_check.SMALL_COMPILED_VARIANTS, "channels_last": (False, device_check.LAST)}
    monkeypatch.setattr(device_check, "SMALL_COMPILED_VARIANTS", every)
    lines = {line.name: line for line in device_check.compiled_detector_step(CPU, False)}
    for name in ("float32, compiled", "channels_last"):
        assert lines[f"{name}: loss of the first step, relative difference"].value < 1e-5
        assert lines[f"batch 1, step, {name}"].value > 0
    assert {line.state for line in lines.values()} == {OK}
    assert compiled == [{"dynamic": True}], "one variant compiles, for images of all sizes"


def test_channels_last_is_off_by_default():
    for keys, expected in ({}, False), ({"SOLVER.CHANNELS_LAST": "True"}, True):
        model = Trainer.build_model(tiny_config(**keys))
        weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
        large = [w for w in weights if w.shape[1] > 1 and w.shape[2] > 1]
        formats = {w.is_contiguous(memory_format=torch.channels_last) for w in large}
        assert formats == {expected}


def test_the_reason_is_said_where_nothing_can_be_compiled(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (line,) = device_check.compiled_detector_step(CPU, False)
    assert (line.state, line.value) == (SKIPPED, "no C++ compiler found")
    with pytest.raises(UserError, match="SOLVER.COMPILE True: .* no C.. compiler found. Use SOLV"):
        run_checks.check_inputs(tiny_config(**{"SOLVER.COMPILE": "True"}), train=True)
