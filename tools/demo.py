#!/usr/bin/env python
"""The whole path on the embedded data: pretrain, convert, detect; standard against robust.

python tools/demo.py

Writes output/demo/index.html. Stages that are finished are skipped, so it can be run again.
"""

import base64
import io
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a clone works uninstalled

from robust_backbones.core import pages, results  # noqa: E402
from robust_backbones.core.cli import Parser  # noqa: E402
from robust_backbones.core.errors import user_errors  # noqa: E402
from robust_backbones.core.figures import new_figure, svg_element  # noqa: E402

CONFIG = "configs/digits_mask_rcnn_robust.yaml"
DATASET = "digit_scenes_val"
KINDS = {"standard": "0", "robust": "1.0"}  # name -> --eps of the pretraining, L2
EVAL_EPS = "1.0"
PICTURES = 6


@dataclass
class Run:
    """One kind of pretraining on its way through the stages."""

    kind: str
    folder: Path
    commands: dict[str, list[str]]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def pretrained(self) -> dict:
        return _json(self.folder / "pretrain/result.json")["metrics"]

    @property
    def detected(self) -> dict:
        return _json(self.folder / "detector/result.json")["metrics"][DATASET]


def plan(output: Path) -> list[Run]:
    """The commands, each of which also works by hand from the project's folder."""
    runs = []
    for kind, eps in KINDS.items():
        folder = output / kind
        pretrain, backbone = folder / "pretrain", folder / "backbone.pth"
        commands = {
            "pretrain": [
                *("-m", "classification.pretrain", "--arch", "resnet18", "--dataset", "digits"),
                *("--constraint", "l2", "--eps", eps, "--eval-eps", EVAL_EPS),
                *("--output", str(pretrain), "--resume"),
            ],
            "convert": [
                *("tools/convert.py", str(pretrain / "checkpoint.pt"), str(backbone), "--force")
            ],
            "detect": [
                *("tools/train_net.py", "--config", CONFIG, "--resume"),
                *("MODEL.WEIGHTS", str(backbone), "OUTPUT_DIR", str(folder / "detector")),
            ],
        }
        runs.append(Run(kind, folder, commands))
    return runs


def execute(run: Run, stage: str, number: str) -> None:
    """Run one command, its output in a log and its progress on the terminal."""
    log = run.folder / f"{stage}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"[{number}] {run.kind}: {stage}", flush=True)
    started = time.perf_counter()
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, *run.commands[stage]],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        for line in process.stdout:
            file.write(line)
            if shown := _progress(line):
                print(f"      {shown}", flush=True)
    run.seconds[stage] = time.perf_counter() - started
    if process.wait():
        print(f"error: this command failed; its output is in {log}:", file=sys.stderr)
        print(f"  {command_line(run.commands[stage])}", file=sys.stderr)
        sys.exit(1)


def _progress(line: str) -> str | None:
    """The part of a stage's output that tells a user how far it is."""
    line = line.rstrip()
    if line.startswith(("epoch", "clean", "verified", "error", "No GPU")) or "finished" in line:
        return line
    if "  iter: " in line and "total_loss" in line:
        fields = line.split("  ")
        keep = [f for f in fields if f.strip().startswith(("eta", "iter", "total_loss"))]
        return " ".join(part.strip() for part in keep)
    return None


def command_line(command: list[str]) -> str:
    return "python " + shlex.join(command)


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


COLUMNS = ("pretraining", "clean accuracy, %", "robust accuracy, %", "box AP", "mask AP")
STAGES = ("pretrain", "convert", "detect")


def table(runs: list[Run]) -> list[list[str]]:
    """Header and one row per run."""
    rows = [[*COLUMNS, *(f"{stage}, s" for stage in STAGES)]]
    for run in runs:
        numbers = (
            run.pretrained["clean_top1"],
            run.pretrained["robust_top1"],
            run.detected["bbox"]["AP"],
            run.detected["segm"]["AP"],
        )
        seconds = (f"{run.seconds[stage]:.0f}" for stage in STAGES)
        rows.append([run.kind, *(f"{number:.1f}" for number in numbers), *seconds])
    return rows


def print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def curves(runs: list[Run]) -> str:
    """Loss of the detectors and training accuracy of the classifiers, as inline SVG."""
    figure = new_figure(9, 3)
    left, right = figure.subplots(1, 2)
    for run in runs:
        epochs = _lines(run.folder / "pretrain/metrics.jsonl")
        left.plot([e["epoch"] for e in epochs], [e["train_loss"] for e in epochs], label=run.kind)
        steps = _lines(run.folder / "detector/metrics.json")
        # A resumed run wrote some iterations twice: the last counts.
        losses = {s["iteration"]: s["total_loss"] for s in steps if "total_loss" in s}
        right.plot(*zip(*sorted(losses.items()), strict=True), label=run.kind)
    left.set(
        xlabel="epoch", ylabel="loss under its attack", title="pretraining", xticks=range(1, 5)
    )
    right.set(xlabel="iteration", ylabel="total loss", title="Mask R-CNN", ylim=(0, None))
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    return svg_element(figure)


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pictures(run: Run) -> list[str]:
    """Scenes with truth and predictions, as data URLs."""
    from PIL import Image

    from robust_backbones.detection import compat, config
    from robust_backbones.detection.inspect import visualize

    compat.silence_detectron2()
    weights = run.folder / "detector/model_final.pth"
    cfg = config.load_config(ROOT / CONFIG, ["MODEL.WEIGHTS", str(weights)])
    config.set_device(cfg, 1)
    urls = []
    for pixels in visualize.truth_and_prediction(cfg, DATASET, PICTURES):
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, format="png", optimize=True)
        urls.append("data:image/png;base64," + base64.b64encode(data.getvalue()).decode())
    return urls


def write_page(runs: list[Run], output: Path) -> Path:
    """One HTML page without outside references."""
    return pages.write(
        output / "index.html",
        Path(__file__).with_name("demo.html.jinja"),
        header=table(runs)[0],
        rows=table(runs)[1:],
        curves=curves(runs),
        pictures={run.kind: pictures(run) for run in runs},
        commands=[command_line(command) for run in runs for command in run.commands.values()],
        attack=_json(runs[0].folder / "pretrain/result.json")["settings"]["evaluation"],
        hardware=results.hardware(),
    )


def main(argv=None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--output",
        default="output/demo",
        metavar="DIR",
        help="where to write (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    with user_errors():
        output = Path(args.output)
        started = time.perf_counter()
        runs = plan(output)
        total = len(runs) * len(STAGES)
        for i, run in enumerate(runs):
            for j, stage in enumerate(STAGES):
                execute(run, stage, f"{i * len(STAGES) + j + 1}/{total}")
        print()
        print_table(table(runs))
        page = write_page(runs, output)
        print(f"\n{page.resolve().as_uri()}  ({(time.perf_counter() - started) / 60:.1f} minutes)")


if __name__ == "__main__":
    main()
