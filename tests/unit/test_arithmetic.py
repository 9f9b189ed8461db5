"""The flags of TF32, autocast and loss scaling of each precision, and refused precisions."""

import warnings

import pytest
import torch

from robust_backbones import arithmetic
from robust_backbones.core.errors import UserError
from robust_backbones.core.precision import PRECISIONS
from tests.support.tf32 import flags, reset


@pytest.fixture(autouse=True)
def _reset():
    yield
    reset()


@pytest.mark.parametrize("allowed", [False, True])
def test_both_flags_are_set_without_a_warning(allowed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arithmetic.set_tf32(not allowed)
        arithmetic.set_tf32(allowed)
    assert flags() == (allowed, allowed)
    # torch.compile and `cudnn.flags` read the old names. They raise if old and new ones differ.
    assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
    with torch.backends.cudnn.flags(enabled=True):
        pass
    assert flags() == (allowed, allowed)


@pytest.mark.parametrize(
    ("precision", "inside", "dtype", "scaled"),
    [
        ("float32", False, None, False),
        ("tf32", True, None, False),
        ("bfloat16", False, torch.bfloat16, False),
        ("float16", False, torch.float16, True),
    ],
)
def test_precisions(precision, inside, dtype, scaled):
    arithmetic.set_tf32(False)
    with arithmetic.tf32(precision):
        assert flags() == (inside, inside)
    with pytest.raises(KeyError), arithmetic.tf32(precision):
        raise KeyError
    assert flags() == (False, False)
    assert arithmetic.autocast_dtype(precision) is dtype
    assert arithmetic.loss_scaler(precision, "cpu").is_enabled() is scaled


CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("device", "capability", "override", "problem"),
    [
        ("cpu", None, None, "the device cpu has no TF32"),
        (CUDA, (7, 5), None, "a GPU has no TF32, because it is older than NVIDIA's Ampere GPUs"),
        (CUDA, (8, 0), "0", "the environment variable NVIDIA_TF32_OVERRIDE=0 turns TF32 off"),
        (CUDA, (9, 0), "1", None),
        (CUDA, (8, 0), None, None),
    ],
)
def test_tf32_is_refused_where_it_would_do_nothing(
    device, capability, override, problem, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    if override:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", override)
    for precision in PRECISIONS:
        if precision == "tf32" and problem:
            with pytest.raises(UserError) as error:
                arithmetic.check_precision("--precision", precision, torch.device(device))
            assert str(error.value) == f"--precision tf32: {problem}. Use --precision float32."
        else:
            arithmetic.check_precision("--precision", precision, torch.device(device))
