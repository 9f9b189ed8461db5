"""Radii as typed, as checked and as printed."""

import pytest

from robust_backbones.core.eps import check_eps, parse_number, show_eps
from robust_backbones.core.errors import UserError

RADII = [
    ("linf", "4/255", 4 / 255, "4/255"),
    ("linf", "0.5/255", 0.5 / 255, "0.5/255"),
    ("linf", "1/4", 0.25, "63.75/255"),
    ("linf", "0", 0.0, "0"),
    ("l2", "0.5", 0.5, "0.5"),
    ("l2", "3", 3.0, "3"),
]


@pytest.mark.parametrize(("constraint", "text", "eps", "shown"), RADII)
def test_a_radius_as_typed_and_as_printed(constraint, text, eps, shown):
    assert parse_number(text) == eps
    assert show_eps(constraint, eps) == shown


def test_an_unknown_radius():
    assert show_eps("l2", None) == "unknown"


def test_a_radius_in_another_unit():
    check_eps("--eps", "l2", 4.0)
    check_eps("--eps", "linf", 0.999)
    with pytest.raises(UserError, match=r"--eps 4: a linf radius .* below 1.*Did you mean 4/255\?"):
        check_eps("--eps", "linf", 4.0)
