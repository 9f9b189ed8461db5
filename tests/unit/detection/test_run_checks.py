"""Checks of a run's devices. test_config.py has those of its datasets and settings."""

import pytest
import torch

from robust_backbones.core.errors import UserError
from robust_backbones.detection import config, run_checks
from tests.support.detector_runs import DIGITS


def test_gpus_that_are_not_there(monkeypatch):
    cfg = config.load_config(DIGITS)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert run_checks.set_device(cfg, 1) == "No GPU found: running on the CPU."
    assert cfg.MODEL.DEVICE == "cpu"
    with pytest.raises(UserError, match="--num-gpus 2: this machine has no GPUs. Omit"):
        run_checks.set_device(cfg, 2)
