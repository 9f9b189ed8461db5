"""AutoAttack (Croce & Hein 2020, arXiv 2003.01690), as implemented by the package `pyautoattack`.

This module isolates the side effects of the package. The package seeds torch's global generator,
logs messages, and replaces the trace function of `sys.settrace`.
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
from robust_backbones.core.extras import missing

NORMS = {"l2": "L2", "linf": "Linf"}
TARGETS = 9  # number of target classes for the targeted attacks in the standard version


def require_package() -> types.ModuleType:
    """Import and return `pyautoattack`.

    Raises:
        UserError: the package is not installed.
    """
    try:
        import pyautoattack  # optional package
    except ImportError:
        raise UserError(missing("pyautoattack", "attacks", "--autoattack")) from None
    return pyautoattack


def run_autoattack_part(
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
    """Run one attack of AutoAttack's standard version.

    The model runs in eval mode. Its mode, `.grad`, its parameters and torch's generators are
    restored afterwards. Run all parts in order with the same seed, each on the images that are
    still classified correctly. Together they give the result of the package's own
    `run_standard_evaluation`.

    Args:
        model: classifier from images `(N, 3, H, W)` in [0, 1] to logits `(N, classes)`.
        x: images `(N, 3, H, W)`, float RGB in [0, 1], N at least 1.
        y: labels `(N,)`.
        constraint: norm of the perturbation, `"l2"` or `"linf"`.
        eps: perturbation radius for images in [0, 1].
        part: name of the attack; see `plan.autoattack_parts`.
        classes: number of logits. Targeted attacks use 9 target classes, or all other classes if
            there are fewer than 9.
        seed: random seed.

    Returns:
        Adversarial images `(N, 3, H, W)`. An image that the attack did not break is unchanged.

    Raises:
        UserError: the package is not installed.
    """
    attacks, gpus = require_package(), [x.device] if x.device.type == "cuda" else []
    with _no_side_effects(), _frozen(model), torch.random.fork_rng(devices=gpus):
        suite = attacks.AutoAttack(
            model, norm=NORMS[constraint], eps=eps, seed=seed, version="standard", device=x.device
        )
        suite.attacks_to_run = [part]  # the version "standard" has set all other parameters
        suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = min(
            TARGETS, classes - 1
        )
        x_adv, _ = suite.run_standard_evaluation(x.detach(), y, batch_size=len(x))
    return x_adv.detach()


@contextlib.contextmanager
def _no_side_effects() -> Iterator[None]:
    """Silence the package's logger and restore the trace function.

    `checks` reports the problems of the model that the package would log.
    """
    logger, trace = logging.getLogger("auto-attack"), sys.gettrace()
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
        sys.settrace(trace)


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Set eval mode and disable the gradients of parameters, which FAB would accumulate."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        with eval_mode(model):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
