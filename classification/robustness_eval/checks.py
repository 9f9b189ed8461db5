"""Is an evaluation to be believed? What to look for: Carlini et al. 2019 (arXiv 1902.06705).

`probe` and `inspect` count, while the attacks run; `warnings` draws the conclusions. A defence
that hides its gradients looks robust against any attack that follows them, and is not.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from classification.metrics import wilson
from classification.robustness_eval import plan as attack_plan
from classification.robustness_eval.plan import Attack, Outcome
from robust_backbones.attacks import CONSTRAINTS
from robust_backbones.core.eps import show_eps

PROBED = ("zero_gradients", "probed", "unsteady", "probabilities")
ROUNDING = 1e-5  # relative: what float32 sums over an image may be off by
UNSTEADY = 1e-4  # of the largest logit: what two passes of a GPU may differ by
ZERO_SHARE = 0.05  # of the images without gradient, from which on it is worth a word
BLACK_BOX_SHARE = 0.01  # of all images that only the black-box part breaks, likewise
NORMS = {"l2": 2, "linf": float("inf")}


def norms(delta: Tensor, constraint: str) -> Tensor:
    """Norm of each image of `(N, C, H, W)`: `(N,)`."""
    return torch.linalg.vector_norm(delta.flatten(1), ord=NORMS[constraint], dim=1)


def inspect(x: Tensor, x_adv: Tensor, logits: Tensor, constraint: str, eps: float) -> dict:
    """Count images that an attack must not return, and logits that a model must not.

    Args:
        x, x_adv: `(N, 3, H, W)`.
        logits: of `x_adv`, `(N, classes)`.
        constraint, eps: the ball.
    """
    limit = eps + ROUNDING * max(1.0, eps)
    outside = (x_adv.flatten(1) < 0) | (x_adv.flatten(1) > 1)
    return {
        "outside_ball": (norms(x_adv - x, constraint) > limit).sum().item(),
        "outside_range": outside.any(1).sum().item(),
        "nan_images": x_adv.flatten(1).isnan().any(1).sum().item(),
        "nan_logits": logits.isnan().any(1).sum().item(),
    }


def probe(
    model: nn.Module, x: Tensor, y: Tensor, plan: list[Attack], generator: torch.Generator
) -> dict:
    """Look at the model itself, at a random start of the smallest ball, where PGD looks first.

    Args:
        model: in eval mode.
        x, y: one batch.
        plan: the attacks; without PGD the gradient is taken at `x`.
        generator: where the random start comes from.

    Returns:
        The numbers of images: `probed` (classified right), `zero_gradients` (of those, whose loss
        has a zero or non-finite gradient), `unsteady` (whose logits two passes disagree on),
        `probabilities` (whose logits are none: they lie in [0, 1] and sum to 1).
    """
    radii = [row.eps for row in plan if row.family == attack_plan.PGD]
    start = x
    if radii:
        start = CONSTRAINTS[plan[0].constraint].random_start(x, min(radii), generator).clamp(0, 1)
    with torch.enable_grad():
        start = start.detach().requires_grad_()
        logits = model(start)
        loss, gradient = cross_entropy(logits, y, reduction="sum"), None
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, [start], allow_unused=True)
    gradient = torch.zeros_like(start) if gradient is None else gradient
    size = gradient.flatten(1).abs().amax(1)
    with torch.no_grad():
        first, again = model(start), model(start)
    right = first.argmax(1) == y
    apart = (first - again).abs().amax(1) > UNSTEADY * first.abs().amax(1)
    looks_like_shares = (first >= 0).all(1) & ((first.sum(1) - 1).abs() < ROUNDING)
    return {
        "probed": right.sum().item(),
        "zero_gradients": (right & ~((size > 0) & size.isfinite())).sum().item(),
        "unsteady": apart.sum().item(),
        "probabilities": looks_like_shares.sum().item(),
    }


def warnings(outcomes: list[Outcome], classes: int) -> list[dict]:
    """What makes the evaluation suspect.

    Args:
        outcomes: of a whole run, the clean one first.
        classes: number of classes.

    Returns:
        `{"check": name, "message": symptom, likely cause and what to do}` each; none for an
        honest model under working attacks.
    """
    return [
        {"check": name, "message": message}
        for name, check in CHECKS.items()
        for message in check(outcomes, classes)
    ]


def _zero_gradients(outcomes: list[Outcome], classes: int) -> Iterator[str]:
    counts = outcomes[0].counts
    zero, probed = counts["zero_gradients"], counts["probed"]
    if zero > ZERO_SHARE * probed:
        yield (
            f"the loss has no gradient for {zero} of {probed} correctly classified images. "
            "Rounding, saturated outputs or a step that is not differentiable hide it, so that "
            "gradient attacks cannot move and robust accuracy is overestimated. Attack a smooth "
            "version of the model, and use --autoattack."
        )


def _randomised(outcomes: list[Outcome], classes: int) -> Iterator[str]:
    if count := outcomes[0].counts["unsteady"]:
        yield (
            f"two forward passes in eval mode disagree on {count} images. The model draws random "
            "numbers, so that each gradient is that of another model. Fix its randomness, or "
            "attack the mean over many passes."
        )


def _probabilities(outcomes: list[Outcome], classes: int) -> Iterator[str]:
    if outcomes[0].counts["probabilities"] == len(outcomes[0].right):
        yield (
            "the outputs are non-negative and sum to 1. They seem to be probabilities; a second "
            "softmax in the loss flattens its gradients. Remove the model's last softmax."
        )


def _nan_logits(outcomes: list[Outcome], classes: int) -> Iterator[str]:
    for outcome in outcomes:
        if count := outcome.counts["nan_logits"]:
            yield (
                f"{outcome.attack.name}: logits are NaN for {count} images, which count as wrong. "
                "A division by zero or an overflow in the model; its figures mean nothing until "
                "that is mended."
            )


def _faulty_images(outcomes: list[Outcome], classes: int) -> Iterator[str]:
    words = {
        "outside_ball": "lie outside the ball",
        "outside_range": "leave [0, 1]",
        "nan_images": "have NaN pixels",
    }
    for outcome in outcomes:
        for key, fault in words.items():
            if count := outcome.counts[key]:
                yield (
                    f"{outcome.attack.name}: {count} adversarial images {fault}. The attack is at "
                    "fault, not the model; do not use this row, and report it."
                )


def beyond_noise(gained: int, lost: int) -> bool:
    """Whether `gained` exceeds `lost` by over two standard deviations of a fair coin's throws."""
    return gained - lost > 2 * (gained + lost) ** 0.5


