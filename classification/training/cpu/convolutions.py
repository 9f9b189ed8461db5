"""Convolutions on a CPU that cost less than PyTorch's own, with the same results up to rounding.

PyTorch hands float32 convolutions to oneDNN. Three of its habits cost much where images are small,
and each has its remedy here:

- Weights are brought into oneDNN's blocked order in every call. An attack calls the same weights
  in each of its steps: `Packed` keeps both orders, that of the forward and of the backward pass.
- The gradient of a stride-2 convolution's input with three channels (the stem's) uses 3 of 8 lanes:
  `Packed` computes it as a stride-1 convolution with s * s * 3 channels (space to depth).
- The gradient of weights runs far below the speed of a matrix product when the output has few
  positions: inside `FastWeightGradients()` it is one.

Elsewhere (other types, devices, autocast, groups) all of this is PyTorch's own convolution.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Output positions per image up to which a matrix product is the faster gradient of weights.
FEW_POSITIONS = 64


def _plain_float32_on_cpu(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class Packed(nn.Module):
    """A convolution whose weights stay for several calls, optionally followed by a ReLU.

    It has no parameters of its own: `set_weights` says what they are, and must be called again
    when they have changed. Differentiable once, with respect to its input.

    Args:
        conv: gives the stride, padding and so on; zeros as padding.
        relu: whether a ReLU follows.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool = False):
        super().__init__()
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.groups, self.kernel_size = conv.groups, conv.kernel_size
        self.relu = relu
        self.set_weights(conv.weight.detach(), None if conv.bias is None else conv.bias.detach())

    @staticmethod
    def takes(module: nn.Module) -> bool:
        """Whether `module` is a convolution that this class can stand in for."""
        return (
            type(module) is nn.Conv2d
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        )

    def set_weights(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: `(out, in / groups, height, width)`; bias: `(out,)` or None."""
        self.weight, self.bias = weight, bias
        self.orders = {}  # (which order, shape of what goes in) -> the weights so ordered

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 1 and _plain_float32_on_cpu(x) and _can_pack():
            return _PackedFunction.apply(_channels_last(x), self, self.orders)
        y = F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        return y.relu_() if self.relu else y


def _ordered(orders: dict, kind: str, shape: torch.Size, make: Callable[[], Tensor]) -> Tensor:
    if (kind, shape) not in orders:
        orders[kind, shape] = make()
    return orders[kind, shape]


@cache
def _can_pack() -> bool:
    """PyTorch's own compiler uses these operators, but they are not documented."""
    names = "_convolution_pointwise", "_reorder_convolution_weight"
    names += "_convolution_transpose_pointwise", "_reorder_convolution_transpose_weight"
    return all(hasattr(torch.ops.mkldnn, name) for name in names)


class _PackedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: Packed, orders: dict) -> Tensor:
        ops = torch.ops.mkldnn
        places = conv.padding, conv.stride, conv.dilation, 1
        weight = _ordered(
            orders,
            "forward",
            x.shape,
            lambda: ops._reorder_convolution_weight(conv.weight, *places, x.shape),
        )
        y = ops._convolution_pointwise(
            x, weight, conv.bias, *places, "relu" if conv.relu else "none", [], ""
        )
        # The weights of this very call: `set_weights` in between changes nothing here.
        ctx.conv, ctx.orders, ctx.weight, ctx.shape = conv, orders, conv.weight, x.shape
        if conv.relu:
            ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = _channels_last(gradient)
        if ctx.conv.relu:
            gradient = torch.ops.aten.threshold_backward(gradient, *ctx.saved_tensors, 0)
        return _input_gradient(ctx, gradient), None, None


def _input_gradient(ctx: Any, gradient: Tensor) -> Tensor:
    conv, shape = ctx.conv, ctx.shape
    stride, kernel = conv.stride[0], conv.kernel_size[0]
    few = (
        shape[1] * stride * stride <= 16
        and stride > 1
        and conv.stride == (stride, stride)
        and conv.kernel_size == (kernel, kernel)
        and conv.dilation == (1, 1)
        and conv.padding[0] == conv.padding[1]
        and shape[2] % stride == 0
        and shape[3] % stride == 0
    )
    if few:
        return _few_channels_gradient(ctx, gradient, stride, kernel)
    ops = torch.ops.mkldnn
    rest = [
        (size + 2 * p - d * (k - 1) - 1) % s
        for size, p, d, k, s in zip(
            shape[2:], conv.padding, conv.dilation, conv.kernel_size, conv.stride, strict=True
        )
    ]
    places = conv.padding, rest, conv.stride, conv.dilation, 1
    reorder = ops._reorder_convolution_transpose_weight
    weight = _ordered(
        ctx.orders,
        f"backward {rest}",
        gradient.shape,
        lambda: reorder(ctx.weight, *places, gradient.shape),
    )
    return ops._convolution_transpose_pointwise(gradient, weight, None, *places, "none", [], "")


