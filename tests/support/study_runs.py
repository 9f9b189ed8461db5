"""Studies whose runs are a few lines of Python, for tests of what surrounds the real ones."""

import json
import os
from pathlib import Path

import yaml

from classification.study.commands import COMMANDS, Command

# argv: folder, value, and what else the options say. Each start leaves a line in starts.txt.
CODE = """
import json, os, signal, sys, time
folder, options = sys.argv[1], json.loads(sys.argv[2])
with open(os.path.join(folder, "starts.txt"), "a") as file:
    file.write(f"{os.getpid()}\\n")
starts = len(open(os.path.join(folder, "starts.txt")).readlines())
if starts <= options.get("fails", 0):
    sys.exit("error: not yet")
if options.get("mistake"):
    print("error: nothing helps"), sys.exit(2)
if options.get("needs"):
    assert json.load(open(options["needs"]))["metrics"]
def stop(*_):
    open(os.path.join(folder, "saved"), "w").close()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
end = time.time() + options.get("sleep", 0)
while time.time() < end:
    time.sleep(0.02)
with open(os.path.join(folder, "result.json.part"), "w") as file:
    json.dump({"metrics": {"value": options.get("value")}, "seconds": 1.0,
               "threads": os.environ.get("OMP_NUM_THREADS"),
               "cores": os.environ.get("ROBUST_BACKBONES_CORES"),
               "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}, file)
with open(os.path.join(folder, "ends.txt"), "a") as file:
    file.write("x")
os.replace(os.path.join(folder, "result.json.part"), os.path.join(folder, "result.json"))
"""


def _lines(options: dict, folder: Path, gpus: int) -> list[list[str]]:
    return [["-I", "-S", "-c", CODE, str(folder), json.dumps(options)]]


def _cells(found: list[dict]) -> list[str]:
    return [" ".join(str(metrics["value"]) for metrics in found)]


def allow(monkeypatch) -> None:
    """Add the command `toy`, which has any option."""
    command = Command(
        _lines,
        lambda options: None,
        lambda name: name == "value",
        ("values",),
        _cells,
        gpus=0,
        divides=lambda options: True,
    )
    monkeypatch.setitem(COMMANDS, "toy", command)


def write(path: Path, contents) -> Path:
    text = contents if isinstance(contents, str) else yaml.safe_dump(contents, sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return path


def toy(tmp_path: Path, count: int, **common) -> Path:
    """A study of `count` runs with the values 0, 1, ..."""
    return write(
        tmp_path / "toy.yaml",
        {
            "output": str(tmp_path / "out"),
            "command": "toy",
            "common": {"value": "{number}"} | common,
            "axes": {"number": list(range(count))},
        },
    )


def starts(run) -> list[int]:
    """Numbers of the processes that worked on a run."""
    try:
        return [int(line) for line in (run.folder / "starts.txt").read_text().split()]
    except FileNotFoundError:
        return []


def ends(run) -> int:
    """How often a run was made to its end."""
    path = run.folder / "ends.txt"
    return len(path.read_text()) if path.exists() else 0


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return True
    except ProcessLookupError:
        return False
