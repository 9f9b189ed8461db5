"""Report a model's AP or mIoU under common corruptions: conditions, mPC, rPC, a table and a figure.

mPC, the mean performance under corruption, is the mean over kinds of the mean over severities. rPC
is mPC relative to the performance on clean images (Michaelis et al. 2019, arXiv 1907.07484).
"""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from tabulate import tabulate

from robust_backbones.core.detector_tasks import TASKS
from robust_backbones.core.figures import new_figure, save_figure
from robust_backbones.core.files import atomic
from robust_backbones.core.images import Decoding
from robust_backbones.corruptions import KINDS, SEVERITIES, corrupt
from robust_backbones.detection.data.loader import seed_from
from robust_backbones.detection.data.mapper import check_image_size, decoding_of, read_image
from robust_backbones.detection.robustness.grid import CLEAN, Condition, common_tasks, format_ap


def conditions(cfg: CfgNode, kinds: list[str], severities: list[int], seed: int) -> list[Condition]:
    """Return the clean condition, and one condition for each corruption at each severity.

    Images are corrupted at their original size, then resized as in evaluation. Random numbers
    depend on the seed, the index of the image in its dataset, the corruption and the severity.

    Args:
        cfg: configuration of the detector.
        kinds: corruptions, each one of `KINDS`.
        severities: severities, each one of `SEVERITIES`.
        seed: seed for corruptions with random numbers.
    """
    resize = T.AugmentationList(detection_utils.build_augmentation(cfg, is_train=False))
    load = partial(_load, resize, decoding_of(cfg), cfg.INPUT.FORMAT, seed)
    rows = [Condition(CLEAN, partial(load, None, 0))]
    for kind in kinds:
        for severity in severities:
            facts = {"corruption": kind, "severity": severity}
            rows.append(Condition(f"{kind} {severity}", partial(load, kind, severity), facts=facts))
    return rows


def _load(
    resize: Any,
    decoding: Decoding,
    channels: str,
    seed: int,
    kind: str | None,
    severity: int,
    index: int,
    item: dict,
) -> dict:
    """Corrupt an image, and prepare it as Detectron2's `DatasetMapper` does for evaluation."""
    image = read_image(item["file_name"], decoding)
    check_image_size(item, image)
    if kind is not None:
        image_seed = seed_from(seed, index, KINDS.index(kind), severity)
        image = corrupt(image, kind, severity, image_seed)
    if channels == "BGR":
        image = image[:, :, ::-1]
    augmented = T.AugInput(image)
    resize(augmented)
    pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
    rest = {key: value for key, value in item.items() if key != "annotations"}
    return rest | {"image": torch.as_tensor(pixels)}


def summary(rows: dict[str, dict]) -> dict:
    """Compute the metrics of the result file.

    Args:
        rows: output of `measure_all`, with the clean condition.

    Returns:
        A dictionary with these keys:

        - `corruptions`: the rows.
        - `by_corruption`: means over severities, `{kind: {task: {metric: percent}}}`.
        - `mPC`, `rPC`: mPC and rPC, `{task: {metric: percent}}`.
        - `complete`: whether all kinds and severities were measured, as in published numbers.

        Metrics without ground truth are None. rPC is None if the clean AP is 0.
    """
    corrupted = [row for name, row in rows.items() if name != CLEAN]
    kinds = list(dict.fromkeys(row["corruption"] for row in corrupted))
    by_kind = {
        kind: _means([row for row in corrupted if row["corruption"] == kind], common_tasks(rows))
        for kind in kinds
    }
    mpc = _means(list(by_kind.values()), common_tasks(rows))
    rpc = {
        task: {metric: _share(value, rows[CLEAN][task][metric]) for metric, value in means.items()}
        for task, means in mpc.items()
    }
    measured = {(row["corruption"], row["severity"]) for row in corrupted}
    return {
        "corruptions": rows,
        "by_corruption": by_kind,
        "mPC": mpc,
        "rPC": rpc,
        "complete": measured == {(kind, severity) for kind in KINDS for severity in SEVERITIES},
    }


def _means(rows: list[dict], tasks: list[str]) -> dict:
    """Return the mean of each metric over the rows, `{task: {metric: mean}}`."""
    return {
        task: {metric: _mean([row[task][metric] for row in rows]) for metric in rows[0][task]}
        for task in tasks
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(values) if len(known) == len(values) else None


def _share(value: float | None, clean: float | None) -> float | None:
    return 100 * value / clean if value is not None and clean else None


def table(found: dict) -> str:
    """Format the main metric of all conditions, means over severities, mPC and rPC as aligned text.

    Each task has its own table.

    Args:
        found: output of `summary`.
    """
    texts = []
    for task in found["mPC"]:
        main = TASKS[task].main
        severities = sorted(
            {r["severity"] for r in found["corruptions"].values() if "severity" in r}
        )
        lines = [
            [
                kind,
                *(format_ap(found["corruptions"][f"{kind} {s}"][task][main]) for s in severities),
                format_ap(means[task][main]),
            ]
            for kind, means in found["by_corruption"].items()
        ]
        empty = [""] * len(severities)
        for name, value in (
            ("clean", found["corruptions"][CLEAN]),
            ("mPC", found["mPC"]),
            ("rPC, % of clean", found["rPC"]),
        ):
            lines.append([name, *empty, format_ap(value[task][main])])
        header = [TASKS[task].title, *(f"severity {s}" for s in severities), "mean"]
        align = ("left", *["right"] * (len(header) - 1))
        texts.append(tabulate(lines, header, disable_numparse=True, colalign=align))
    return "\n\n".join(texts)


def write_csv(found: dict, path: Path) -> None:
    """Write all metrics as CSV, with one row for clean images and one row for each corruption."""
    rows = found["corruptions"]
    columns = [(task, metric) for task in found["mPC"] for metric in rows[CLEAN][task]]
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["corruption", "severity", *(TASKS[t].prefix + m for t, m in columns)])
        for name, row in rows.items():
            values = ["" if row[t][m] is None else f"{row[t][m]:.4f}" for t, m in columns]
            writer.writerow([row.get("corruption", name), row.get("severity", 0), *values])


def draw(found: dict, path: Path) -> None:
    """Draw the mean of each corruption as a bar and each severity as a dot, as PNG."""
    kinds, tasks, rows = list(found["by_corruption"]), list(found["mPC"]), found["corruptions"]
    figure = new_figure(5 * len(tasks), 1.5 + 0.3 * len(kinds))
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        main = TASKS[task].main
        means = [found["by_corruption"][kind][task][main] or 0 for kind in kinds]
        axes.barh(kinds, means, color="C0", alpha=0.5, label="mean over severities")
        dots = [
            (row[task][main] or 0, row["corruption"], row["severity"])
            for name, row in rows.items()
            if name != CLEAN
        ]
        values, names, severities = zip(*dots, strict=True)
        axes.scatter(values, names, c=severities, cmap="viridis", s=12, zorder=3)
        axes.axvline(rows[CLEAN][task][main] or 0, color="black", ls=":", label="clean")
        axes.axvline(found["mPC"][task][main] or 0, color="C3", label="mPC")
        axes.set(xlabel=f"{TASKS[task].title}, percent (dots: severities, dark to light)")
        axes.invert_yaxis()
        axes.legend(fontsize="small")
    save_figure(figure, path)
