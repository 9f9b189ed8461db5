"""Sections made by hand and results in folders, for the tests of the report."""

import hashlib
import json

from PIL import Image

from classification.report.sections import (
    Column,
    Ends,
    Figure,
    Kind,
    Section,
    Series,
    StdDev,
    Value,
)
from robust_backbones.core import results

HOSTILE = '<script>document.title="owned"</script><img src=x onerror=alert(1)>'
TASKS = ("aircraft", "cifar10", "pets")
EPS = (0.0, 0.01, 0.1, 1.0, 3.0)


def result(folder, dataset: str = "cifar10", accuracies=(90.0, 91.0, 92.5), **settings) -> None:
    """Write a result of transfer, and its recalls."""
    trials = [
        {
            "seed": k,
            "accuracy": value,
            "chosen": {"lr": 0.01},
            "candidates": [{"lr": 0.01, "value": value}],
        }
        for k, value in enumerate(accuracies)
    ]
    chosen = {
        "dataset": dataset,
        "mode": "fixed-feature",
        "protocol": "paper",
        "arch": "resnet18",
        "weights": "robust://resnet18_l2_eps3",
        "probe": "sgd",
    }
    chosen |= settings
    digest = hashlib.sha256(chosen["weights"].encode()).hexdigest()
    results.write(
        folder / "result.json",
        kind="transfer",
        seed=0,
        seconds=1.0,
        device="cpu",
        weights_sha256=digest,
        metrics={
            "metric": "top1",
            "accuracy": sum(accuracies) / len(accuracies),
            "interval": [80.0, 95.0],
            "images": 100,
            "trials": trials,
        },
        settings=chosen,
        data={"test": {"name": dataset, "images": 100}},
    )
    rows = [f'"{dataset} {name}",100,{right},{right}.0' for name, right in zip("ab", (90, 20))]  # noqa: B905
    text = "\n".join(["class,images,right,recall_percent", *rows, "c,0,0,"])
    (folder / "per_class.csv").write_text(text + "\n", encoding="utf-8")


def hostile_result(folder) -> None:
    """A result whose every text is an attack on the page."""
    result(
        folder,
        HOSTILE,
        mode="full-network",
        protocol=HOSTILE,
        arch=HOSTILE,
        weights=HOSTILE,
        other={HOSTILE: "</script><script>alert(1)</script>"},
    )
    (folder / "run.json").write_text(json.dumps({"labels": {HOSTILE: HOSTILE}}))


def interpreted(folder) -> None:
    """What `classification.interpret` writes, with a picture."""
    Image.new("RGB", (40, 20)).save(folder / "figure.png")
    results.write(
        folder / "result.json",
        kind="interpret",
        seed=0,
        seconds=1.0,
        device="cpu",
        weights_sha256=None,
        metrics={"networks": {"robust": {"confidence": 50.0}}},
        data={},
        settings={"weights": "robust://resnet18_l2_eps3", "dataset": "cifar10"},
    )


def section(records: int = 1, name: str = "table1") -> Section:
    """A section with text, whole numbers, values, spreads and missing cells."""
    columns = [
        Column("task", "Task"),
        Column("ours", "ours, percent", Kind.ACCURACY),
        Column("paper", "paper, percent", Kind.ACCURACY, paper=True),
        Column("difference", "difference, points", Kind.DIFFERENCE),
        Column("runs", kind=Kind.COUNT),
    ]
    places = tuple(range(records))
    cells = [
        ("pets", Value(92.0, Ends(91.5, 92.6), 3, places), 92.05, -0.05, 3),
        ("aircraft", None, 44.14, None, None),
        ("cifar10", Value(95.6, StdDev(0.1), 1, places[:1]), 95.53, 0.07, 1),
        (HOSTILE, Value(9.5), 9.25, 0.25, 12),
    ]
    keys = [column.key for column in columns]
    rows = [dict(zip(keys, row, strict=True)) for row in cells]
    return Section(
        name,
        f"Table 1 {HOSTILE}",
        ["What it shows.", HOSTILE],
        columns,
        rows,
        figures(name),
        ["Two protocols are mixed.", HOSTILE],
        3,
        4,
    )


def figures(name: str = "table1") -> list[Figure]:
    ends = [90.0, None, 92.0], [92.0, None, 94.0]
    bars = [
        Series("robust", list(TASKS), [91.0, None, 93.0], *ends),
        Series("robust", list(TASKS), [90.0, 88.0, 92.0], published=True),
    ]
    curves = {
        task: [Series("resnet18", list(EPS), [50.0 + k * i for i in range(5)])]
        for k, task in enumerate((*TASKS, HOSTILE))
    }
    points = [
        Series(
            "eps 3",
            [60.0, 70.0, 80.0],
            [91.0, 92.0, 93.0],
            labels=["A", "B", HOSTILE],
            fit=(0.1, 85.0),
        )
    ]
    return [
        Figure(f"{name}_bars", "bars", "Best of each task", "", "accuracy, percent", {"": bars}),
        Figure(f"{name}_curves", "curves", HOSTILE, "ε", "accuracy, percent", curves, log_x=True),
        Figure(f"{name}_scatter", "scatter", "Fit", "ImageNet", "CIFAR-10", {"": points}),
    ]
