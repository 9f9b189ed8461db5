"""A detector's AP under attack, radius by radius: conditions, doubts, pictures and a figure."""

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, detection_utils
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_iou

from robust_backbones.attacks import CONSTRAINTS
from robust_backbones.core.eps import STEP_FACTOR, show_eps
from robust_backbones.core.errors import UserError
from robust_backbones.core.figures import new_figure, save_figure
from robust_backbones.core.files import atomic
from robust_backbones.detection.attack import detection_loss, draw_seed, pgd
from robust_backbones.detection.data.loader import seed_from
from robust_backbones.detection.robustness.grid import CLEAN, TASKS, Condition, show, tasks_of

GRADIENT_COST = 3.0  # a step's time in forward passes: one of its own, and a backward pass of two
SHOWN_SCORE = 0.5  # lowest score of a prediction in pictures
SHOWN_SIZE = 320  # pixels: smaller images are enlarged in pictures
THRESHOLDS = tuple(0.5 + i / 20 for i in range(10))  # COCO's IoU thresholds


def conditions(
    cfg: CfgNode,
    dataset: str,
    radii: list[float],
    attack: dict,
    *,
    seed: int,
    pictures: list[int],
    folder: Path,
) -> list[Condition]:
    """The clean images, and those under attack at each radius.

    Args:
        cfg: the detector's.
        dataset: its test set, for the names of classes.
        radii: for pixels in [0, 1].
        attack: settings of the attack: `constraint` and `steps` as in `pgd`; `losses`, a list of
            keys of `LOSSES`; `restarts`, random starts for each loss; `step_size`, where None means
            `STEP_FACTOR * eps / steps`.
        seed: seed for the attacks.
        pictures: numbers of the images to draw, clean beside attacked.
        folder: where pictures go.
    """
    resize = detection_utils.build_augmentation(cfg, is_train=False)
    # The truth, which the losses need, but the input of a test: no augmentation but its resizing.
    mapper = DatasetMapper(cfg, is_train=True, augmentations=resize, recompute_boxes=False)
    load = partial(_load, mapper)
    draw = partial(_draw, cfg.INPUT.FORMAT, MetadataCatalog.get(dataset), folder)
    rows = [Condition(CLEAN, load, facts={"eps": 0.0})]
    for eps in radii:
        facts = {
            "constraint": attack["constraint"],
            "eps": eps,
            "steps": attack["steps"],
            "step_size": attack["step_size"] or STEP_FACTOR * eps / attack["steps"],
            "losses": list(attack["losses"]),
            "restarts": attack["restarts"],
        }
        title = f"eps {show_eps(attack['constraint'], eps)}"
        change = partial(
            _attack, settings=facts, seed=seed, pictures=set(pictures), draw=partial(draw, title)
        )
        tries = len(attack["losses"]) * attack["restarts"]
        # One inference pass per try; two passes measure the loss.
        cost = 3 + tries * (1 + GRADIENT_COST * attack["steps"])
        rows.append(Condition(title, load, change, _summary, facts, cost))
    return rows


def _load(mapper: DatasetMapper, number: int, item: dict) -> dict:
    return mapper(item) | {"number": number}


def _attack(
    model: nn.Module,
    batch: list[dict],
    *,
    settings: dict,
    seed: int,
    pictures: set[int],
    draw: Callable,
) -> tuple[list[dict], dict]:
    """The attacked batch and a record of the attack; random numbers follow from seed and image.

    Among several losses and restarts, the attack with the lowest AP counts for each image.
    """
    generator = torch.Generator().manual_seed(seed_from(seed, batch[0]["number"]))
    names = ("constraint", "eps", "steps", "step_size")
    bound = partial(pgd, model, batch, **{n: settings[n] for n in names}, generator=generator)
    try:
        tries = [
            (loss, bound(loss=loss))
            for loss in settings["losses"]
            for _ in range(settings["restarts"])
        ]
    except FloatingPointError:  # Detectron2's, where it computes losses
        raise UserError(
            f"the detector's outputs for {batch[0]['file_name']} are not finite: its training "
            "diverged; give the weights of another."
        ) from None
    chosen = [tries[best] for best in _strongest(model, batch, [images for _, images in tries])]
    images = [found[i] for i, (_, found) in enumerate(chosen)]
    attacked = [{**item, "image": x} for item, x in zip(batch, images, strict=True)]
    for item, changed in zip(batch, attacked, strict=True):
        if item["number"] in pictures:
            draw(model, item, changed)
    first = settings["losses"][0]
    loss = partial(detection_loss, model, loss=first, seed=draw_seed(generator))
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


def _strongest(model: nn.Module, batch: list[dict], tries: list[list[Tensor]]) -> list[int]:
    """For each image, the index of the try with the lowest `image_ap`; the first among equals."""
    if len(tries) == 1:
        return [0] * len(batch)
    found = []
    for images in tries:
        with torch.no_grad():
            outputs = model([{**item, "image": x} for item, x in zip(batch, images, strict=True)])
        found.append(
            [
                image_ap(output["instances"].to("cpu"), item["instances"])
                for output, item in zip(outputs, batch, strict=True)
            ]
        )
    return np.argmin(found, axis=0).tolist()


