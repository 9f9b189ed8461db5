"""Values of command-line options, and errors for invalid ones."""

import argparse
import re
import subprocess
import sys

import pytest

from classification import options

RIGHT = [
    (options.count, "1", 1),
    (options.batch, "2", 2),
    (options.seed, "0", 0),
    (options.seed, str(2**31 - 1), 2**31 - 1),
    (options.radius, "0", 0.0),
    (options.radius, "4/255", 4 / 255),
    (options.radius, "1e-3", 0.001),
    (options.positive, "0.5", 0.5),
    (options.fraction, "1/2", 0.5),
]
WRONG = [
    (options.count, ["0", "-1", "1.5", "", "many"], "a whole number of at least 1"),
    (options.batch, ["1", "2.0"], "a whole number of at least 2"),
    (options.seed, ["-1", str(2**31)], "a whole number in [0, 2**31)"),
    (options.radius, ["-0.1", "nan", "inf", "1/0", "1e999", "4/", "4 / 255x"], "a finite number"),
    (options.positive, ["0", "-1", "0/255"], "a finite number above 0"),
    (options.fraction, ["0", "1", "nan"], "a number between 0 and 1"),
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


def test_no_torch_for_help():
    code = "import sys, classification.options; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
