"""Test networks that have shapes but no values."""

import torch

from robust_backbones.meta_device import meta_device


def test_only_tensors_on_the_meta_device_are_not_initialized():
    with meta_device():
        layer = torch.nn.Linear(3, 2)
        real = torch.empty(4, device="cpu").fill_(2.0).mul_(3)
    assert layer.weight.is_meta and layer.weight.shape == (2, 3) and layer.weight.requires_grad
    assert real.tolist() == [6.0] * 4
    assert not torch.nn.Linear(3, 2).weight.is_meta
