"""Measure the optimized images. docs/reference/formats.md explains each measurement."""

from collections.abc import Iterable
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from classification.interpret.optimize import correlation, relative_distance, representations
from classification.interpret.plan import OptimizedImages, Plan, apply
from classification.models import Classifier
from robust_backbones.attacks import eval_mode

# A representation counts as not matched if its distance to the target is more than this fraction of
# the distance at the start.
UNMATCHED = 0.5


def measure(
    model: Classifier,
    evaluation: Classifier | None,
    plan: Plan,
    optimized: OptimizedImages,
    batch_size: int,
) -> dict:
    """Return the measurements of one network.

    Args:
        model: network on its device.
        evaluation: evaluation classifier with the same classes, or None.
        plan: columns of the figure.
        optimized: optimized images of the network.
        batch_size: images per batch.
    """
    row = {}
    if plan.targets:
        row["visualization"] = _visualization(
            model, evaluation, plan, optimized.visualized, batch_size
        )
    if plan.indices:
        row["inversion"] = _inversion(model, evaluation, plan, optimized.inverted, batch_size)
    return row


def _visualization(
    model: Classifier, evaluation: Classifier | None, plan: Plan, images: Tensor, batch_size: int
) -> dict:
    before, after = (
        _scores(model, x, plan.targets, batch_size) for x in (plan.target_starts, images)
    )
    rows: list[dict[str, Any]] = [
        {"kind": kind, "number": number, "start": a, "score": b}
        for (kind, number), a, b in zip(plan.targets, before, after, strict=True)
    ]
    for name, network in {"own": model, "eval": evaluation}.items():
        if network is None:
            continue
        confidence = 100 * apply(network, _probabilities, images, batch_size)
        for row, percent in zip(rows, confidence, strict=True):
            if row["kind"] == "class":
                row[f"{name}_confidence"] = percent[row["number"]].item()
                row[f"{name}_correct"] = int(percent.argmax() == row["number"])
    classes = [row for row in rows if row["kind"] == "class"]
    means: dict[str, float] = {
        name: _mean(row[name] for row in classes)
        for name in ("own_confidence", "eval_confidence")
        if classes and name in classes[0]
    }
    if "eval_confidence" in means:
        means["eval_top1"] = 100 * _mean(row["eval_correct"] for row in classes)
    return means | {"images": rows}


def _inversion(
    model: Classifier, evaluation: Classifier | None, plan: Plan, inverted: Tensor, batch_size: int
) -> dict:
    target, before, after = (
        apply(model, representations, x, batch_size) for x in (plan.images, plan.starts, inverted)
    )
    columns = {
        "start_representation_distance": relative_distance(before, target),
        "representation_distance": relative_distance(after, target),
        "start_pixel_distance": relative_distance(plan.starts, plan.images),
        "pixel_distance": relative_distance(inverted, plan.images),
        "pixel_correlation": correlation(inverted, plan.images),
    }
    means = {name: values.mean().item() for name, values in columns.items()}
    if evaluation is not None:
        predicted, expected = (
            apply(evaluation, _probabilities, x, batch_size).argmax(1)
            for x in (inverted, plan.images)
        )
        columns["eval_agrees"] = (predicted == expected).int()
        means["eval_agreement"] = 100 * columns["eval_agrees"].float().mean().item()
    rows = [
        {"index": index} | {name: values[i].item() for name, values in columns.items()}
        for i, index in enumerate(plan.indices)
    ]
    return means | {"images": rows}


def _mean(values: Iterable[float]) -> float:
    return torch.tensor(list(values), dtype=torch.float64).mean().item()


def _logits(model: Classifier, x: Tensor) -> Tensor:
    with eval_mode(model), torch.no_grad():
        return model(x)


def _probabilities(model: Classifier, x: Tensor) -> Tensor:
    return _logits(model, x).softmax(1)


def _scores(
    model: Classifier, x: Tensor, targets: list[tuple[str, int]], batch_size: int
) -> list[float]:
    """Return the maximized value of each image: a logit or a unit of the representation."""
    functions = {"class": _logits, "unit": representations}
    values = {
        kind: apply(model, functions[kind], x, batch_size) for kind in {kind for kind, _ in targets}
    }
    return [values[kind][i, number].item() for i, (kind, number) in enumerate(targets)]


def warnings(rows: dict[str, dict]) -> list[dict]:
    """Return a warning for each network whose representations were not matched.

    Args:
        rows: measurements of each network by its name, as `measure` returns them.
    """
    found = []
    for name, row in rows.items():
        numbers = row.get("inversion")
        if not numbers:
            continue
        now, start = numbers["representation_distance"], numbers["start_representation_distance"]
        if not now <= UNMATCHED * start:
            found.append(
                {
                    "check": "not_matched",
                    "message": f"{name}: the representation distance is still {now:.2f} "
                    f"({start:.2f} at the start), so the pixel distance means nothing. Increase "
                    "--steps, or change --step-size.",
                }
            )
    return found


TABLE = {  # maps a heading to (part of the measurements, key)
    "own confidence %": ("visualization", "own_confidence"),
    "eval confidence %": ("visualization", "eval_confidence"),
    "representation": ("inversion", "representation_distance"),
    "pixels": ("inversion", "pixel_distance"),
    "pixels at start": ("inversion", "start_pixel_distance"),
    "correlation": ("inversion", "pixel_correlation"),
    "eval agreement %": ("inversion", "eval_agreement"),
}


def table(rows: dict[str, dict]) -> str:
    """Return the mean measurements as an aligned text table with one line per network."""
    columns = {
        heading: [row.get(part, {}).get(key) for row in rows.values()]
        for heading, (part, key) in TABLE.items()
    }
    known = {k: v for k, v in columns.items() if any(value is not None for value in v)}
    return tabulate({"network": list(rows), **known}, headers="keys", floatfmt=".3f")
