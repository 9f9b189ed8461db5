"""Write the page of the demo, and the picture of its first scenes."""

import base64
import io
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from robust_backbones.commands.demo_runs import (
    ATTACKED,
    DATASET,
    SEGMENTATION_DATASET,
    SEGMENTATION_EPS,
    Network,
    Stage,
)
from robust_backbones.core import pages
from robust_backbones.core.eps import show_eps
from robust_backbones.core.figures import new_figure, svg_element
from robust_backbones.core.files import atomic, read_json
from robust_backbones.core.picture_grid import arrange

SHEET = 2  # number of scenes in the picture
COLORS = ("#0072b2", "#d55e00")  # of the networks in the figures
NEXT_STEPS = {  # what to do next: command
    "Would a robust backbone transfer better to your images? Give a folder that contains one "
    "folder of images for each class. The command prints its cost before it starts.": (
        "robust-backbones compare /data/my_photos"
    ),
    "Ask the same question about detectors, with boxes in COCO's format (or voc:..., yolo:...):": (
        "robust-backbones compare cells=coco:/data/cells/images:/data/cells/train.json "
        "--test cells_val=coco:/data/cells/images:/data/cells/val.json"
    ),
    "Train a detector on a published robust ResNet-50:": (
        "robust-backbones train --config configs/coco_mask_rcnn_robust_eps3_1x.yaml --num-gpus 8"
    ),
    "List the published models:": "robust-backbones zoo list",
}


@dataclass(frozen=True)
class Numbers:
    """Results of one network.

    Attributes:
        network: network that was measured.
        pretrained, detected: contents of the result files of the pretraining and the detector.
        segmented, attacked: contents of the result files of semantic segmentation, and of the
            attack on it; None: not run.
    """

    network: Network
    pretrained: dict
    detected: dict
    segmented: dict | None = None
    attacked: dict | None = None

    @property
    def accuracies(self) -> tuple[float, float]:
        """Clean and robust accuracy on the test digits, percent."""
        metrics = self.pretrained["metrics"]
        return metrics["clean_top1"], metrics["robust_top1"]

    @property
    def aps(self) -> tuple[float, float]:
        """Box AP and mask AP, percent."""
        metrics = self.detected["metrics"][DATASET]
        return metrics["bbox"]["AP"], metrics["segm"]["AP"]

    @property
    def mean_ious(self) -> tuple[float, ...]:
        """mIoU on all scenes, on the attacked scenes, and under attack, percent. Empty: not run."""
        if self.segmented is None or self.attacked is None:
            return ()
        attacks = self.attacked["metrics"]["attacks"]
        rows = (
            self.segmented["metrics"][SEGMENTATION_DATASET],
            attacks["clean"],
            attacks[f"eps {SEGMENTATION_EPS}"],
        )
        return tuple(row["sem_seg"]["mIoU"] for row in rows)


def read_numbers(networks: list[Network]) -> list[Numbers]:
    """Read the results of all networks."""
    return [
        Numbers(
            network,
            read_json(network.pretraining / "result.json"),
            read_json(network.detector / "result.json"),
            *(
                read_json(path) if path.exists() else None
                for path in (network.segmenter / "result.json", network.attack)
            ),
        )
        for network in networks
    ]


def table(found: list[Numbers]) -> list[list[str]]:
    """Return the table of results: a header, and one row for each network."""
    header = ["pretraining", "clean accuracy, %", "robust accuracy, %", "box AP", "mask AP"]
    segmented = ["mIoU", f"mIoU, {ATTACKED} scenes", f"mIoU, {ATTACKED} attacked scenes"]
    rows = [[*header, *(segmented if all(one.mean_ious for one in found) else ())]]
    for one in found:
        values = (*one.accuracies, *one.aps, *one.mean_ious)
        rows.append([one.network.name, *(f"{value:.1f}" for value in values[: len(rows[0]) - 1])])
    return rows


def read_answers(report: Path) -> list[dict[str, Any]]:
    """Read the answers of a report folder, as `Answer.json` of `classification.report` has them."""
    return read_json(report / "report.json")["answers"]


def attack_name(attack: dict) -> str:
    """Describe a PGD attack from the settings of a result: steps, norm and radius."""
    constraint = {"l2": "L2", "linf": "L-infinity"}[attack["constraint"]]
    eps = show_eps(attack["constraint"], attack["eps"])
    return f"PGD, {attack['steps']} steps, {constraint} eps {eps}"


