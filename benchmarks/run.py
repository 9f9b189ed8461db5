"""Run the speed benchmarks and write benchmarks/RESULTS.md.

python benchmarks/run.py                      # quick form, about ten minutes on two idle cores
python benchmarks/run.py --full               # the sizes of docs/development/speed.md, hours
python benchmarks/run.py --only probe growth

Each benchmark runs in its own process and prints tables. This script compares numbers in the tables
with targets. A benchmark that fails or lacks a package does not stop the next one. The exit code is
then 1.
"""

import datetime
import importlib.util
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from installed import versions  # noqa: E402

from robust_backbones.core.cli import Parser  # noqa: E402
from robust_backbones.core.files import atomic  # noqa: E402

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "robustness", "pycocotools", "Pillow")


@dataclass(frozen=True)
class Target:
    """Target for the numbers of a column.

    Attributes:
        column: heading of the column.
        rows: strings that select rows. Each must occur in a cell of the row.
        least: lower bound of the numbers.
        most: upper bound of the numbers; exactly one of the bounds is given.
        best: whether one row within the bound is enough. Otherwise all rows must be.
    """

    column: str
    rows: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    best: bool = False

    def check(self, output: str) -> str:
        """Describe the number in the output, the target, and whether it is met."""
        found = numbers(output, self.column, self.rows)
        if not found:
            return f"the output has no number in column '{self.column}'"
        worst = min if (self.most is None) != self.best else max
        value, bound = worst(found), self.most if self.least is None else self.least
        met = value <= bound if self.least is None else value >= bound
        which = f"{' '.join(self.rows) or 'all rows'}: {'best' if self.best else 'worst'}"
        limit = f"target at {'most' if self.least is None else 'least'} {bound:g}"
        return f"{self.column}, {which} {value:g}, {limit}: {'met' if met else '**missed**'}"


@dataclass(frozen=True)
class Question:
    """A benchmark.

    Attributes:
        title: heading of its section.
        against: baseline of the comparison.
        quick, full: script and arguments of both forms. `{folder}` is a temporary folder.
        targets: targets for its numbers.
        before: command that prepares the temporary folder.
    """

    title: str
    against: str
    quick: str
    full: str
    targets: tuple[Target, ...] = ()
    before: str = ""


PRETRAINED = (
    "-m classification.pretrain --dataset textures --arch resnet18 --eps 0 --epochs 1 "
    "--limit 300 --output {folder}/pretrained"
)
QUESTIONS = {
    "step": Question(
        "Adversarial training step, same attack",
        "`robustness` library",
        "benchmarks/adversarial_step.py --arch resnet18 --size 32 --repeats 5 --use-best yes "
        "--variants pretrain",
        "benchmarks/adversarial_step.py --variants channels_last pretrain",
        (Target("speedup", ("pretrain",), least=1.0),),
    ),
    "accuracy": Question(
        "Time to reach a robust accuracy, digits",
        "`robustness` library, PGD",
        "benchmarks/time_to_accuracy.py --limit 600 --targets 40 60 --limit-seconds 100",
        "benchmarks/time_to_accuracy.py",
        tuple(Target("speedup", (f"{target} %", "yes"), least=3, best=True) for target in (40, 60)),
    ),
    "transfer": Question(
        "Fixed-feature transfer of one task, protocol clean",
        "the recipe of the paper",
        "benchmarks/fixed_feature.py --weights {folder}/pretrained/checkpoint.pt --limit 120 "
        "--test-limit 60 --epochs 150",
        "benchmarks/fixed_feature.py --weights {folder}/pretrained/checkpoint.pt",
        (Target("speedup", ("--protocol clean",), least=100),),
        PRETRAINED,
    ),
    "probe": Question(
        "Linear probe with 45 penalties",
        "scikit-learn",
        "benchmarks/probe.py --images 1500 --features 512 --classes 10 --tol --limit 120",
        "benchmarks/probe.py --features 512 2048 --classes 10 100",
        (Target("time / ours", ("of objective",), least=5),),
    ),
    "images": Question(
        "Reading images",
        "torchvision's ImageFolder and Pillow",
        "benchmarks/decoding.py --images 32 --repeats 3",
        "benchmarks/decoding.py",
        (Target("speedup", ("ours, fast",), least=2),),
    ),
    "detector": Question(
        "Training step and inference of a detector",
        "plain Detectron2",
        "benchmarks/detector_speed.py --size 320 --batch 1 --repeats 3 --freeze-at 2",
        "benchmarks/detector_speed.py",
        (
            Target("speedup", ("step", "ours"), least=1.2),
            Target("speedup", ("inference", "ours"), least=1.2),
        ),
    ),
    "coco": Question(
        "COCO evaluation",
        "pycocotools",
        "benchmarks/coco_evaluation.py --images 1000 --detections 7200 --repeats 2",
        "benchmarks/coco_evaluation.py",
        (Target("speedup", ("ours",), least=20),),
    ),
    "conversion": Question(
        "Checkpoint conversion with verification",
        "the steps of Detectron2's script, without verification",
        "benchmarks/conversion.py --repeats 3",
        "benchmarks/conversion.py --repeats 7",
        (
            Target("speedup", ("ours, verified",), least=1),
            Target("memory ratio", ("ours, verified",), least=1),
        ),
    ),
    "start_up": Question(
        "Start-up time of --help and of errors",
        "a target of 1.5 s",
        "benchmarks/start_up.py --repeats 3",
        "benchmarks/start_up.py --repeats 7",
        (Target("target / time", least=1),),
    ),
    "growth": Question(
        "Growth of time and memory over a factor of ten",
        "linear growth",
        "benchmarks/growth.py",
        "benchmarks/growth.py --scale 4 --repeats 3",
        (Target("exponent", most=1.1), Target("memory exponent", most=1.1)),
    ),
    "verdicts": Question(
        "Verdicts in simulated studies with a known truth",
        "error rates of at most 5 %",
        "benchmarks/verdicts.py --smoke",
        "benchmarks/verdicts.py",
        (Target("bounds missed", most=0),),
    ),
    "roofline": Question(
        "Roofline",
        "a large matrix product on this machine",
        "benchmarks/roofline.py --repeats 3",
        "benchmarks/roofline.py --repeats 9",
    ),
}


