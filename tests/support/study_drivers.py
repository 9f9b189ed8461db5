"""Study drivers started as processes."""

import subprocess
import sys
import time

from tests.support import ROOT

DRIVER = """
import sys
sys.path[:0] = {paths!r}
from tests.support.study_runs import allow
import pytest
with pytest.MonkeyPatch.context() as patch:
    allow(patch)
    from classification.study import __main__ as study
    study.main(sys.argv[1:])
"""


def driver(*words) -> subprocess.Popen:
    """The command in a process of its own."""
    code = DRIVER.format(paths=[str(ROOT)])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for(condition, seconds: float = 60.0):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "timed out"
        time.sleep(0.02)
