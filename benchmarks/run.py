"""Every question of speed, one after the other -> benchmarks/RESULTS.md.

python benchmarks/run.py                      # quick form, about ten minutes on two idle cores
python benchmarks/run.py --full               # the sizes of docs/SPEED.md, hours
python benchmarks/run.py --only probe growth

A benchmark that fails, or lacks a package, is named as such; the others go on, and the exit code
is 1. Medians and ratios are the benchmarks' own; what is read out of their tables here is whether
the aim is met.
"""

import argparse
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from robust_backbones.core.files import atomic  # noqa: E402

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "robustness", "pycocotools", "Pillow")


@dataclass(frozen=True)
class Aim:
    """What a number of the tables should be.

    Attributes:
        column: its heading.
        rows: texts; each is part of a cell of the rows that are meant.
        least: it is to be at least this; or
        most: at most this.
        best: one such row is enough; else all must.
    """

    column: str
    rows: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    best: bool = False

    def judge(self, output: str) -> str:
        """A sentence: the number, the aim, whether it is met."""
        found = numbers(output, self.column, self.rows)
        if not found:
            return f"no number of column '{self.column}' in this run"
        worst = min if (self.most is None) != self.best else max
        value, bound = worst(found), self.most if self.least is None else self.least
        met = value <= bound if self.least is None else value >= bound
        which = f"{' '.join(self.rows) or 'all rows'}: {'best' if self.best else 'worst'}"
        limit = f"aim at {'most' if self.least is None else 'least'} {bound:g}"
        return f"{self.column}, {which} {value:g}, {limit}: {'met' if met else '**missed**'}"


@dataclass(frozen=True)
class Question:
    """A row of the table of questions: the benchmark's words, `{folder}` is a temporary one."""

    title: str
    against: str
    quick: str
    full: str
    aims: tuple[Aim, ...] = ()
    before: str = ""


PRETRAINED = (
    "-m classification.pretrain --dataset textures --arch resnet18 --eps 0 --epochs 1 "
    "--limit 300 --output {folder}/pretrained"
)
QUESTIONS = {
    "step": Question(
        "Adversarial training step, equal adversary",
        "`robustness` library",
        "benchmarks/adversarial_step.py --arch resnet18 --size 32 --repeats 5 --use-best yes "
        "--sides pretrain",
        "benchmarks/adversarial_step.py --sides channels_last pretrain",
        (Aim("times faster", ("pretrain",), least=1.0),),
    ),
    "accuracy": Question(
        "Time to a given robust accuracy, digits",
        "`robustness` library, PGD",
        "benchmarks/time_to_accuracy.py --limit 600 --targets 40 60 --limit-seconds 100",
        "benchmarks/time_to_accuracy.py",
        tuple(
            Aim("times faster", (f"{target} %", "yes"), least=3, best=True) for target in (40, 60)
        ),
    ),
    "transfer": Question(
        "Clean fixed-feature transfer, whole task",
        "the reference recipe",
        "benchmarks/fixed_feature.py --weights {folder}/pretrained/checkpoint.pt --limit 120 "
        "--test-limit 60 --epochs 150",
        "benchmarks/fixed_feature.py --weights {folder}/pretrained/checkpoint.pt",
        (Aim("times faster", ("--protocol clean",), least=100),),
        PRETRAINED,
    ),
    "probe": Question(
        "Probe, a path of 45 penalties",
        "scikit-learn",
        "benchmarks/probe.py --images 1500 --features 512 --classes 10 --tol --limit 120",
        "benchmarks/probe.py --features 512 2048 --classes 10 100",
        (Aim("times ours", ("of objective",), least=5),),
    ),
    "images": Question(
        "Image input",
        "torchvision's ImageFolder with Pillow",
        "benchmarks/decoding.py --images 32 --repeats 3",
        "benchmarks/decoding.py",
        (Aim("times torchvision", ("ours, fast",), least=2),),
    ),
    "detector": Question(
        "Detector, training step and inference",
        "plain Detectron2",
        "benchmarks/detector_step.py --size 320 --batch 1 --repeats 3 --freeze-at 2",
        "benchmarks/detector_step.py",
        (
            Aim("times faster", ("step", "ours"), least=1.2),
            Aim("times faster", ("inference", "ours"), least=1.2),
        ),
    ),
    "coco": Question(
        "COCO evaluation",
        "pycocotools",
        "benchmarks/coco_evaluation.py --images 1000 --detections 7200 --repeats 2",
        "benchmarks/coco_evaluation.py",
        (Aim("times faster", ("ours",), least=20),),
    ),
    "conversion": Question(
        "Conversion, load to verified file",
        "the steps of Detectron2's script, unverified",
        "benchmarks/conversion.py --repeats 3",
        "benchmarks/conversion.py --repeats 7",
        (
            Aim("times faster", ("ours, verified",), least=1),
            Aim("times less", ("ours, verified",), least=1),
        ),
    ),
    "start_up": Question(
        "Start-up: --help, mistakes",
        "1.5 s",
        "benchmarks/start_up.py --repeats 3",
        "benchmarks/start_up.py --repeats 7",
        (Aim("aim / s", least=1),),
    ),
    "growth": Question(
        "Growth over a factor of ten",
        "own sizes",
        "benchmarks/growth.py",
        "benchmarks/growth.py --scale 4 --repeats 3",
        (Aim("exponent", most=1.1), Aim("its exponent", most=1.1)),
    ),
    "verdicts": Question(
        "Verdicts on simulated studies with a known truth",
        "error rates of at most 5 %",
        "benchmarks/verdicts.py --smoke",
        "benchmarks/verdicts.py",
        (Aim("bounds missed", most=0),),
    ),
    "roofline": Question(
        "Roofline",
        "a matrix product on this machine",
        "benchmarks/roofline.py --repeats 3",
        "benchmarks/roofline.py --repeats 9",
    ),
}