def _gain(weak: Outcome, strong: Outcome) -> int | None:
    """How many more images are right under `strong`; None if not beyond noise."""
    pairs = list(zip(weak.right, strong.right, strict=True))
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    return gained - lost if beyond_noise(gained, lost) else None


def _finals(outcomes: list[Outcome]) -> list[Outcome]:
    """The rows of all images that stand for an attack: of an AutoAttack the last part."""
    last = {outcome.attack.group: outcome for outcome in outcomes}
    return [o for o in last.values() if o.attack.family != attack_plan.UNBOUNDED]


def _rising(outcomes: list[Outcome], classes: int) -> Iterator[str]:
    finals = sorted(_finals(outcomes), key=lambda outcome: outcome.attack.eps)
    for family in {o.attack.title: None for o in finals if o.attack.eps}:
        rows = [o for o in finals if o.attack.title in (family, attack_plan.CLEAN)]
        for small, large in zip(rows, rows[1:], strict=False):
            if gain := _gain(small, large):
                yield (
                    f"under {large.attack.group} {gain} more images are right than under "
                    f"{small.attack.group}, though the larger ball holds the smaller one. The "
                    "attack gets stuck: masked gradients or too few steps. Use more --steps and "
                    "--restarts, and --autoattack."
                )


def _weaker(weak: Attack, strong: Attack) -> bool:
    """Whether `strong` ought to do at least as well as `weak` in the same ball."""
    if weak.eps != strong.eps or attack_plan.PGD != weak.family:
        return False
    if strong.family == attack_plan.AUTOATTACK:
        return True
    less, more = ((a.steps or 0, a.restarts) for a in (weak, strong))
    return less != more and all(a <= b for a, b in zip(less, more, strict=True))


def _stronger_does_worse(outcomes: list[Outcome], classes: int) -> Iterator[str]:
    finals = _finals(outcomes)
    for weak in finals:
        for strong in finals:
            if _weaker(weak.attack, strong.attack) and (gain := _gain(weak, strong)):
                yield (
                    f"{gain} more images are right under {strong.attack.group} than under the "
                    f"weaker {weak.attack.group}. The stronger attack gets lost: masked or noisy "
                    "gradients. Trust the worst case over both at most, and attack adaptively."
                )


def _black_box_wins(outcomes: list[Outcome], classes: int) -> Iterator[str]:
    for before, square in zip(outcomes, outcomes[1:], strict=False):
        broken = sum(before.right) - sum(square.right)
        if square.attack.part == "square" and broken > max(2, BLACK_BOX_SHARE * len(square.right)):
            yield (
                f"{square.attack.group}: the black-box part alone breaks {broken} images that "
                "the gradient attacks left. Gradients are masked, so that the true robust accuracy "
                "is likely lower still. Attack adaptively."
            )


def _unbounded(outcomes: list[Outcome], classes: int) -> Iterator[str]:
    for outcome in outcomes:
        if outcome.attack.family != attack_plan.UNBOUNDED:
            continue
        right, n = sum(outcome.right), len(outcome.right)
        if wilson(right, n)[0] > 100 / classes:
            eps = show_eps(outcome.attack.constraint, outcome.attack.eps)
            yield (
                f"{right} of {n} images stay right at {outcome.attack.constraint} eps {eps}, where "
                "every image can be made plain grey, so that no model is above chance. The attack "
                "fails: masked gradients. No robust accuracy of this run can be trusted."
            )


CHECKS = {
    "nan_logits": _nan_logits,
    "faulty_images": _faulty_images,
    "randomised": _randomised,
    "probabilities": _probabilities,
    "zero_gradients": _zero_gradients,
    "unbounded_attack_fails": _unbounded,
    "rising_with_eps": _rising,
    "stronger_does_worse": _stronger_does_worse,
    "black_box_wins": _black_box_wins,
}
