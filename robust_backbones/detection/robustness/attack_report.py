"""Report AP or mIoU under attack: conditions, warnings, a table, pictures and a figure."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, detection_utils
from PIL import Image
from tabulate import tabulate
from torch import Tensor, nn

from robust_backbones.attacks import CONSTRAINTS
from robust_backbones.core.detector_tasks import TASKS
from robust_backbones.core.eps import default_step, show_eps
from robust_backbones.core.errors import UserError
from robust_backbones.core.figures import new_figure, save_figure
from robust_backbones.core.files import atomic
from robust_backbones.detection.attack import draw_seeds
from robust_backbones.detection.data.loader import seed_from
from robust_backbones.detection.data.mapper import ImageMapper
from robust_backbones.detection.robustness.attacked_models import AttackedModel, attacked_model
from robust_backbones.detection.robustness.grid import CLEAN, Condition, common_tasks, format_ap

GRADIENT_COST = 3.0  # time of an attack step, in forward passes; a backward pass takes two


@dataclass(frozen=True)
class AttackSettings:
    """Settings of the attack on a detector, without the perturbation radius.

    Attributes:
        constraint: norm of the perturbation, `"l2"` or `"linf"`.
        steps: number of PGD steps.
        losses: losses to maximize, see `AttackedModel`. A separate attack increases each loss.
        restarts: number of random starts for each loss.
        step_size: length of a step, in the unit of eps; None for `2.5 * eps / steps`.
    """

    constraint: str
    steps: int
    losses: tuple[str, ...]
    restarts: int
    step_size: float | None = None

    def at(self, eps: float) -> dict:
        """Return the settings of the attack at one radius, as plain JSON types."""
        return {
            "constraint": self.constraint,
            "eps": eps,
            "steps": self.steps,
            "step_size": self.step_size or default_step(eps, self.steps),
            "losses": list(self.losses),
            "restarts": self.restarts,
        }

    def describe(self) -> str:
        """Describe the attack, such as `PGD-10 on one loss (all), with one random start`."""
        names = ", ".join(self.losses)
        losses = f"one loss ({names})" if len(self.losses) == 1 else f"the losses {names}"
        starts = "one random start" if self.restarts == 1 else f"{self.restarts} random starts"
        words = f"PGD-{self.steps} on {losses}, with {starts}"
        if len(self.losses) * self.restarts == 1:
            return words
        return f"{words} each; the strongest attack on each image counts"


def conditions(
    cfg: CfgNode,
    dataset: str,
    radii: list[float],
    attack: AttackSettings,
    *,
    seed: int,
    pictures: list[int],
    folder: Path,
) -> list[Condition]:
    """Return the clean condition, and one attack condition for each radius.

    Args:
        cfg: configuration of the detector.
        dataset: name of the detector's test set, whose metadata contain the class names.
        radii: perturbation radii for pixels in [0, 1].
        attack: settings of the attack.
        seed: seed for the attacks.
        pictures: indices of the images to draw, clean and attacked.
        folder: folder for the pictures.
    """
    resize = detection_utils.build_augmentation(cfg, is_train=False)
    # Load the ground truth, which the losses need, but resize images as in evaluation.
    mapper = ImageMapper(cfg, is_train=True, augmentations=resize, recompute_boxes=False)
    load = partial(_load, mapper)
    kind = attacked_model(cfg)
    draw = partial(_draw, kind, cfg.INPUT.FORMAT, MetadataCatalog.get(dataset), folder)
    rows = [Condition(CLEAN, load, facts={"eps": 0.0})]
    for eps in radii:
        facts = attack.at(eps)
        title = f"eps {show_eps(attack.constraint, eps)}"
        change = partial(
            _attack,
            kind,
            settings=facts,
            seed=seed,
            pictures=set(pictures),
            draw=partial(draw, title),
        )
        tries = len(attack.losses) * attack.restarts
        # One inference for the metrics, two passes to measure the loss, one inference per attack.
        cost = 3 + tries * (1 + GRADIENT_COST * attack.steps)
        rows.append(Condition(title, load, change, _summary, facts, cost))
    return rows


def _load(mapper: ImageMapper, index: int, item: dict) -> dict:
    return mapper(item) | {"index": index}


def _attack(
    kind: AttackedModel,
    model: Any,
    batch: list[dict],
    *,
    settings: dict,
    seed: int,
    pictures: set[int],
    draw: Callable,
) -> tuple[list[dict], dict]:
    """Attack a batch. Return the attacked batch and a record of the attack.

    For each image, the result of the loss and restart with the lowest score is used. Random numbers
    depend on the seed and the index of the first image in the batch.
    """
    generator = torch.Generator(model.device).manual_seed(seed_from(seed, batch[0]["index"]))
    names = ("constraint", "eps", "steps", "step_size")
    bound = partial(kind.pgd, model, batch, **{n: settings[n] for n in names}, generator=generator)
    try:
        tries = [
            (loss, bound(loss=loss))
            for loss in settings["losses"]
            for _ in range(settings["restarts"])
        ]
    except FloatingPointError:  # raised by Detectron2's losses
        raise UserError(
            f"{batch[0]['file_name']}: the detector's outputs are not finite, because its training "
            "diverged. Give the checkpoint of another detector."
        ) from None
    strongest = _strongest(kind, model, batch, [images for _, images in tries])
    chosen = [tries[index] for index in strongest]
    images = [found[i] for i, (_, found) in enumerate(chosen)]
    attacked = [{**item, "image": x} for item, x in zip(batch, images, strict=True)]
    for item, changed in zip(batch, attacked, strict=True):
        if item["index"] in pictures:
            draw(model, item, changed)
    first = settings["losses"][0]
    (loss_seed,) = draw_seeds(generator)
    loss = partial(kind.loss, model, loss=first, seed=loss_seed)
    norm = CONSTRAINTS[settings["constraint"]].norm
    return attacked, {
        "images": len(batch),
        "strongest": [name for name, _ in chosen],
        "loss_clean": loss(batch),
        "loss_attacked": loss(attacked),
        "norms": [
            norm(x - item["image"].to(x)).item() / 255
            for x, item in zip(images, batch, strict=True)
        ],
    }


def _strongest(
    kind: AttackedModel, model: nn.Module, batch: list[dict], tries: list[list[Tensor]]
) -> list[int]:
    """Return the index of the first attack with the lowest score for each image."""
    if len(tries) == 1:
        return [0] * len(batch)
    found = [
        kind.scores(model, [{**item, "image": x} for item, x in zip(batch, images, strict=True)])
        for images in tries
    ]
    return np.argmin(found, axis=0).tolist()


def _summary(records: list[dict]) -> dict:
    images = sum(record["images"] for record in records)
    norms = [norm for record in records for norm in record["norms"]]
    means = {
        key: sum(record["images"] * record[key] for record in records) / images
        for key in ("loss_clean", "loss_attacked")
    }
    strongest = Counter(name for record in records for name in record["strongest"])
    return means | {
        "mean_norm": sum(norms) / images,
        "max_norm": max(norms),
        "strongest": dict(strongest),
    }


def _draw(
    kind: AttackedModel,
    channels: str,
    meta: Any,
    folder: Path,
    title: str,
    model: nn.Module,
    item: dict,
    attacked: dict,
) -> None:
    """Draw predictions on the clean image (left) and the attacked image (right), as PNG."""
    drawings = []
    for each in (item, attacked):
        with torch.no_grad():
            (output,) = model([each])
        pixels = each["image"].permute(1, 2, 0).round().to("cpu", torch.uint8).numpy()
        pixels = detection_utils.convert_image_to_rgb(pixels, channels)
        drawings.append(kind.draw(meta, pixels, output))
    name = f"{Path(item['file_name']).stem}_{title.replace(' ', '_').replace('/', '_')}.png"
    with atomic(folder / name) as temporary:
        Image.fromarray(np.concatenate(drawings, axis=1)).save(temporary, format="png")


def warnings(rows: dict[str, dict]) -> list[dict]:
    """List reasons to doubt the metrics, as dictionaries with keys "check" and "message".

    Args:
        rows: output of `measure_all`.
    """
    found = []
    for name, row in rows.items():
        if name == CLEAN:
            continue
        attacked = row["loss_attacked"]
        if attacked is not None and attacked <= row["loss_clean"]:  # None: the loss became infinite
            found.append(
                {
                    "check": "loss_did_not_rise",
                    "message": f"at {name} the attack did not increase the model's loss "
                    f"({row['loss_clean']:.4g} clean, {row['loss_attacked']:.4g} attacked). The "
                    "attack failed, and the result does not measure robustness. Use more --steps.",
                }
            )
        for task in common_tasks(rows):
            clean, attacked = (each[task][TASKS[task].main] for each in (rows[CLEAN], row))
            if clean is not None and attacked is not None and attacked > clean:
                found.append(
                    {
                        "check": "ap_above_clean",
                        "message": f"at {name} {TASKS[task].title} is {attacked:.1f}, above "
                        f"{clean:.1f} on clean images. The attack is too weak, or there are too "
                        "few images. Use more --steps or --images.",
                    }
                )
    return found


def table(rows: dict[str, dict]) -> str:
    """Format the metrics, losses and norm of each condition as aligned text."""
    tasks = common_tasks(rows)
    shown = [(t, metric) for t in tasks for metric in (TASKS[t].main, TASKS[t].second)]
    header = ["images", *(TASKS[t].prefix + metric for t, metric in shown)]
    lines = [
        [
            name,
            *(format_ap(row[t][m]) for t, m in shown),
            *(
                f"{row[key]:.4g}" if row.get(key) is not None else ""
                for key in ("loss_clean", "loss_attacked", "mean_norm")
            ),
        ]
        for name, row in rows.items()
    ]
    header += ["loss clean", "loss attacked", "mean norm"]
    return tabulate(
        lines, header, disable_numparse=True, colalign=("left", *["right"] * (len(header) - 1))
    )


def draw_curve(rows: dict[str, dict], constraint: str, path: Path) -> None:
    """Draw the two metrics of each task against eps, as PNG."""
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    factor, unit = {"linf": (255, "L∞, in 1/255"), "l2": (1, "L2 norm over the image")}[constraint]
    eps = [factor * row["eps"] for row in rows.values()]
    for i, task in enumerate(common_tasks(rows)):
        for metric, style in ((TASKS[task].main, "o-"), (TASKS[task].second, "s:")):
            values = [row[task][metric] for row in rows.values()]
            values = [math.nan if value is None else value for value in values]
            axes.plot(eps, values, style, color=f"C{i}", label=TASKS[task].prefix + metric)
    axes.set(xlabel=f"eps ({unit})", ylabel="percent", ylim=(-2, 102))
    axes.legend()
    axes.grid(alpha=0.3)
    save_figure(figure, path)
