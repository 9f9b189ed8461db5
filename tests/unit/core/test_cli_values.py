"""Values of command-line options, and errors for invalid ones."""

import argparse
import re

import pytest

from robust_backbones.core import cli

RIGHT = [
    (cli.count, "1", 1),
    (cli.batch, "2", 2),
    (cli.seed, "0", 0),
    (cli.seed, str(2**31 - 1), 2**31 - 1),
    (cli.eps, "0", 0.0),
    (cli.eps, "4/255", 4 / 255),
    (cli.amount, "1e-3", 0.001),
    (cli.positive, "0.5", 0.5),
    (cli.fraction, "1/2", 0.5),
]
WRONG = [
    (cli.count, ["0", "-1", "1.5", "", "many"], "a whole number of at least 1"),
    (cli.batch, ["1", "2.0"], "a whole number of at least 2"),
    (cli.seed, ["-1", str(2**31)], "a whole number in [0, 2**31)"),
    (cli.amount, ["-0.1", "nan", "inf", "1/0", "1e999", "4/"], "a finite number of at least 0"),
    (cli.eps, ["-1", "4 / 255x"], "a finite number of at least 0, such as 3 or 4/255"),
    (cli.positive_eps, ["0"], "a finite number above 0, such as 3 or 4/255"),
    (cli.positive, ["0", "-1", "0/255"], "a finite number above 0"),
    (cli.fraction, ["0", "1", "nan"], "a number between 0 and 1"),
]


@pytest.mark.parametrize("parse, text, value", RIGHT)
def test_valid_values(parse, text, value):
    found = parse(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "parse, text, description", [(p, text, words) for p, texts, words in WRONG for text in texts]
)
def test_invalid_values(parse, text, description):
    message = f"'{text}' is not {description}"
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(message)):
        parse(text)
