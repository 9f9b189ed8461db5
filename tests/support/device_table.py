"""Run the checks of a test file on a device that is not the CPU, in a process of their own.

python -m tests.support.device_table FILE OUTPUT

The device is a GPU if there is one, or the stand-in. Torch reports a registered stand-in everywhere
in its process, and must know it before the first backward pass. So other tests have no part in it.
"""

import json
import runpy
import subprocess
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path

import torch

from tests.support import ROOT, stand_in

PASSED = "passed"


def outcomes(file: Path, folder: Path) -> dict[str, str]:
    """Run the checks in a new process, and return `PASSED` or a traceback for each.

    Args:
        file: test file with a table `CHECKS` of functions, whose argument is the device.
        folder: folder for the output.
    """
    output = folder / "outcomes.json"
    words = [sys.executable, "-m", __name__, str(file), str(output)]
    subprocess.run(words, cwd=ROOT, check=True)
    return json.loads(output.read_text())


def gives_the_results_of_the_cpu(device, work):
    """Compare the tensors that `work(device)` returns with those of the CPU."""
    found = [t.cpu() for t in work(device)]
    assert all(t.isfinite().all() for t in found)
    if device.type != "cuda":  # a GPU draws other random numbers
        for a, b in zip(found, work(torch.device("cpu")), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def main() -> None:
    """Run the checks that the command line names."""
    file, output = sys.argv[1:]
    gpu = torch.cuda.is_available()
    found = {}
    with nullcontext(torch.device("cuda", 0)) if gpu else stand_in.stand_in() as device:
        for name, check in runpy.run_path(file)["CHECKS"].items():
            try:
                check(device)
                found[name] = PASSED
            except Exception:
                found[name] = traceback.format_exc()
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
