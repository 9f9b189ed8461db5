"""Evaluate a detector on corrupted images and write the results."""

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from robust_backbones import arithmetic, corruptions
from robust_backbones.core.errors import counted
from robust_backbones.core.files import claimed
from robust_backbones.detection import compat, launch
from robust_backbones.detection.robustness import corruption_report, grid


def start(gpus: int, *arguments: Any, **options: Any) -> None:
    """Evaluate in one process per GPU. For the other arguments, see `evaluate`."""
    launch.evaluate(partial(evaluate, *arguments, **options), gpus)


def evaluate(
    config: str,
    overrides: list[str],
    output: Path | None,
    *,
    dataset: str | None,
    kinds: list[str] | None,
    severities: list[int],
    images: int | None,
    batch_size: int,
    seed: int,
) -> None:
    """Measure AP on clean images and for each corruption. Continue an interrupted evaluation.

    In a process group, each process measures its share of the images.

    Args:
        config: config file of the detector.
        overrides: changes to the config, `KEY VALUE` pairs in a flat list.
        output: folder for the results; None for `OUTPUT_DIR/corruptions`.
        dataset: registered or custom dataset; None for `DATASETS.TEST`.
        kinds: names of corruptions, or of groups in `corruptions.GROUPS`; None for all corruptions.
        severities: severities to evaluate, integers from 1 to 5.
        images: number of random images of the test set; None for all images.
        batch_size: number of images in a batch.
        seed: random seed for the choice of images and for the corruptions.

    Raises:
        UserError: an option, the config, the weights or the dataset is invalid, or the package for
            corruptions is not installed.
    """
    package = f"{corruptions.PACKAGE} {corruptions.package_version()}"
    chosen = corruptions.choose(kinds)
    compat.silence_detectron2()
    arithmetic.set_tf32(False)
    target = grid.find_target(config, overrides, dataset, images, seed)
    output = output or Path(target.cfg.OUTPUT_DIR, "corruptions")
    settings = target.settings(package=package, batch_size=batch_size, seed=seed)
    plan = corruption_report.conditions(target.cfg, chosen, severities, seed)
    with claimed(output) if comm.is_main_process() else contextlib.nullcontext():
        rows = grid.measure_all(target, plan, settings, output, batch_size)
        if not comm.is_main_process():
            return
        metrics = corruption_report.summary(rows)
        print(corruption_report.table(metrics))
        corruption_report.write_csv(metrics, output / "table.csv")
        corruption_report.draw(metrics, output / "figure.png")
        target.write_result(
            output,
            kind="detection-corruptions",
            metrics=metrics,
            settings=settings | {"corruptions": chosen, "severities": severities},
            seed=seed,
            seconds=sum(row["seconds"] for row in rows.values()),
            warnings=None,
        )
    if not metrics["complete"]:
        print(
            "mPC and rPC cover only the chosen corruptions and severities. Do not compare them "
            "with published values, which cover all."
        )
    print(f"{counted(len(target.items), 'image', 'images')} -> {output}")
