"""Keep NaN and infinity out of weights and checkpoints.

A finite loss can have gradients that are not finite. One update with such gradients destroys all
weights.
"""

import torch
from torch import Tensor

from robust_backbones.core.errors import UserError

SMALLEST_SCALE = 1.0  # smallest loss scale for float16; smaller losses lose their gradients


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Return the L2 norm of all gradients of an optimizer, a float32 scalar on their device.

    The norm is not finite if any gradient is not finite. The result is not read here, so that the
    caller can copy it from the GPU together with other numbers.
    """
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).float()


def must_stop(norm: Tensor, scaler: torch.amp.GradScaler) -> Tensor:
    """Return whether an update must stop the run, because its gradients are not finite.

    In float16, such an update is skipped and the scaler halves the loss scale, so that the next
    update succeeds. The run must stop only if the scale is already at its minimum.

    Args:
        norm: `gradient_norm` after `scaler.unscale_`.
        scaler: scaler of the losses, which may be disabled.

    Returns:
        A bool scalar on the device. It is not read here.
    """
    scale = scaler.scale(torch.ones_like(norm))  # unlike get_scale, does not wait for the device
    return ~norm.isfinite() & (scale <= SMALLEST_SCALE)


def check_weights(tensors: dict[str, Tensor], path: object) -> None:
    """Check weights before they are written to a checkpoint.

    Args:
        tensors: state dict.
        path: file that would be written, for the message.

    Raises:
        UserError: a tensor contains NaN or infinity.
    """
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 1} more tensors" if bad[1:] else ""
        raise UserError(
            f"{path} was not written, because training diverged: {bad[0]}{more} contain NaN or "
            "infinity. Lower the learning rate, and resume from the last checkpoint."
        )
