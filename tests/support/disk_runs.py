"""Commands started on a full disk."""

import pytest

from classification.pretrain import __main__ as pretrain
from tests.support.pretrain_runs import FEW


def refused(capfd, start, *args) -> str:
    """The one line that a command ends with, and its exit code is 2."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        start(*args)
    assert stop.value.code == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def pretraining(place, weights):
    pretrain.main([*FEW, "--output", str(place / "run"), "--resume", "--save-seconds", "0"])
    return place / "run" / "result.json"