def numbers(output: str, column: str, rows: tuple[str, ...]) -> list[float]:
    """Of all Markdown tables that have the column: its numbers in the rows that are meant."""
    found, head = [], []
    for line in output.splitlines():
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in line.strip("|\n").split("|")]
        head = head or cells
        meant = all(any(text in cell for cell in cells) for text in rows)
        if column in head and cells != head and meant:
            number = re.search(r"\d+(\.\d+)?", cells[head.index(column)])
            found += [float(number[0])] if number else []
    return found


def start(words: str, folder: str) -> tuple[int, str]:
    """Run Python; its exit code, and what it said, errors only where it failed."""
    given = shlex.split(words.replace("{folder}", folder))
    done = subprocess.run([sys.executable, *given], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, (done.stderr if done.returncode else done.stdout).strip()


def answer(question: Question, words: str) -> tuple[bool, str]:
    """Whether it ran, and its section of the page."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bad, output = start(question.before, folder) if question.before else (0, "")
        if not bad:
            bad, output = start(words, folder)
    lines = [f"## {question.title}", f"Against {question.against}.", f"```\npython {words}\n```"]
    if bad:
        last = output.splitlines()[-1] if output else "it said nothing"
        lines.append(f"**Failed** with exit code {bad}: {last}")
    else:
        lines += [_page(output), "\n".join(f"- {aim.judge(output)}" for aim in question.aims)]
    lines.append(f"{time.perf_counter() - began:.0f} s in all.")
    return not bad, "\n\n".join(filter(None, lines))


def _page(output: str) -> str:
    """The output as Markdown: tables stand apart from the lines around them."""
    kept = [line for line in output.splitlines() if "Warning" not in line]
    for i in range(len(kept) - 1, 0, -1):
        if kept[i].startswith("|") != kept[i - 1].startswith("|"):
            kept.insert(i, "")
    return "\n".join(kept)


def machine() -> str:
    """What the figures depend on."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    if (spec := importlib.util.find_spec("detectron2")) and spec.origin:  # files, no package
        found += re.findall(r"__version__ = \"(.+)\"", Path(spec.origin).read_text())
        found[-1] = f"detectron2 {found[-1]}"
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
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--full", action="store_true", help="the sizes of docs/SPEED.md")
    p.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS), help="these")
    p.add_argument("--out", type=Path, default=ROOT / "benchmarks/RESULTS.md", help="page to write")
    args = p.parse_args(argv)
    command = "python benchmarks/run.py" + " --full" * args.full
    parts = [
        "# Speed",
        f"Made by `{command}`; do not edit. [SPEED.md](../docs/SPEED.md) has what "
        "the figures mean and where the limits are.",
        machine(),
    ]
    failed = []
    for name in args.only:
        question = QUESTIONS[name]
        print(f"{question.title} ...", flush=True)
        ran, section = answer(question, question.full if args.full else question.quick)
        print("\n".join(section.splitlines()[2:]), flush=True)
        failed += [] if ran else [name]
        with atomic(args.out) as temporary:  # after each, so that a stop loses none
            parts.append(section)
            temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
