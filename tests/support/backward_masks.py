"""Count which gradients a backward pass computes."""

from torch.utils._python_dispatch import TorchDispatchMode


class BackwardMasks(TorchDispatchMode):
    """Record which gradients each backward operation computes: (input, weight, bias)."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("convolution_backward", "native_batch_norm_backward"):
            self.masks.append(tuple(args[-1]))
        return func(*args, **kwargs or {})
