"""Test that --help and common errors import no slow packages."""

import os
import re
import subprocess
import sys

import pytest

from robust_backbones.__main__ import COMMANDS as ENTRIES
from tests.support.commands import HEAVY, MISTAKES, ROOT, commands

COMMANDS = commands() | {
    f"robust_backbones {name}": ["-m", "robust_backbones", name] for name in ENTRIES
}
CALLS = [(name, "--help") for name in COMMANDS]
CALLS += [(name, words) for name, each in MISTAKES.items() for words in each]


def test_every_command_has_errors_to_test():
    assert set(MISTAKES) == set(commands())


@pytest.mark.parametrize(("name", "words"), CALLS)
def test_help_and_errors_import_no_slow_packages(tmp_path, name, words):
    given = words.replace("OUT", str(tmp_path / "new")).split()
    known = {k: v for k, v in os.environ.items() if k != "ROBUST_BACKBONES_DATA"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMANDS[name], *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=known,
    )
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.MULTILINE))
    said = re.sub(r"^import time:.*\n", "", done.stderr, flags=re.MULTILINE)
    assert "pathlib" in imported and not imported & set(HEAVY)
    assert done.returncode == (0 if words == "--help" else 2), said
    assert "Traceback" not in said and ("error: " in said) == (words != "--help")
    assert not (tmp_path / "new").exists()
