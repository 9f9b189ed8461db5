"""What pictures of representations say, in numbers."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from classification.interpret import optimize
from classification.interpret.plan import Pictures, Plan, apply
from classification.models import Classifier
from robust_backbones.attacks import eval_mode

# A representation that is still further from its target than that part of the way was not matched.
UNMATCHED = 0.5


def measure(
    model: Classifier, judge: Classifier | None, plan: Plan, found: Pictures, batch_size: int
) -> dict:
    """The numbers of one network; docs/formats.md explains each.

    Args:
        judge: another classifier of the same classes; None for none.
    """
    row = {}
    if plan.shown:
        row["visualisation"] = _visualisation(model, judge, plan, found.shown, batch_size)
    if plan.indices:
        row["inversion"] = _inversion(model, judge, plan, found.inverted, batch_size)
    return row


def _visualisation(
    model: Classifier, judge: Classifier | None, plan: Plan, shown: Tensor, batch_size: int
) -> dict:
    before, after = (_scores(model, x, plan.shown, batch_size) for x in (plan.shown_starts, shown))
    rows: list[dict[str, Any]] = [
        {"kind": kind, "number": number, "start": a, "score": b}
        for (kind, number), a, b in zip(plan.shown, before, after, strict=True)
    ]
    for name, network in {"own": model, "judge": judge}.items():
        if network is None:
            continue
        confidence = 100 * apply(network, _probabilities, shown, batch_size)
        for row, percent in zip(rows, confidence, strict=True):
            if row["kind"] == "class":
                row[f"{name}_confidence"] = percent[row["number"]].item()
                row[f"{name}_right"] = int(percent.argmax() == row["number"])
    classes = [row for row in rows if row["kind"] == "class"]
    means: dict[str, float] = {
        name: _mean(row[name] for row in classes)
        for name in ("own_confidence", "judge_confidence")
        if classes and name in classes[0]
    }
    if "judge_confidence" in means:
        means["judge_top1"] = 100 * _mean(row["judge_right"] for row in classes)
    return means | {"pictures": rows}


def _inversion(
    model: Classifier, judge: Classifier | None, plan: Plan, inverted: Tensor, batch_size: int
) -> dict:
    wanted, before, after = (
        apply(model, optimize.features, x, batch_size)
        for x in (plan.targets, plan.starts, inverted)
    )
    columns = {
        "start_representation_distance": optimize.relative_distance(before, wanted),
        "representation_distance": optimize.relative_distance(after, wanted),
        "start_pixel_distance": optimize.relative_distance(plan.starts, plan.targets),
        "pixel_distance": optimize.relative_distance(inverted, plan.targets),
        "pixel_correlation": optimize.correlation(inverted, plan.targets),
    }
    means = {name: values.mean().item() for name, values in columns.items()}
    if judge is not None:
        seen, expected = (
            apply(judge, _probabilities, x, batch_size).argmax(1) for x in (inverted, plan.targets)
        )
        columns["judge_agrees"] = (seen == expected).int()
        means["judge_agreement"] = 100 * columns["judge_agrees"].float().mean().item()
    rows = [
        {"index": index} | {name: values[i].item() for name, values in columns.items()}
        for i, index in enumerate(plan.indices)
    ]
    return means | {"pictures": rows}


def _mean(values: Iterable[float]) -> float:
    return torch.tensor(list(values), dtype=torch.float64).mean().item()


def _probabilities(model: Classifier, x: Tensor) -> Tensor:
    with eval_mode(model), torch.no_grad():
        return model(x).softmax(1)


def _logits(model: Classifier, x: Tensor) -> Tensor:
    with eval_mode(model), torch.no_grad():
        return model(x)


def _scores(
    model: Classifier, x: Tensor, shown: list[tuple[str, int]], batch_size: int
) -> list[float]:
    """What is raised in each picture: its logit or its unit."""
    kinds = {"class": _logits, "unit": optimize.features}
    values = {kind: apply(model, kinds[kind], x, batch_size) for kind in {k for k, _ in shown}}
    return [values[kind][i, number].item() for i, (kind, number) in enumerate(shown)]


def warnings(rows: dict[str, dict]) -> list[dict]:
    """Why the numbers of `{network: numbers}` must not be taken as they stand."""
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
                    "message": f"{name}: representations are still {now:.2f} from their targets "
                    f"({start:.2f} at the start); the pixel distance says nothing yet: give "
                    "more --steps, or another --step-size.",
                }
            )
    return found


TABLE = {  # heading -> part of the numbers, name
    "own confidence %": ("visualisation", "own_confidence"),
    "judge's %": ("visualisation", "judge_confidence"),
    "representation": ("inversion", "representation_distance"),
    "pixels": ("inversion", "pixel_distance"),
    "at the start": ("inversion", "start_pixel_distance"),
    "correlation": ("inversion", "pixel_correlation"),
    "judge agrees %": ("inversion", "judge_agreement"),
}


def table(rows: dict[str, dict]) -> str:
    """The means as aligned text, a line for each network."""
    from tabulate import tabulate

    columns = {
        heading: [row.get(part, {}).get(name) for row in rows.values()]
        for heading, (part, name) in TABLE.items()
    }
    known = {k: v for k, v in columns.items() if any(value is not None for value in v)}
    return tabulate({"network": list(rows), **known}, headers="keys", floatfmt=".3f")
