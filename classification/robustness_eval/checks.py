"""Check that an evaluation can be trusted, following Carlini et al. 2019 (arXiv 1902.06705).

A defense that hides its gradients looks robust against gradient attacks without being robust.
`probe_model` and `count_faults` count symptoms during the attacks. `find_warnings` interprets the
counts.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from classification.metrics import AT_CHANCE, at_chance, wilson
from classification.robustness_eval.plan import (
    AUTOATTACK,
    CLEAN,
    PGD,
    UNBOUNDED,
    Attack,
    AttackResult,
)
from robust_backbones.attacks import CONSTRAINTS
from robust_backbones.core.eps import show_eps
from robust_backbones.core.errors import counted

FAULTS = ("outside_ball", "outside_range", "nan_images", "nan_logits")
PROBED = ("zero_gradients", "probed", "unsteady", "probabilities")
ROUNDING = 1e-5  # relative error of float32 sums over an image
UNSTEADY = 1e-4  # allowed difference of two passes on a GPU, relative to the largest logit
ZERO_GRADIENT_SHARE = 0.05  # fraction of images without gradient above which to warn
BLACK_BOX_SHARE = 0.01  # fraction of images broken only by the black-box attack above which to warn


def count_faults(x: Tensor, x_adv: Tensor, logits: Tensor, constraint: str, eps: float) -> dict:
    """Count invalid adversarial images and invalid logits.

    Args:
        x, x_adv: clean and adversarial images `(N, 3, H, W)`, valid in [0, 1].
        logits: logits of `x_adv`, `(N, classes)`.
        constraint: norm of the perturbation, `"l2"` or `"linf"`.
        eps: perturbation radius for images in [0, 1].

    Returns:
        Number of images for each name in `FAULTS`.
    """
    limit = eps + ROUNDING * max(1.0, eps)
    outside = (x_adv.flatten(1) < 0) | (x_adv.flatten(1) > 1)
    return {
        "outside_ball": (CONSTRAINTS[constraint].norm(x_adv - x) > limit).sum().item(),
        "outside_range": outside.any(1).sum().item(),
        "nan_images": x_adv.flatten(1).isnan().any(1).sum().item(),
        "nan_logits": logits.isnan().any(1).sum().item(),
    }


def probe_model(
    model: nn.Module, x: Tensor, y: Tensor, plan: list[Attack], generator: torch.Generator
) -> dict:
    """Count symptoms of masked gradients at a random start of PGD in the smallest ball.

    Args:
        model: classifier in eval mode.
        x, y: images `(N, 3, H, W)` in [0, 1] and labels `(N,)` of one batch.
        plan: attacks of the evaluation. If the plan has no PGD attack, the model is probed at `x`.
        generator: generator for the random start.

    Returns:
        Numbers of images: `probed` (classified correctly), `zero_gradients` (classified correctly,
        with a zero or non-finite gradient of the loss), `unsteady` (two forward passes disagree),
        `probabilities` (the outputs are in [0, 1] and sum to 1).
    """
    radii = [attack.eps for attack in plan if attack.family == PGD]
    start = x
    if radii:
        start = CONSTRAINTS[plan[0].constraint].random_start(x, min(radii), generator).clamp(0, 1)
    with torch.enable_grad():
        start = start.detach().requires_grad_()
        loss, gradient = cross_entropy(model(start), y, reduction="sum"), None
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, [start], allow_unused=True)
    gradient = torch.zeros_like(start) if gradient is None else gradient
    size = gradient.flatten(1).abs().amax(1)
    with torch.no_grad():
        first, second = model(start), model(start)
    right = first.argmax(1) == y
    differ = (first - second).abs().amax(1) > UNSTEADY * first.abs().amax(1)
    sum_to_one = (first >= 0).all(1) & ((first.sum(1) - 1).abs() < ROUNDING)
    return {
        "probed": right.sum().item(),
        "zero_gradients": (right & ~((size > 0) & size.isfinite())).sum().item(),
        "unsteady": differ.sum().item(),
        "probabilities": sum_to_one.sum().item(),
    }


def find_warnings(
    found: list[AttackResult], classes: int, causes: Sequence[str] = ()
) -> list[dict]:
    """Return the reasons not to trust an evaluation.

    If the clean accuracy is at chance level, gradients are not checked, because no attack can lower
    it further.

    Args:
        found: results of a complete run, the clean images first.
        classes: number of classes.
        causes: likely causes of a clean accuracy at chance level, the most likely first.

    Returns:
        One `{"check": name, "message": symptom, likely cause and fix}` per reason. The list is
        empty if the attacks work and the model does not mask gradients.
    """
    checks, warnings = CHECKS, []
    if at_chance(sum(found[0].right), len(found[0].right), classes):
        warnings = [{"check": AT_CHANCE, "message": _chance(found[0].right, classes, causes)}]
        checks = {name: check for name, check in CHECKS.items() if name not in GRADIENT_CHECKS}
    return warnings + [
        {"check": name, "message": message}
        for name, check in checks.items()
        for message in check(found, classes)
    ]


def _chance(right: list[bool], classes: int, causes: Sequence[str]) -> str:
    share, count = 100 * sum(right) / len(right), f"{sum(right)} of {len(right)}"
    return (
        f"clean accuracy is {share:.2f} % ({count} images), not above the chance level of "
        f"{classes} classes ({100 / classes:.2f} %). Do not use these numbers. Likely causes, in "
        f"this order: {'; '.join(causes)}; a model that is not trained."
    )


def _zero_gradients(found: list[AttackResult], classes: int) -> Iterator[str]:
    zero, probed = found[0].counts["zero_gradients"], found[0].counts["probed"]
    if zero > ZERO_GRADIENT_SHARE * probed:
        yield (
            f"the loss has no gradient for {zero} of {probed} correctly classified images. "
            "Rounding, saturated outputs or a non-differentiable layer hide it, so gradient "
            "attacks fail and robust accuracy is overestimated. Attack a differentiable version "
            "of the model, and use --autoattack."
        )


def _randomized(found: list[AttackResult], classes: int) -> Iterator[str]:
    if count := found[0].counts["unsteady"]:
        yield (
            "two forward passes in eval mode disagree on "
            f"{counted(int(count), 'image', 'images')}. The model is random, so each "
            "gradient belongs to another model. Fix its random seed, or attack the mean over "
            "many passes."
        )


def _probabilities(found: list[AttackResult], classes: int) -> Iterator[str]:
    if found[0].counts["probabilities"] == len(found[0].right):
        yield (
            "the outputs are non-negative and sum to 1. They seem to be probabilities, and a "
            "second softmax in the loss flattens its gradients. Remove the model's last softmax."
        )


def _nan_logits(found: list[AttackResult], classes: int) -> Iterator[str]:
    for result in found:
        if count := result.counts["nan_logits"]:
            yield (
                f"{result.attack.name}: logits are NaN for "
                f"{counted(int(count), 'image, which counts', 'images, which count')} as wrong. "
                "The model divides by zero or overflows. Fix it before using these numbers."
            )


def _faulty_images(found: list[AttackResult], classes: int) -> Iterator[str]:
    faults = {
        "outside_ball": "are outside the ball",
        "outside_range": "leave [0, 1]",
        "nan_images": "have NaN pixels",
    }
    for result in found:
        for key, fault in faults.items():
            if count := result.counts[key]:
                yield (
                    f"{result.attack.name}: {count} adversarial images {fault}. This is a bug in "
                    "the attack, not in the model. Do not use this row, and report the bug."
                )


def beyond_noise(gained: int, lost: int) -> bool:
    """Return whether a paired difference exceeds two standard deviations of fair coin flips.

    Args:
        gained: number of images that are right only in the second result.
        lost: number of images that are right only in the first result.
    """
    return gained - lost > 2 * (gained + lost) ** 0.5


def _gain(weak: AttackResult, strong: AttackResult) -> int | None:
    """Return how many more images are right under `strong`, or None if it may be noise."""
    pairs = list(zip(weak.right, strong.right, strict=True))
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    return gained - lost if beyond_noise(gained, lost) else None


def _final_results(found: list[AttackResult]) -> list[AttackResult]:
    """Return the final result of each attack. For AutoAttack, it is the result of the last part."""
    last = {result.attack.group: result for result in found}
    return [result for result in last.values() if result.attack.family != UNBOUNDED]


def _rising(found: list[AttackResult], classes: int) -> Iterator[str]:
    results = sorted(_final_results(found), key=lambda result: result.attack.eps)
    for title in dict.fromkeys(result.attack.title for result in results if result.attack.eps):
        rows = [result for result in results if result.attack.title in (title, CLEAN)]
        for small, large in zip(rows, rows[1:], strict=False):
            if gain := _gain(small, large):
                yield (
                    f"{gain} more images are right under {large.attack.group} than under "
                    f"{small.attack.group}, although the larger ball contains the smaller one. "
                    "The attack gets stuck: masked gradients or too few steps. Use more --steps "
                    "and --restarts, and --autoattack."
                )


def _is_weaker(weak: Attack, strong: Attack) -> bool:
    """Return whether `strong` should break at least as many images as `weak` in the same ball."""
    if weak.eps != strong.eps or weak.family != PGD:
        return False
    if strong.family == AUTOATTACK:
        return True
    less, more = ((a.steps or 0, a.restarts) for a in (weak, strong))
    return less != more and all(a <= b for a, b in zip(less, more, strict=True))


def _stronger_does_worse(found: list[AttackResult], classes: int) -> Iterator[str]:
    results = _final_results(found)
    for weak in results:
        for strong in results:
            if _is_weaker(weak.attack, strong.attack) and (gain := _gain(weak, strong)):
                yield (
                    f"{gain} more images are right under {strong.attack.group} than under the "
                    f"weaker {weak.attack.group}. Gradients are masked or noisy, so the stronger "
                    "attack fails. Use the worst case over both as an upper bound, and write an "
                    "adaptive attack."
                )


def _black_box_wins(found: list[AttackResult], classes: int) -> Iterator[str]:
    for before, square in zip(found, found[1:], strict=False):
        broken = sum(before.right) - sum(square.right)
        if square.attack.part == "square" and broken > max(2, BLACK_BOX_SHARE * len(square.right)):
            yield (
                f"{square.attack.group}: the black-box attack alone breaks {broken} images that "
                "the gradient attacks did not break. Gradients are masked, so the true robust "
                "accuracy is probably lower still. Write an adaptive attack."
            )


def _unbounded(found: list[AttackResult], classes: int) -> Iterator[str]:
    for result in found:
        if result.attack.family != UNBOUNDED:
            continue
        right, total = sum(result.right), len(result.right)
        if wilson(right, total)[0] > 100 / classes:
            eps = show_eps(result.attack.constraint, result.attack.eps)
            yield (
                f"{right} of {total} images are correct at {result.attack.constraint} eps {eps}, "
                "where every image can be made plain gray and no model is better than chance. The "
                "attack fails because gradients are masked. Do not trust any robust accuracy of "
                "this run."
            )


CHECKS = {
    "nan_logits": _nan_logits,
    "faulty_images": _faulty_images,
    "randomized": _randomized,
    "probabilities": _probabilities,
    "zero_gradients": _zero_gradients,
    "unbounded_attack_fails": _unbounded,
    "rising_with_eps": _rising,
    "stronger_does_worse": _stronger_does_worse,
    "black_box_wins": _black_box_wins,
}
GRADIENT_CHECKS = (
    "zero_gradients",
    "unbounded_attack_fails",
    "rising_with_eps",
    "stronger_does_worse",
    "black_box_wins",
)
