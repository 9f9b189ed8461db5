"""AutoAttack (Croce & Hein 2020, arXiv 2003.01690), by the package `pyautoattack`.

The border to that package: its names of norms, its seeding of torch's global generator, its
logger and its check that takes over `sys.settrace` stay in here.
"""

import contextlib
import logging
import sys
import types
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robust_backbones.attacks import eval_mode
from robust_backbones.core.errors import UserError

NORMS = {"l2": "L2", "linf": "Linf"}
TARGETS = 9  # classes that the targeted parts of the standard version try, most likely ones first


def package() -> types.ModuleType:
    """The module `pyautoattack`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyautoattack
    except ImportError:
        raise UserError(
            "AutoAttack needs the package pyautoattack, which is not installed; run: "
            'pip install "robust-backbones[attacks]"'
        ) from None
    return pyautoattack


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    constraint: str,
    eps: float,
    part: str,
    classes: int,
    seed: int,
) -> Tensor:
    """One part of AutoAttack's standard version.

    The model runs in eval mode; its modes, `.grad`, parameters and torch's generators come back
    as they were. Run one after the other on what is still right, with one seed, the parts give
    what the package's own `run_standard_evaluation` gives.

    Args:
        model: `(N, 3, H, W)` in [0, 1] -> logits `(N, classes)`.
        x: images `(N, 3, H, W)`, float RGB in [0, 1], N at least 1.
        y: labels `(N,)`.
        constraint: key of `NORMS`.
        eps: radius of the ball, for pixels in [0, 1].
        part: one of `attack_plan.parts(classes)`.
        classes: length of the logits; with 9 or fewer, fewer targets than the standard 9 exist.
        seed: decides all of its randomness.

    Returns:
        Images `(N, 3, H, W)`; an image that it could not get misclassified comes back unchanged.

    Raises:
        UserError: the package is not installed.
    """
    attacks = package()
    with _quiet(), _set_aside(model), torch.random.fork_rng(devices=_devices(x)):
        suite = attacks.AutoAttack(
            model, norm=NORMS[constraint], eps=eps, seed=seed, version="standard", device=x.device
        )
        # After "standard" has set every other number.
        suite.attacks_to_run = [part]
        suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = min(
            TARGETS, classes - 1
        )
        x_adv, _ = suite.run_standard_evaluation(x.detach(), y, batch_size=len(x))
    return x_adv.detach()


def _devices(x: Tensor) -> list:
    return [x.device] if x.device.type == "cuda" else []


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither logger nor trace function of the package outlive a call.

    What its log says about a model, `sanity` says, once and with all images counted.
    """
    logger, trace = logging.getLogger("auto-attack"), sys.gettrace()
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
        sys.settrace(trace)


@contextlib.contextmanager
def _set_aside(model: nn.Module) -> Iterator[None]:
    """Eval mode, and no gradients of parameters, which FAB would add up in `.grad`."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        with eval_mode(model):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
