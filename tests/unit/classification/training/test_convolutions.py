"""Convolutions of our own against PyTorch's, in values and gradients."""

import copy

import pytest
import torch
from torch import nn

from classification.training.cpu import convolutions
from classification.training.cpu.convolutions import FastWeightGradients, Packed

# In channels, out channels, kernel, stride, padding, dilation, groups, height, width.
CASES = [
    (8, 16, 3, 1, 1, 1, 1, 8, 8),
    (8, 16, 3, 2, 1, 1, 1, 9, 8),
    (16, 8, 1, 1, 0, 1, 1, 5, 4),
    (16, 8, 1, 2, 0, 1, 1, 6, 7),
    (8, 8, 3, 1, 2, 2, 1, 7, 7),
    (8, 8, 3, 1, 1, 1, 4, 6, 6),
    (16, 16, 3, 1, 1, 1, 1, 1, 1),
    (8, 8, (3, 1), (2, 1), (1, 0), 1, 1, 6, 6),
    # The stem's kind: few channels and a stride.
    (3, 16, 7, 2, 3, 1, 1, 32, 24),
    (3, 16, 7, 2, 3, 1, 1, 33, 24),
    (3, 8, 3, 2, 1, 1, 1, 16, 16),
    (3, 8, 3, 2, 0, 1, 1, 16, 16),
    (1, 8, 5, 3, 1, 1, 1, 12, 15),
    (3, 8, 2, 2, 0, 1, 1, 8, 8),
    (1, 8, 4, 4, 0, 1, 1, 14 * 4, 8),
    (3, 8, 1, 2, 0, 1, 1, 8, 8),
]


def case(row, bias=True):
    """A convolution, and images `(5, C, H, W)` for it; float64."""
    *sizes, groups, height, width = row
    torch.manual_seed(0)
    conv = nn.Conv2d(*sizes, groups=groups, bias=bias).double()
    return conv, torch.randn(5, sizes[0], height, width, dtype=torch.float64)


def close(found, expected):
    """Within 1e-5, relative to the largest expected entry."""
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * max(scale, 1e-3))


def value_and_gradient(function, x, towards):
    x = x.detach().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad((y * towards.to(y)).sum(), x)[0]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("row", CASES, ids=str)
def test_packed(row, relu, memory_format):
    conv, x = case(row, bias=not relu)
    packed = Packed(copy.deepcopy(conv).float(), relu)
    for batch in (5, 2, 5):
        for _ in range(2):  # the second time with weights that are already in order
            images = x[:batch].to(memory_format=memory_format)
            towards = torch.randn_like(conv(images))
            expected = value_and_gradient(
                lambda x: conv(x).relu() if relu else conv(x), images, towards
            )
            found = value_and_gradient(packed, images.float(), towards)
            for one, other in zip(found, expected, strict=True):
                close(one, other)
        with torch.no_grad():
            conv.weight.mul_(-1.5)
        packed.set_weights(conv.weight.detach().float(), packed.bias)


def test_weights_that_change_between_the_passes():
    conv, x = case(CASES[0])
    packed = Packed(conv.float())
    x = x.float().requires_grad_()
    expected = torch.autograd.grad(conv(x).sum(), x)[0]
    y = packed(x)
    packed.set_weights(torch.zeros_like(conv.weight), None)
    close(torch.autograd.grad(y.sum(), x)[0], expected.double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_pytorchs_own(dtype):
    conv, x = case(CASES[0])
    conv.to(dtype)
    with torch.no_grad():
        assert torch.equal(Packed(conv, relu=True)(x.to(dtype)), conv(x.to(dtype)).relu())


def test_autocast():
    conv, x = case(CASES[0])
    conv.float()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Packed(conv)(x.float()), conv(x.float()))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("row", CASES, ids=str)
def test_fast_weight_gradients(monkeypatch, row, bias, channels_last):
    monkeypatch.setattr("classification.training.cpu.convolutions.FEW_POSITIONS", 1000)
    conv, x = case(row, bias)
    x.requires_grad_()
    towards = torch.randn_like(conv(x))
    (conv(x) * towards).sum().backward()
    ours, images = copy.deepcopy(conv).float(), x.detach().float()
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
        ours = ours.to(memory_format=torch.channels_last)
    ours.zero_grad()
    images.requires_grad_()
    with FastWeightGradients():
        y = ours(images)
    assert uses_matrix_product(y) == (conv.groups == 1)
    (y * towards.float()).sum().backward()
    close(images.grad, x.grad)
    for found, expected in zip(ours.parameters(), conv.parameters(), strict=True):
        close(found.grad, expected.grad)


def uses_matrix_product(y) -> bool:
    functions = [function for function, _ in y.grad_fn.next_functions if function]
    return any(function.name() == "_MatrixProductBackward" for function in functions)


def taken(x, weight) -> bool:
    with FastWeightGradients():
        y = nn.Conv2d(8, 8, 1)._conv_forward(x, weight, None)
    return y.grad_fn is not None and uses_matrix_product(y)


def test_when_a_matrix_product_is_taken():
    weight = torch.randn(8, 8, 1, 1, requires_grad=True)
    assert taken(torch.randn(2, 8, 8, 8), weight) and taken(torch.randn(2, 8, 1, 1), weight)
    assert not taken(torch.randn(2, 8, 16, 16), weight)  # too many positions
    assert not taken(torch.randn(2, 8, 4, 4), weight.detach())
    assert not taken(torch.randn(2, 8, 4, 4).double(), weight.detach().double().requires_grad_())
    with torch.no_grad():
        assert not taken(torch.randn(2, 8, 4, 4), weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not taken(torch.randn(2, 8, 4, 4), weight)


def test_an_attack_computes_no_gradient_of_weights(monkeypatch):
    calls = []
    monkeypatch.setattr(convolutions, "_weight_gradient", lambda *a: calls.append(a))
    conv, x = case(CASES[0])
    x = x.float().requires_grad_()
    with FastWeightGradients():
        y = conv.float()(x)
    assert uses_matrix_product(y)
    torch.autograd.grad(y.sum(), x)
    assert not calls


def test_frozen_parts():
    """The gradient of what is frozen stays None."""
    conv, x = case(CASES[0])
    conv.float().bias.requires_grad_(False)
    with FastWeightGradients():
        conv(x.float()).sum().backward()
    assert conv.weight.grad is not None and conv.bias.grad is None
