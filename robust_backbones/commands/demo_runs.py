"""The runs of the demo, their commands and their table."""

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import robust_backbones

CONFIG = "configs/digits_mask_rcnn_robust.yaml"
DATASET = "digit_scenes_val"
PRETRAININGS = {"standard": "0", "robust": "1.0"}  # L2 eps of the pretraining, by name
EVAL_EPS = "1.0"
STAGES = ("pretrain", "convert", "detect")


@dataclass
class Run:
    """One pretraining run and the runs that use its weights.

    Attributes:
        name: name of the pretraining, a key of `PRETRAININGS`.
        folder: folder of the outputs.
        commands: arguments of `python` for each stage, `{stage: arguments}`.
        seconds: duration of each finished stage in seconds, `{stage: duration}`.
    """

    name: str
    folder: Path
    commands: dict[str, list[str]]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def pretrained(self) -> dict:
        """Contents of the pretraining's result file."""
        return read_json(self.folder / "pretrain/result.json")

    @property
    def detected(self) -> dict:
        """Metrics of the detector, `{task: {metric: percent}}`."""
        return read_json(self.folder / "detector/result.json")["metrics"][DATASET]


def plan(output: Path) -> list[Run]:
    """Return the runs with their commands. Users can also run these commands by hand."""
    runs = []
    for name, eps in PRETRAININGS.items():
        folder = output / name
        pretrain, backbone = folder / "pretrain", folder / "backbone.pth"
        commands = {
            "pretrain": [
                *("-m", "classification.pretrain", "--arch", "resnet18", "--dataset", "digits"),
                *("--constraint", "l2", "--eps", eps, "--eval-eps", EVAL_EPS),
                *("--output", str(pretrain), "--resume"),
            ],
            "convert": [
                *("-m", "robust_backbones", "convert"),
                *(str(pretrain / "checkpoint.pt"), str(backbone), "--force"),
            ],
            "detect": [
                *("-m", "robust_backbones", "train", "--config", CONFIG, "--resume"),
                *("MODEL.WEIGHTS", str(backbone), "OUTPUT_DIR", str(folder / "detector")),
            ],
        }
        runs.append(Run(name, folder, commands))
    return runs


def execute(run: Run, stage: str, number: str) -> None:
    """Run the command of a stage. Write its output to a log and its progress to the terminal.

    Args:
        run: run to which the stage belongs.
        stage: stage to run, one of `STAGES`.
        number: position of the stage in the demo, such as `1/6`.
    """
    log = run.folder / f"{stage}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"[{number}] {run.name}: {stage}", flush=True)
    started = time.perf_counter()
    # With this folder in PYTHONPATH, the commands of a clone work without installation.
    packages = str(Path(robust_backbones.__file__).parents[1])
    path = os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")]))
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, *run.commands[stage]],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        assert process.stdout
        for line in process.stdout:
            file.write(line)
            if shown := _progress(line):
                print(f"      {shown}", flush=True)
    run.seconds[stage] = time.perf_counter() - started
    if process.wait():
        print(f"error: this command failed, see {log}:", file=sys.stderr)
        print(f"  {command_line(run.commands[stage])}", file=sys.stderr)
        sys.exit(1)


def _progress(line: str) -> str | None:
    """Return the part of an output line that shows progress, or None."""
    line = line.rstrip()
    if line.startswith(("epoch", "clean", "verified", "error", "No GPU")) or "finished" in line:
        return line
    if "  iter: " in line and "total_loss" in line:
        parts = (part.strip() for part in line.split("  "))
        return " ".join(part for part in parts if part.startswith(("eta", "iter", "total_loss")))
    return None


def command_line(command: list[str]) -> str:
    """Return a command as a user would type it in a shell."""
    return "python " + shlex.join(command)


def read_json(path: Path) -> dict:
    """Return the contents of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def table(runs: list[Run]) -> list[list[str]]:
    """Return the table of results: a header, and one row for each run."""
    header = ["pretraining", "clean accuracy, %", "robust accuracy, %", "box AP", "mask AP"]
    rows = [[*header, *(f"{stage}, s" for stage in STAGES)]]
    for run in runs:
        metrics = run.pretrained["metrics"]
        values = (
            *(metrics["clean_top1"], metrics["robust_top1"]),
            *(run.detected["bbox"]["AP"], run.detected["segm"]["AP"]),
        )
        seconds = (f"{run.seconds[stage]:.0f}" for stage in STAGES)
        rows.append([run.name, *(f"{value:.1f}" for value in values), *seconds])
    return rows


def print_table(rows: list[list[str]]) -> None:
    """Print a table with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
