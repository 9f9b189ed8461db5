"""What a robustness evaluation consists of: one row per attack, in the order in which they run."""

from dataclasses import dataclass

from robust_backbones.core.eps import show_eps
from robust_backbones.core.errors import UserError

CLEAN, PGD, AUTOATTACK, UNBOUNDED = "clean", "pgd", "autoattack", "unbounded"
# Smallest number of classes -> the parts of the standard version that such a model allows: the
# targeted DLR loss looks at four logits, the plain one at three.
AUTOATTACK_PARTS = {
    4: ("apgd-ce", "apgd-t", "fab-t", "square"),
    3: ("apgd-ce", "apgd-dlr", "fab-t", "square"),
    2: ("apgd-ce", "fab-t", "square"),
}
UNBOUNDED_STEPS = 20


@dataclass(frozen=True)
class Attack:
    """One row of a plan.

    Attributes:
        family: `CLEAN`, `PGD`, `AUTOATTACK` or `UNBOUNDED` (PGD in a ball that reaches grey).
        constraint: `"l2"` or `"linf"`.
        eps: radius, for pixels in [0, 1].
        steps: gradient steps per try; None where the family decides (AutoAttack), 0 for clean.
        restarts: tries, each from its own random start.
        part: of AutoAttack: which of its attacks. It gets the images that the part before left.
    """

    family: str
    constraint: str
    eps: float
    steps: int | None = 0
    restarts: int = 1
    part: str | None = None

    @property
    def title(self) -> str:
        """`clean`, `pgd-20`, `pgd-20x5` (five restarts), `autoattack` or `unbounded`."""
        if self.family != PGD:
            return self.family
        return f"pgd-{self.steps}" + (f"x{self.restarts}" if self.restarts > 1 else "")

    @property
    def group(self) -> str:
        """What results call it: `pgd-20 eps 4/255`; the same for all parts of an AutoAttack."""
        if self.family in (CLEAN, UNBOUNDED):
            return self.title
        return f"{self.title} eps {show_eps(self.constraint, self.eps)}"

    @property
    def name(self) -> str:
        """Tells it from all other rows of a plan."""
        return self.group if self.part is None else f"{self.group} {self.part}"


@dataclass(frozen=True)
class Outcome:
    """Result of one attack on all images.

    Attributes:
        attack: its row of the plan.
        right: for each image, whether the model still classifies it correctly.
        norms: norm of each image's perturbation, in the unit of `eps`; None if not finite.
        seconds: duration of the attack.
        counts: summed counts of `sanity.inspect` and, for the clean row, of `sanity.probe`.
        labels: label of each image in the clean row; empty in the other rows.
    """

    attack: Attack
    right: list[bool]
    norms: list[float | None]
    seconds: float
    counts: dict[str, float]
    labels: list[int]


def parts(classes: int) -> tuple[str, ...]:
    """The attacks of AutoAttack's standard version that a model with so many classes allows.

    Raises:
        UserError: fewer than two classes.
    """
    for least, names in AUTOATTACK_PARTS.items():
        if classes >= least:
            return names
    raise UserError(f"the dataset has {classes} classes; an attack needs at least 2.")


def grey_radius(constraint: str, shape: tuple[int, ...]) -> float:
    """Radius of the ball around any image that has uniform grey in it.

    Args:
        shape: of an image, `(C, H, W)`.
    """
    channels, height, width = shape
    return {"linf": 0.5, "l2": 0.5 * (channels * height * width) ** 0.5}[constraint]


def make(
    constraint: str,
    radii: list[float],
    steps: list[int],
    restarts: int,
    autoattack: tuple[str, ...],
    shape: tuple[int, ...],
) -> list[Attack]:
    """The rows of one evaluation, cheap ones first.

    Args:
        radii: of the attacks, each above 0.
        steps: of PGD; every number of them at every radius.
        autoattack: its parts, as `parts` gives them; empty for none.
        shape: of an image, `(C, H, W)`.
    """
    rows = [Attack(CLEAN, constraint, 0.0)]
    rows += [Attack(PGD, constraint, eps, k, restarts) for k in steps for eps in radii]
    grey = grey_radius(constraint, shape)
    rows.append(Attack(UNBOUNDED, constraint, grey, UNBOUNDED_STEPS))
    rows += [
        Attack(AUTOATTACK, constraint, eps, None, part=part) for eps in radii for part in autoattack
    ]
    return rows
