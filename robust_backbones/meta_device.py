"""Build networks whose tensors have shapes but no values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Operations that initialize tensors. They change nothing on the meta device, but take long.
_INITIALIZE = {
    *("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_"),
    *("xavier_uniform_", "xavier_normal_", "constant_", "zeros_", "ones_"),
    *("erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_"),
}


class _SkipInitialization(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _INITIALIZE:
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


@contextmanager
def meta_device() -> Iterator[None]:
    """Create the tensors of networks on the meta device, without their initialization."""
    with torch.device("meta"), _SkipInitialization():
        yield