def image_ap(found: Instances, truth: Instances) -> float:
    """Box AP of one image, in [0, 1]: the mean over its classes and COCO's IoU thresholds.

    It compares attacks on the same image. Without objects, AP is undefined. The value is then minus
    the sum of the scores, so that false detections make an attack stronger.

    Args:
        found: predictions, in the coordinates of `found.image_size`.
        truth: objects, in the coordinates of `truth.image_size`.
    """
    if not len(truth):
        return -float(found.scores.sum())
    heights, widths = zip(truth.image_size, found.image_size, strict=True)
    scale = torch.tensor([widths[0] / widths[1], heights[0] / heights[1]] * 2)
    values = []
    for label in truth.gt_classes.unique():
        mine = found[found.pred_classes == label]
        boxes = mine.pred_boxes.tensor[mine.scores.argsort(descending=True)] * scale
        overlaps = box_iou(boxes, truth.gt_boxes.tensor[truth.gt_classes == label])
        values += [_average_precision(overlaps, threshold) for threshold in THRESHOLDS]
    return float(np.mean(values))


def _average_precision(overlaps: Tensor, threshold: float) -> float:
    """Mean over the objects of the precision at the detection that finds each.

    Args:
        overlaps: IoU `(detections, objects)`, sorted by descending score.
    """
    free, hits, total = overlaps.clone(), 0, 0.0
    for rank in range(len(free)):
        best = free[rank].argmax()
        if free[rank, best] >= threshold:
            hits += 1
            total += hits / (rank + 1)
            free[:, best] = -1  # an object is found once
    return total / free.shape[1]


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
    channels: str, meta: Any, folder: Path, title: str, model: nn.Module, item: dict, attacked: dict
) -> None:
    """Predictions on an image, left clean, right attacked, as a PNG in `folder`."""
    sides = []
    for each in (item, attacked):
        with torch.no_grad():
            (output,) = model([each])
        instances = output["instances"].to("cpu")
        pixels = each["image"].permute(1, 2, 0).round().to("cpu", torch.uint8).numpy()
        pixels = detection_utils.convert_image_to_rgb(pixels, channels)
        height, width = instances.image_size
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height)))
        scale = max(1.0, SHOWN_SIZE / min(height, width))
        drawn = Visualizer(pixels, meta, scale).draw_instance_predictions(
            instances[instances.scores >= SHOWN_SCORE]
        )
        sides.append(drawn.get_image())
    name = f"{Path(item['file_name']).stem}_{title.replace(' ', '_').replace('/', '_')}.png"
    with atomic(folder / name) as temporary:
        Image.fromarray(np.concatenate(sides, axis=1)).save(temporary, format="png")


def warnings(rows: dict[str, dict]) -> list[dict]:
    """Why the figures are suspect, `{"check", "message"}` each.

    Args:
        rows: of all conditions, as `measure_all` gives them.
    """
    found = []
    for name, row in rows.items():
        if name == CLEAN:
            continue
        attacked = row["loss_attacked"]
        if attacked is not None and attacked <= row["loss_clean"]:  # None: it rose beyond measure
            found.append(
                {
                    "check": "loss_did_not_rise",
                    "message": f"at {name} the attack did not raise the detector's loss "
                    f"({row['loss_clean']:.4g} clean, {row['loss_attacked']:.4g} attacked): it did "
                    "not work, and its AP says nothing about robustness. Try more --steps.",
                }
            )
        for task in tasks_of(rows):
            clean, attacked = rows[CLEAN][task]["AP"], row[task]["AP"]
            if clean is not None and attacked is not None and attacked > clean:
                found.append(
                    {
                        "check": "ap_above_clean",
                        "message": f"at {name} {TASKS[task]} AP is {attacked:.1f}, above the "
                        f"{clean:.1f} of clean images: the attack is too weak or the images are "
                        "too few. Try more --steps or --images.",
                    }
                )
    return found


def in_words(attack: dict) -> str:
    """The attack in a line, such as `PGD-10 of one loss (all), one random start`."""
    losses, restarts = attack["losses"], attack["restarts"]
    several = len(losses) * restarts > 1
    words = f"PGD-{attack['steps']} of "
    words += f"one loss ({losses[0]})" if len(losses) == 1 else f"the losses {', '.join(losses)}"
    words += ", one random start" if restarts == 1 else f", {restarts} random starts"
    return words + (" each; per image the strongest counts" if several else "")


def table(rows: dict[str, dict]) -> str:
    """The rows as aligned text."""
    from tabulate import tabulate

    tasks = tasks_of(rows)
    header = ["images", *(f"{TASKS[t]} {m}" for t in tasks for m in ("AP", "AP50"))]
    lines = [
        [
            name,
            *(show(row[t][m]) for t in tasks for m in ("AP", "AP50")),
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
    """AP and AP50 of each task against eps, as a PNG."""
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    factor, unit = {"linf": (255, "L∞, 255ths"), "l2": (1, "L2 norm over the image")}[constraint]
    eps = [factor * row["eps"] for row in rows.values()]
    for i, task in enumerate(tasks_of(rows)):
        for metric, style in (("AP", "o-"), ("AP50", "s:")):
            values = [row[task][metric] for row in rows.values()]
            values = [math.nan if value is None else value for value in values]
            axes.plot(eps, values, style, color=f"C{i}", label=f"{TASKS[task]} {metric}")
    axes.set(xlabel=f"eps ({unit})", ylabel="percent", ylim=(-2, 102))
    axes.legend()
    axes.grid(alpha=0.3)
    save_figure(figure, path)
