"""Plan the attacks of a robustness evaluation, in the order in which they run."""

from dataclasses import dataclass

from robust_backbones.core.eps import show_eps
from robust_backbones.core.errors import UserError

CLEAN, PGD, AUTOATTACK, UNBOUNDED = "clean", "pgd", "autoattack", "unbounded"
# Maps the minimum number of classes to the attacks of AutoAttack's standard version. The targeted
# DLR loss needs four logits, and the untargeted DLR loss needs three.
AUTOATTACK_PARTS = {
    4: ("apgd-ce", "apgd-t", "fab-t", "square"),
    3: ("apgd-ce", "apgd-dlr", "fab-t", "square"),
    2: ("apgd-ce", "fab-t", "square"),
}
UNBOUNDED_STEPS = 20


@dataclass(frozen=True)
class Attack:
    """One attack of a plan.

    Attributes:
        family: type of attack: `CLEAN` (no attack), `PGD`, `AUTOATTACK`, or `UNBOUNDED` (PGD with
            a radius that can turn every image gray).
        constraint: norm of the perturbation, `"l2"` or `"linf"`.
        eps: perturbation radius for images in [0, 1].
        steps: number of gradient steps per restart; 0 for `CLEAN`, None for `AUTOATTACK`, which
            sets its own steps.
        restarts: number of runs per image, each from its own random start.
        part: name of an attack within AutoAttack, or None for other families. A part attacks only
            the images that the previous part did not break.
    """

    family: str
    constraint: str
    eps: float
    steps: int | None = 0
    restarts: int = 1
    part: str | None = None

    @property
    def title(self) -> str:
        """Name without the radius: `clean`, `pgd-20`, `pgd-20x5` (five restarts), `autoattack`."""
        if self.family != PGD:
            return self.family
        return f"pgd-{self.steps}" + (f"x{self.restarts}" if self.restarts > 1 else "")

    @property
    def group(self) -> str:
        """Name in the results, such as `pgd-20 eps 4/255`, which all AutoAttack parts share."""
        if self.family in (CLEAN, UNBOUNDED):
            return self.title
        return f"{self.title} eps {show_eps(self.constraint, self.eps)}"

    @property
    def name(self) -> str:
        """Name that is unique within a plan."""
        return self.group if self.part is None else f"{self.group} {self.part}"


@dataclass(frozen=True)
class AttackResult:
    """Result of one attack on all images.

    Attributes:
        attack: attack that was run.
        right: whether the model still classifies each image correctly.
        norms: norm of each image's perturbation, in the unit of `eps`; None if not finite.
        seconds: duration of the attack, s.
        counts: sums of the counts of `checks.count_faults` and, for the clean images, of
            `checks.probe_model`.
        labels: label of each image; empty except for the clean images.
    """

    attack: Attack
    right: list[bool]
    norms: list[float | None]
    seconds: float
    counts: dict[str, float]
    labels: list[int]


def autoattack_parts(classes: int) -> tuple[str, ...]:
    """Return the attacks of AutoAttack's standard version for a model with this many classes.

    Raises:
        UserError: there are fewer than two classes.
    """
    for least, names in AUTOATTACK_PARTS.items():
        if classes >= least:
            return names
    raise UserError(f"an attack needs at least 2 classes, but the dataset has {classes}.")


def gray_radius(constraint: str, shape: tuple[int, ...]) -> float:
    """Return the smallest radius at which every image can be turned uniformly gray.

    Args:
        constraint: norm of the perturbation, `"l2"` or `"linf"`.
        shape: shape of an image, `(C, H, W)`.
    """
    channels, height, width = shape
    return {"linf": 0.5, "l2": 0.5 * (channels * height * width) ** 0.5}[constraint]


def make_plan(
    constraint: str,
    radii: list[float],
    steps: list[int],
    restarts: int,
    autoattack: tuple[str, ...],
    shape: tuple[int, ...],
) -> list[Attack]:
    """Return the attacks of one evaluation. Cheap attacks come first.

    Args:
        constraint: norm of the perturbations, `"l2"` or `"linf"`.
        radii: perturbation radii, each above 0. Without any, the plan has no attack.
        steps: numbers of PGD steps. PGD runs with each number at every radius.
        restarts: number of PGD restarts.
        autoattack: parts of AutoAttack (see `autoattack_parts`), or empty to skip AutoAttack.
        shape: shape of an image, `(C, H, W)`.
    """
    clean, gray = Attack(CLEAN, constraint, 0.0), gray_radius(constraint, shape)
    if not radii:
        return [clean]
    return [
        clean,
        *(Attack(PGD, constraint, eps, k, restarts) for k in steps for eps in radii),
        Attack(UNBOUNDED, constraint, gray, UNBOUNDED_STEPS),
        *(Attack(AUTOATTACK, constraint, eps, None, part=p) for eps in radii for p in autoattack),
    ]
