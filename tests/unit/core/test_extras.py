"""Commands that messages recommend for missing packages."""

import shlex

import pytest
from packaging.requirements import Requirement

from robust_backbones.core.extras import EXTRAS, install_command, missing


@pytest.mark.parametrize("extra", sorted({*EXTRAS} - {"detection"}))
def test_the_command_names_the_packages_of_the_extra_for_a_shell(extra):
    words = shlex.split(install_command(extra))
    assert words == ["pip", "install", *EXTRAS[extra]]
    assert all(Requirement(word).name for word in words[2:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("timm", "timm"), 'timm is not installed. Run: pip install "timm>=1.0"'),
        (
            ("pyautoattack", "attacks", "--autoattack"),
            "--autoattack: pyautoattack is not installed. Run: pip install pyautoattack",
        ),
        (
            ("Detectron2", "detection"),
            "Detectron2 is not installed. Run: robust-backbones install-detectron2",
        ),
    ],
)
def test_the_message_names_the_package_and_the_command(arguments, message):
    assert missing(*arguments) == message