def write_page(found: list[Numbers], stages: list[Stage], output: Path) -> Path:
    """Write one HTML page without external references, and return its path."""
    header, *rows = table(found)
    scenes, masks = (read_scenes(output / name / "pictures") for name in ("scenes", "masks"))
    titles = ["truth", *(f"{one.network.name} backbone" for one in found)]
    _save_sheet(arrange(scenes[:SHEET], titles), output / "scenes.png")
    robust = found[-1].pretrained["settings"]
    report = output / "compare/report"
    return pages.write(
        output / "index.html",
        Path(__file__).with_name("demo.html.jinja"),
        header=header,
        rows=rows,
        figures=[draw(found) for draw in (_draw_accuracies, _draw_pretraining, _draw_losses)],
        colors={one.network.name: color for one, color in zip(found, COLORS, strict=True)},
        titles=titles,
        scenes=[[_data_url(picture) for picture in row] for row in scenes],
        masks=[[_data_url(picture) for picture in row] for row in masks],
        segmentation_eps=SEGMENTATION_EPS,
        training=attack_name(robust),
        evaluation=attack_name(robust["evaluation"]),
        answers=read_answers(report),
        report=(report / "index.html").relative_to(output).as_posix(),
        next_steps={text: wrap(command) for text, command in NEXT_STEPS.items()},
        commands={stage.name: wrap(stage.command) for stage in stages},
        hardware=found[0].pretrained["hardware"],
    )


def wrap(command: str, width: int = 76) -> str:
    """Break a shell command into lines that end in a backslash. A shell reads it unchanged.

    Lines begin with an option or a config key, which stays next to its values.

    Args:
        command: command in one line.
        width: length in characters that lines of several words do not exceed.
    """
    groups: list[str] = []
    for word in command.split(" "):
        if not groups or word.startswith("--") or word.partition(".")[0].isupper():
            groups.append(word)
        else:
            groups[-1] += f" {word}"
    units = [[group] if len(group) < width - 5 else group.split(" ") for group in groups]
    first, *rest = itertools.chain.from_iterable(units)
    lines = [first]
    for unit in rest:
        if len(lines[-1]) + len(unit) + 3 > width:
            lines.append(f"    {unit}")
        else:
            lines[-1] += f" {unit}"
    return " \\\n".join(lines)


def read_scenes(folder: Path) -> list[list[np.ndarray]]:
    """Read the pictures of `visualize`: for each image the truth, then the predictions."""
    files = sorted(folder.glob("*.png"))  # <index>_<name>_<position>.png
    groups = itertools.groupby(files, lambda file: file.stem.rpartition("_")[0])
    return [[np.asarray(Image.open(file).convert("RGB")) for file in row] for _, row in groups]


def _data_url(picture: np.ndarray) -> str:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="jpeg", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _save_sheet(pixels: np.ndarray, path: Path) -> None:
    """Save a PNG that is small enough for a README."""
    sheet = Image.fromarray(pixels)
    sheet.thumbnail((1080, 1080))
    with atomic(path) as temporary:
        sheet.quantize(128).save(temporary, format="png", optimize=True)


def _draw_accuracies(found: list[Numbers]) -> str:
    """Draw clean and robust accuracies as bars, and return the plot as inline SVG."""
    figure, axes = _new_axes()
    images = found[0].pretrained["data"]["test"]["images"]
    for index, (one, color) in enumerate(zip(found, COLORS, strict=True)):
        places = np.arange(2) + 0.38 * (index - 0.5)
        bars = axes.bar(places, one.accuracies, width=0.36, color=color)
        axes.bar_label(bars, fmt="%.1f")
    attack = attack_name(found[-1].pretrained["settings"]["evaluation"])
    axes.set_xticks([0, 1], ["no attack", f"{attack}\n(norm, pixels in [0, 1])"])
    axes.set(title=f"Classifiers on {images} test digits", ylabel="accuracy, %", ylim=(0, 112))
    return _svg(figure)


def _draw_pretraining(found: list[Numbers]) -> str:
    """Draw the clean accuracy after each epoch, and return the plot as inline SVG."""
    figure, axes = _new_axes()
    for one, color in zip(found, COLORS, strict=True):
        epochs = _lines(one.network.pretraining / "metrics.jsonl")
        axes.plot(
            [e["epoch"] for e in epochs], [e["clean_top1"] for e in epochs], "o-", color=color
        )
    axes.set(title="Pretraining of the classifiers", xlabel="epoch", ylim=(0, 104))
    axes.set(ylabel="clean test accuracy, %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return _svg(figure)


def _draw_losses(found: list[Numbers]) -> str:
    """Draw the losses of the detectors, and return the plot as inline SVG."""
    figure, axes = _new_axes()
    for one, color in zip(found, COLORS, strict=True):
        steps = _lines(one.network.detector / "metrics.json")
        # A resumed run contains some iterations twice. Use the later record.
        losses = {s["iteration"]: s["total_loss"] for s in steps if "total_loss" in s}
        axes.plot(*zip(*sorted(losses.items()), strict=True), color=color)
    batch = found[0].detected["settings"]["SOLVER"]["IMS_PER_BATCH"]
    axes.set(title="Training of Mask R-CNN", xlabel=f"iteration of {batch} scenes")
    axes.set(ylabel="total training loss")
    axes.set_ylim(bottom=0)
    return _svg(figure)


def _new_axes() -> tuple[Any, Any]:
    figure = new_figure(4.6, 3.4)
    figure.patch.set_visible(False)
    axes = figure.subplots()
    axes.set(facecolor="none", axisbelow=True)
    axes.grid(alpha=0.3)
    return figure, axes


def _svg(figure: Any) -> str:
    return svg_element(figure).replace("#000000", "currentColor")


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
