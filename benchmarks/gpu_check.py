#!/usr/bin/env python
"""Check this project on one GPU: correctness, speed and memory, in about 13 minutes.

python benchmarks/gpu_check.py
python benchmarks/gpu_check.py --rows 1,3-5 --budget 240 --output output/gpu_check_240
python benchmarks/gpu_check.py --device cpu        # all rows, small, in about five minutes

Each row runs in its own process with a time limit. A row that fails or hangs does not stop the next
one. A row is skipped if its packages are missing. Results are printed immediately and saved in
--output: gpu_check.jsonl (one measurement a line), gpu_check.md (the table) and a log for each row.
Measurements without a bound are only reported. The exit code is 1 if a measurement is outside its
bound or a row fails.
"""

import argparse
import importlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from robust_backbones.core.cli import Parser  # noqa: E402
from robust_backbones.core.errors import UserError, user_errors  # noqa: E402

MARK = "@gpu_check "  # prefix of the lines with measurements in the output of a row's process
RESULTS = {True: "PASS", False: "FAIL", None: "SKIP"}
COLUMNS = ("name", "value", "bound", "result", "seconds")
CLASSIFIERS = ("torch", "torchvision", "numpy", "PIL", "scipy")
PRETRAIN = (*CLASSIFIERS, "sklearn", "matplotlib", "tensorboard", "tqdm")
DETECTORS = (
    *CLASSIFIERS,
    "detectron2",
    "fvcore",
    "iopath",
    "yacs",
    "omegaconf",
    "hydra",
    "pycocotools",
    "hotcoco",
    "termcolor",
    "cloudpickle",
    "pkg_resources",
)


@dataclass(frozen=True)
class Row:
    """One row of the check.

    Attributes:
        title: name of the measurement.
        function: `module:name` of a generator of `gpu.lines.Line`s. Its arguments are the device
            and whether to use the full size.
        seconds: time limit of the row's process.
        needs: imported modules outside the standard library.
    """

    title: str
    function: str
    seconds: int
    needs: tuple[str, ...]


ROWS = {
    1: Row("versions", "commands:versions", 60, ("torch",)),
    2: Row("one detector step", "detectors:one_step", 90, DETECTORS),
    3: Row("parity with float64", "classifiers:parity", 90, CLASSIFIERS),
    4: Row("training step", "classifiers:training_step", 240, CLASSIFIERS),
    5: Row("synchronizations", "classifiers:synchronizations", 90, CLASSIFIERS),
    6: Row("loader", "classifiers:loading", 90, CLASSIFIERS),
    7: Row("detector step", "detectors:steps", 180, DETECTORS),
    8: Row(
        "mixed precision learns",
        "detectors:mixed_precision",
        120,
        (*DETECTORS, "sklearn", "skimage"),
    ),
    9: Row("kill and resume", "commands:resuming", 180, PRETRAIN),
    10: Row("probe", "classifiers:probing", 90, (*CLASSIFIERS, "sklearn", "threadpoolctl")),
    11: Row("evaluation", "classifiers:evaluation", 60, CLASSIFIERS),
    12: Row("memory growth", "classifiers:memory_growth", 90, CLASSIFIERS),
    13: Row("out of memory", "commands:out_of_memory", 90, PRETRAIN),
    14: Row("compiled step", "classifiers:compiled_step", 300, CLASSIFIERS),
}


def parse_rows(text: str) -> list[int]:
    """Row numbers of a list such as `1,3-5`.

    Raises:
        argparse.ArgumentTypeError: the text is not such a list, or a row does not exist.
    """
    found: list[int] = []
    for part in text.split(","):
        numbers = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not numbers:
            raise argparse.ArgumentTypeError(f"'{text}' is not a list such as 1,3-5")
        found += range(int(numbers[1]), int(numbers[2] or numbers[1]) + 1)
    if not found or set(found) - set(ROWS):
        raise argparse.ArgumentTypeError(f"'{text}': choose from rows 1 to {len(ROWS)}")
    return found


def measure(number: int, device: str) -> None:
    """Run one row in this process and print its measurements for the parent process."""
    import torch

    module, name = ROWS[number].function.split(":")
    began = time.perf_counter()
    try:
        function = getattr(importlib.import_module(f"gpu.{module}"), name)
        for line in function(torch.device(device), device != "cpu"):
            took, began = time.perf_counter() - began, time.perf_counter()
            shown = {
                "name": line.name,
                "value": line.shown,
                "bound": line.bound,
                "result": RESULTS[line.passed],
                "seconds": round(took, 1),
            }
            print(MARK + json.dumps(shown | {"number": line.value, "unit": line.unit}), flush=True)
    except ModuleNotFoundError as error:
        print(MARK + json.dumps(_outcome("SKIP", f"needs {error.name}")), flush=True)