def _few_channels_gradient(ctx: Any, gradient: Tensor, s: int, k: int) -> Tensor:
    """Blocks of s x s pixels as channels: the backward pass is then a stride-1 convolution.

    Pixel `s * i + u` of the padded image is entry u of block i. Output o saw the blocks o to
    o + taps - 1, so block i receives tap t from output i - t.
    """
    ops = torch.ops.mkldnn
    pad, channels = ctx.conv.padding[0], ctx.shape[1]
    # So that blocks begin at pixel 0 of the image, `front` zeros precede the kernel.
    front = -pad % s
    taps = -(-(front + k) // s)
    first = (pad + front) // s  # blocks of padding before the image

    def make() -> Tensor:
        weight = F.pad(ctx.weight, (front, taps * s - k - front) * 2)
        weight = weight.view(-1, channels, taps, s, taps, s).permute(1, 3, 5, 0, 2, 4)
        weight = weight.reshape(channels * s * s, -1, taps, taps).flip(2, 3)
        weight = F.pad(weight, (0, 0) * 3 + (0, 16 - len(weight)))  # whole vectors of lanes
        return ops._reorder_convolution_weight(
            _channels_last(weight), [taps - 1] * 2, [1, 1], [1, 1], 1, gradient.shape
        )

    weight = _ordered(ctx.orders, "few channels", gradient.shape, make)
    blocks = ops._convolution_pointwise(
        gradient, weight, None, [taps - 1] * 2, [1, 1], [1, 1], 1, "none", [], ""
    )
    height, width = ctx.shape[2] // s, ctx.shape[3] // s
    blocks = blocks[:, : channels * s * s, first : first + height, first : first + width]
    if blocks.shape[2:] != (height, width):  # the last blocks that no output saw
        blocks = F.pad(blocks, (0, width - blocks.shape[3], 0, height - blocks.shape[2]))
    return _channels_last(F.pixel_shuffle(blocks, s))


class _MatrixProduct(torch.autograd.Function):
    """Zero, shaped like the convolution's result, with the gradients of its weights and bias.

    Apart from the convolution itself, so that a caller who wants the images' gradient only (an
    attack on the model as it is) does not pay for the weights'.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, x: Tensor, shape: torch.Size, *places: Any
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.shape, ctx.places = weight.shape, places
        return weight.new_zeros(()).expand(shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        (x,) = ctx.saved_tensors
        of_bias = gradient.sum((0, 2, 3)) if ctx.needs_input_grad[1] else None
        return _weight_gradient(x, gradient, ctx.shape, *ctx.places), of_bias, *[None] * 5


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *places: Any) -> Tensor:
    """conv2d whose gradient of weights is one matrix product."""
    y = F.conv2d(x, weight.detach(), None if bias is None else bias.detach(), *places)
    return y.add_(_MatrixProduct.apply(weight, bias, x.detach(), y.shape, *places))


def _weight_gradient(
    x: Tensor,
    gradient: Tensor,
    shape: torch.Size,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    out, channels, kh, kw = shape
    n, _, oh, ow = gradient.shape
    x = x.permute(0, 2, 3, 1)
    if any(padding):
        x = F.pad(x, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    x = x.contiguous()
    whole, row, pixel, _ = x.stride()
    windows = x.as_strided(
        (n, oh, ow, kh, kw, channels),
        (whole, row * stride[0], pixel * stride[1], row * dilation[0], pixel * dilation[1], 1),
    )
    rows = gradient.permute(0, 2, 3, 1).reshape(n * oh * ow, out)
    product = rows.t() @ windows.reshape(n * oh * ow, kh * kw * channels)
    return product.view(out, kh, kw, channels).permute(0, 3, 1, 2)


class FastWeightGradients(TorchFunctionMode):
    """Inside, convolutions get their weights' gradient by a matrix product where that is faster.

    The forward pass decides: run it inside; the backward pass may be anywhere. Differentiable once.

    with FastWeightGradients():
        logits = model(x)
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.conv2d and not kwargs and len(args) == 7:
            x, weight, bias, stride, padding, dilation, groups = args
            if (
                groups == 1
                and torch.is_grad_enabled()
                and weight.requires_grad
                and _plain_float32_on_cpu(x)
                and x.dim() == 4
                and not isinstance(padding, str)
                and _positions(x, weight, stride, padding, dilation) <= FEW_POSITIONS
            ):
                return _convolution(x, weight, bias, stride, padding, dilation)
        return func(*args, **(kwargs or {}))


def _positions(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> int:
    height, width = (
        (x.shape[i + 2] + 2 * padding[i] - dilation[i] * (weight.shape[i + 2] - 1) - 1) // stride[i]
        + 1
        for i in (0, 1)
    )
    return height * width
