"""Fold FrozenBN into the convolution before it: the same function, with fewer passes over features.

Detectron2 multiplies and shifts each feature, forward and backward. FrozenBN is a fixed factor and
offset per channel, so it can be applied to the weights instead, which are thousands of times fewer:
`(W * x) s + b = (W s) * x + b`.
"""

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.functional import conv2d


class FoldedConv2d(Conv2d):
    """Detectron2's `Conv2d` with FrozenBN. Parameters, buffers and state dict are unchanged."""

    _key: list | None = None
    _cache: tuple[Tensor, Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """Apply convolution, normalization and activation: `(N, C, H, W)` to `(N, C', H', W')`."""
        weight, bias = self._folded()
        x = conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)

    def _folded(self) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return self._fold()  # part of the graph, for the gradient of the weight
        # Frozen, or in evaluation: cached until one of the tensors changes.
        norm = self.norm
        tensors = (
            self.weight,
            self.bias,
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
        )
        key = [(t.data_ptr(), t._version, t.dtype) for t in tensors if t is not None]
        if self._key != key:
            with torch.no_grad():
                self._cache, self._key = self._fold(), key
        return self._cache

    def _fold(self) -> tuple[Tensor, Tensor]:
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = norm.bias - norm.running_mean * scale
        if self.bias is not None:
            bias = bias + self.bias * scale
        return self.weight * scale.view(-1, 1, 1, 1), bias


def fold(network: nn.Module) -> nn.Module:
    """Replace each `Conv2d` of Detectron2 that has FrozenBN by a `FoldedConv2d`, in place.

    Returns:
        The same network. Outputs and gradients differ only by rounding.
    """
    for module in network.modules():
        if type(module) is Conv2d and isinstance(module.norm, FrozenBatchNorm2d):
            module.__class__ = FoldedConv2d
    return network
