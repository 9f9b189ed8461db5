"""Write the page of the demo: table, curves, pictures and commands."""

import base64
import io
import json
from pathlib import Path

from PIL import Image

from robust_backbones.commands.demo_runs import CONFIG, DATASET, Run, command_line, table
from robust_backbones.core import pages, results
from robust_backbones.core.figures import new_figure, svg_element
from robust_backbones.detection import compat, config
from robust_backbones.detection.inspect import visualize

PICTURES = 6


def write_page(runs: list[Run], output: Path) -> Path:
    """Write one HTML page without external references, and return its path."""
    header, *rows = table(runs)
    return pages.write(
        output / "index.html",
        Path(__file__).with_name("demo.html.jinja"),
        header=header,
        rows=rows,
        curves=_curves(runs),
        pictures={run.name: _pictures(run) for run in runs},
        commands=[command_line(command) for run in runs for command in run.commands.values()],
        attack=runs[0].pretrained["settings"]["evaluation"],
        hardware=results.hardware(),
    )


def _curves(runs: list[Run]) -> str:
    """Draw the losses of pretraining and detector training, and return the plot as inline SVG."""
    figure = new_figure(9, 3)
    left, right = figure.subplots(1, 2)
    for run in runs:
        epochs = _lines(run.folder / "pretrain/metrics.jsonl")
        left.plot([e["epoch"] for e in epochs], [e["train_loss"] for e in epochs], label=run.name)
        steps = _lines(run.folder / "detector/metrics.json")
        # A resumed run contains some iterations twice. Use the later record.
        losses = {s["iteration"]: s["total_loss"] for s in steps if "total_loss" in s}
        right.plot(*zip(*sorted(losses.items()), strict=True), label=run.name)
    left.set(xlabel="epoch", ylabel="loss under attack", title="pretraining", xticks=range(1, 5))
    right.set(xlabel="iteration", ylabel="total loss", title="Mask R-CNN", ylim=(0, None))
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    return svg_element(figure)


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _pictures(run: Run) -> list[str]:
    """Return drawings of scenes with annotations and detections, as data URLs."""
    compat.silence_detectron2()
    weights = run.folder / "detector/model_final.pth"
    cfg = config.load_config(CONFIG, ["MODEL.WEIGHTS", str(weights)])
    config.set_device(cfg, 1)
    urls = []
    for pixels in visualize.truth_and_prediction(cfg, DATASET, PICTURES):
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, format="png", optimize=True)
        urls.append("data:image/png;base64," + base64.b64encode(data.getvalue()).decode())
    return urls