def _outcome(result: str, value: str, bound: str = "", seconds: float = 0.0) -> dict:
    """A line about a row as a whole."""
    return {
        "name": "",
        "value": value,
        "bound": bound,
        "result": result,
        "seconds": round(seconds, 1),
    }


class Report:
    """Printed, collected and saved lines of a check."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.lines = folder, []
        self.file = (folder / "gpu_check.jsonl").open("w", encoding="utf-8")

    def add(self, number: int, line: dict) -> None:
        name = ": ".join(filter(None, (ROWS[number].title, line["name"])))
        line = {"row": number, **line, "name": name}
        self.lines.append(line)
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        print(" | ".join(str(line[column]) for column in COLUMNS), flush=True)

    def close(self, command: str) -> bool:
        """Print and save the table; returns whether nothing failed."""
        table = [f"| {' | '.join(('row', *COLUMNS))} |", "|---" * (1 + len(COLUMNS)) + "|"]
        table += [
            f"| {' | '.join(str(line[c]) for c in ('row', *COLUMNS))} |" for line in self.lines
        ]
        counts = {r: sum(line["result"] == r for line in self.lines) for r in RESULTS.values()}
        summary = ", ".join(f"{count} {result}" for result, count in counts.items())
        text = "\n".join([f"`{command}`: {summary}.", "", *table, ""])
        (self.folder / "gpu_check.md").write_text(text, encoding="utf-8")
        self.file.close()
        print(f"\n{text}{self.folder}/gpu_check.jsonl has the numbers.")
        return not counts["FAIL"]


def run(number: int, device: str, limit: float, report: Report) -> None:
    """Run a row in a process of its own and report its measurements as they come."""
    row, log = ROWS[number], report.folder / f"row{number}.log"
    if lacking := [name for name in row.needs if importlib.util.find_spec(name) is None]:
        report.add(number, _outcome("SKIP", f"needs {', '.join(lacking)}"))
        return
    words = [sys.executable, str(Path(__file__)), "--device", device, "--measure", str(number)]
    began, last, late = time.monotonic(), "", threading.Event()
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def stop() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started

    timer = threading.Timer(limit, stop)
    timer.start()
    try:
        with log.open("w", encoding="utf-8") as file:
            for text in process.stdout:
                if text.startswith(MARK):
                    report.add(number, json.loads(text[len(MARK) :]))
                else:
                    file.write(text)
                    last = text.strip() or last
        code = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:  # this process was interrupted
            os.killpg(process.pid, signal.SIGKILL)
    took = time.monotonic() - began
    if late.is_set():
        report.add(number, _outcome("FAIL", "stopped", f"within {limit:.0f} s", took))
    elif code:
        said = last.replace("|", "/")[:200]
        report.add(number, _outcome("FAIL", f"exit code {code}: {said} ({log})", "", took))


def parser() -> Parser:
    p = Parser(
        description=__doc__,
        epilog="rows:\n" + "\n".join(f"  {n:2}  {row.title}" for n, row in ROWS.items()),
    )
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="device to check")
    p.add_argument(
        "--rows",
        type=parse_rows,
        default=list(ROWS),
        metavar="LIST",
        help="rows to run, such as 1,3-5 (default: all)",
    )
    p.add_argument(
        "--budget",
        type=float,
        default=900,
        metavar="SECONDS",
        help="time for all rows. Rows that do not start within it are skipped.",
    )
    p.add_argument(
        "--output",
        type=Path,
        default=ROOT / "output/gpu_check",
        metavar="DIR",
        help="folder for the results (default: output/gpu_check)",
    )
    p.add_argument("--measure", type=int, choices=ROWS, help=argparse.SUPPRESS)  # a row's process
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.measure:
        try:
            measure(args.measure, args.device)
        except Exception:
            traceback.print_exc()
            return 1
        return 0
    if importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is missing. Install torch and torchvision.")
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError(
                "--device cuda: no CUDA GPU found. Use --device cpu, or install a CUDA "
                "build of PyTorch."
            )
    patience = 1 if args.device == "cuda" else 3  # CPUs may be shared
    report, end = Report(args.output), time.monotonic() + args.budget
    print(" | ".join(COLUMNS))
    for number in args.rows:
        left = end - time.monotonic()
        if left < 5:
            report.add(number, _outcome("SKIP", f"--budget {args.budget:g} is spent"))
            continue
        run(number, args.device, min(ROWS[number].seconds * patience, left), report)
    words = " ".join(sys.argv[1:] if argv is None else argv)
    return 0 if report.close(f"python benchmarks/gpu_check.py {words}".strip()) else 1


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
