"""Parse, check and format the perturbation radius eps for images in [0, 1].

This module does not import torch, because command-line parsers use it.
"""

from fractions import Fraction

from robust_backbones.core.errors import UserError

CONSTRAINTS = ("l2", "linf")  # norms that limit the perturbation
STEP_FACTOR = 2.5  # step size in units of eps / steps (Madry et al. 2018)


def default_step(eps: float, steps: int) -> float:
    """Return the usual length of a PGD step, in the unit of `eps`."""
    return STEP_FACTOR * eps / steps


def parse_number(text: str) -> float:
    """Parse a number or a fraction: `0.5`, `1e-3`, `4/255`, `0.5/255`.

    Raises:
        ValueError, ArithmeticError: the text is not a finite number.
    """
    numerator, slash, denominator = text.partition("/")
    return float(Fraction(numerator) / Fraction(denominator if slash else 1))


def show_eps(constraint: str, eps: float | None) -> str:
    """Format a radius: `4/255` for linf, `0.5` for l2, or `unknown` for None."""
    if eps is None:
        return "unknown"
    return f"{255 * eps:.6g}/255" if constraint == "linf" and eps else f"{eps:.6g}"


def check_eps(option: str, constraint: str, eps: float) -> None:
    """Reject an L-infinity radius of 1 or more, such as `4` instead of `4/255`.

    An L-infinity ball of radius 1 contains every image.

    Args:
        option: name of the option or configuration key, for the message.
        constraint: `"l2"` or `"linf"`. An L2 ball may have any radius.
        eps: radius for images in [0, 1].

    Raises:
        UserError: the L-infinity radius is 1 or more.
    """
    if constraint == "linf" and eps >= 1:
        raise UserError(
            f"{option} {eps:g}: a linf radius must be below 1, for images in [0, 1]. Did you mean "
            f"{eps:g}/255?"
        )
