"""Evaluate a detector or a segmenter under PGD and write the results."""

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from robust_backbones import arithmetic
from robust_backbones.core.eps import STEP_FACTOR
from robust_backbones.core.errors import UserError, counted
from robust_backbones.core.files import claimed
from robust_backbones.detection import compat, launch
from robust_backbones.detection.robustness import attack_report, grid
from robust_backbones.detection.robustness.attacked_models import DETECTORS, attacked_model


def start(gpus: int, *arguments: Any, **options: Any) -> None:
    """Evaluate in one process per GPU. For the other arguments, see `evaluate`."""
    launch.evaluate(partial(evaluate, *arguments, **options), gpus)


def evaluate(
    config: str,
    overrides: list[str],
    output: Path | None,
    *,
    dataset: str | None,
    constraint: str,
    radii: list[float],
    steps: int,
    step_size: float | None,
    losses: list[str] | None,
    restarts: int,
    images: int | None,
    pictures: int,
    batch_size: int,
    seed: int,
) -> None:
    """Measure AP or mIoU on clean images and at each radius. Continue an interrupted evaluation.

    In a process group, each process measures its share of the images.

    Args:
        config: config file of the detector.
        overrides: changes to the config, `KEY VALUE` pairs in a flat list.
        output: folder for the results; None for `OUTPUT_DIR/attack_<constraint>`.
        dataset: registered or custom dataset; None for `DATASETS.TEST`.
        constraint: norm of the perturbation, `"linf"` or `"l2"`.
        radii: perturbation radii, for images in [0, 1].
        steps: number of PGD steps.
        step_size: length of a step, in the unit of `radii`; None for `2.5 * eps / steps`.
        losses: losses to maximize, see `AttackedModel`; None for the default of the model.
        restarts: number of random starts for each loss.
        images: number of random images of the test set; None for all images.
        pictures: number of images to draw at each radius.
        batch_size: number of images in a batch.
        seed: random seed for the choice of images and for the attack.

    Raises:
        UserError: an option, the config, the weights or the dataset is invalid.
    """
    compat.silence_detectron2()
    arithmetic.set_tf32(False)
    target = grid.find_target(config, overrides, dataset, images, seed)
    kind = attacked_model(target.cfg)
    losses = losses or [*kind.default]
    kind.check_losses(losses)
    marks = [mark for _, item in target.items for mark in item.get("annotations", ())]
    if target.cfg.MODEL.MASK_ON and marks and not any(mark.get("segmentation") for mark in marks):
        raise UserError(
            f"MODEL.MASK_ON is True, but dataset '{target.dataset}' has no masks, which the "
            "detector's losses require. Set it to False."
        )
    output = output or Path(target.cfg.OUTPUT_DIR, f"attack_{constraint}")
    attack = attack_report.AttackSettings(constraint, steps, tuple(losses), restarts, step_size)
    settings = target.settings(
        attack="pgd",
        constraint=constraint,
        steps=steps,
        step_size=step_size or f"{STEP_FACTOR} * eps / steps",
        losses=losses,
        restarts=restarts,
        random_start=True,
        batch_size=batch_size,
        seed=seed,
        **({} if kind is DETECTORS else {"selection": kind.selection}),
    )
    plan = attack_report.conditions(
        target.cfg,
        target.dataset,
        radii,
        attack,
        seed=seed,
        folder=output / "pictures",
        pictures=[index for index, _ in target.items[:pictures]],
    )
    with claimed(output) if comm.is_main_process() else contextlib.nullcontext():
        rows = grid.measure_all(target, plan, settings, output, batch_size)
        if not comm.is_main_process():
            return
        print(attack_report.table(rows), attack.describe(), sep="\n")
        attack_report.draw_curve(rows, constraint, output / "curve.png")
        target.write_result(
            output,
            kind="detection-robustness",
            metrics={"attacks": rows},
            settings=settings | {"eps": radii},
            seed=seed,
            seconds=sum(row["seconds"] for row in rows.values()),
            warnings=attack_report.warnings(rows),
        )
    print(f"{counted(len(target.items), 'image', 'images')} -> {output}")