def numbers(output: str, column: str, rows: tuple[str, ...]) -> list[float]:
    """Numbers of a column in the selected rows of all Markdown tables that have the column."""
    found, head = [], []
    for line in output.splitlines():
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in line.strip("|\n").split("|")]
        head = head or cells
        selected = all(any(text in cell for cell in cells) for text in rows)
        if column in head and cells != head and selected:
            number = re.search(r"\d+(\.\d+)?", cells[head.index(column)])
            found += [float(number[0])] if number else []
    return found


def start(words: str, folder: str) -> tuple[int, str]:
    """Run Python. Returns the exit code and the output, or the errors if it failed."""
    given = shlex.split(words.replace("{folder}", folder))
    done = subprocess.run([sys.executable, *given], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, (done.stderr if done.returncode else done.stdout).strip()


def answer(question: Question, words: str) -> tuple[bool, str]:
    """Run a benchmark. Returns whether it succeeded, and its section of the page."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bad, output = start(question.before, folder) if question.before else (0, "")
        if not bad:
            bad, output = start(words, folder)
    lines = [
        f"## {question.title}",
        f"Compared with {question.against}.",
        f"```\npython {words}\n```",
    ]
    if bad:
        last = output.splitlines()[-1] if output else "no output"
        lines.append(f"**Failed** with exit code {bad}: {last}")
    else:
        lines += [
            _page(output),
            "\n".join(f"- {target.check(output)}" for target in question.targets),
        ]
    lines.append(f"Total time: {time.perf_counter() - began:.0f} s.")
    return not bad, "\n\n".join(filter(None, lines))


def _page(output: str) -> str:
    """Format the output as Markdown, with blank lines around tables."""
    kept = [line for line in output.splitlines() if "Warning" not in line]
    for i in range(len(kept) - 1, 0, -1):
        if kept[i].startswith("|") != kept[i - 1].startswith("|"):
            kept.insert(i, "")
    return "\n".join(kept)


def machine() -> str:
    """Describe the date, hardware and versions."""
    found = versions(PACKAGES)
    if (spec := importlib.util.find_spec("detectron2")) and spec.origin:  # has no metadata
        version = re.search(r"__version__ = \"(.+)\"", Path(spec.origin).read_text())
        found.append(f"detectron2 {version[1] if version else 'unknown'}")
    cpu = platform.processor()
    try:
        text = Path("/proc/cpuinfo").read_text()
        cpu = re.search(r"model name\s*: (.*)", text)[1]
    except (OSError, TypeError):
        pass
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    load = f"load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return (
        f"{datetime.date.today()}; {cpu}, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}, "
        f"{load}; Python {platform.python_version()}, {', '.join(found)}."
    )


def main(argv=None) -> int:
    p = Parser(description=__doc__)
    p.add_argument("--full", action="store_true", help="use the sizes of docs/development/speed.md")
    p.add_argument(
        "--only",
        nargs="+",
        choices=QUESTIONS,
        metavar="NAME",
        help=f"benchmarks to run, out of {', '.join(QUESTIONS)} (default: all)",
    )
    p.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        default=ROOT / "benchmarks/RESULTS.md",
        help="page to write",
    )
    args = p.parse_args(argv)
    command = "python benchmarks/run.py" + " --full" * args.full
    parts = [
        "# Speed",
        f"Generated by `{command}`. Do not edit. [Speed](../docs/development/speed.md) explains "
        "the numbers and their limits.",
        machine(),
    ]
    failed = []
    for name in args.only or QUESTIONS:
        question = QUESTIONS[name]
        print(f"{question.title} ...", flush=True)
        ran, section = answer(question, question.full if args.full else question.quick)
        print("\n".join(section.splitlines()[2:]), flush=True)
        failed += [] if ran else [name]
        with atomic(args.output) as temporary:  # after each benchmark, in case of an interruption
            parts.append(section)
            temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
