"""Fold FrozenBN into the preceding convolution, without changing the outputs of the network.

FrozenBN multiplies each channel by a fixed factor and adds a fixed offset. Detectron2 applies both
to the features, in the forward and the backward pass. Here, the factor is applied to the weights:
`(W * x) s + b = (W s) * x + b`. There are thousands of times fewer weights than features.
"""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.functional import conv2d


class FoldedConv2d(Conv2d):
    """A `Conv2d` of Detectron2 with folded FrozenBN and the same parameters and state dict."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply convolution, normalization and activation: `(N, C, H, W)` to `(N, C', H', W')`."""
        weight, bias = self._folded()
        x = conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)

    def _folded(self) -> tuple[Tensor, Tensor]:
        norm = self.norm
        statistics = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        scale, bias = self._cached("norm", statistics, self._factors)
        if self.bias is not None:
            bias = bias + self.bias * scale.flatten()
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return self.weight * scale, bias  # not cached, because the weight needs a gradient
        tensors = (self.weight, *statistics)
        return self._cached("weight", tensors, lambda: self.weight * scale), bias

    def _factors(self) -> tuple[Tensor, Tensor]:
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale

    def _cached(self, name: str, tensors: tuple[Tensor, ...], compute: Callable[[], Any]) -> Any:
        """Return the result of `compute`, which is constant until one of the tensors changes."""
        if torch.compiler.is_compiling():  # traced tensors have no addresses
            return compute()
        cache = self.__dict__.setdefault("_cache", {})
        key = [(t.data_ptr(), t._version, t.dtype) for t in tensors]
        if name not in cache or cache[name][0] != key:
            # Autograd rejects tensors that were created in inference mode.
            with torch.inference_mode(False), torch.no_grad():
                cache[name] = key, compute()
        return cache[name][1]


def fold(network: nn.Module) -> nn.Module:
    """Turn each `Conv2d` of Detectron2 that has FrozenBN into a `FoldedConv2d`, in place.

    Returns:
        The network itself. Its outputs and gradients change only by rounding errors.
    """
    for module in network.modules():
        if type(module) is Conv2d and isinstance(module.norm, FrozenBatchNorm2d):
            module.__class__ = FoldedConv2d
    return network
