"""Numbers of the paper, from `published.yaml`, which also has their sources."""

from functools import cache
from pathlib import Path

import yaml

from classification.datasets.specs import SUITE
from classification.transfer.protocols import MODES

ARCHS = ("resnet18", "resnet50", "wide_resnet50_2", "wide_resnet50_4")  # architectures of Table 1
EPS = (0.01, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 5.0)  # L2 radii of the robust networks
FILE = Path(__file__).with_name("published.yaml")


@cache
def numbers() -> dict:
    """Contents of the file, after a check."""
    found = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    check(found)
    return found


def check(found: dict) -> None:
    """Check the contents of the file for typos.

    Raises:
        ValueError: the lists do not fit together, or a number is not a percentage.
    """
    if found["schema"] != 1 or tuple(found["tasks"]) != SUITE:
        raise ValueError(f"{FILE.name}: the schema is not 1, or the tasks differ from `SUITE`")
    lists = [("tasks", row) for mode in MODES for row in found["table1"][mode].values()]
    lists += [
        ("archs", found["table2"][eps][name])
        for eps in ("eps0", "eps3")
        for name in ("imagenet", "cifar10")
    ]
    lengths = {"tasks": len(SUITE), "archs": len(found["table2"]["archs"])}
    for name, row in lists:
        if len(row) != lengths[name] or not all(0 < value < 100 for value in row):
            raise ValueError(f"{FILE.name}: a list does not have {lengths[name]} percentages")
    for mode in MODES:
        for task in SUITE:
            cells = found["best_runs"]["rows"][mode][task]
            if tuple(cells) != ARCHS or any(c["eps"] not in (0, *EPS) for c in cells.values()):
                raise ValueError(
                    f"{FILE.name}: unexpected archs or eps in best runs of {task}, {mode}"
                )


def table1(mode: str, task: str, kind: str) -> float | None:
    """Number from Table 1, percent; None for tasks that are not in it.

    Args:
        kind: side of the comparison, `"robust"` or `"standard"`.
    """
    if task not in SUITE:
        return None
    return numbers()["table1"][mode][kind][SUITE.index(task)]


def best_run(mode: str, task: str, arch: str) -> dict | None:
    """`eps`, `lr` and `accuracy` (percent) of the best single run; None if it is not published."""
    return numbers()["best_runs"]["rows"][mode].get(task, {}).get(arch)


def table2(arch: str, eps: float, name: str) -> float | None:
    """Number from Table 2, percent; None for architectures and eps that are not in it.

    Args:
        name: dataset of the accuracy, `"imagenet"` or `"cifar10"`.
    """
    table = numbers()["table2"]
    key = f"eps{eps:g}"
    if arch not in table["archs"] or key not in ("eps0", "eps3"):
        return None
    return table[key][name][table["archs"].index(arch)]


def figure4(experiment: str, task: str, kind: str) -> tuple[float, float | None] | None:
    """AP and standard deviation from the table in Figure 4, percent; None if not in the table.

    Args:
        experiment: dataset and kind of detector, `"voc_detection"`, `"coco_detection"` or
            `"coco_instance"`.
        task: kind of AP, `"bbox"` or `"segm"`.
        kind: side of the comparison, `"robust"` or `"standard"`.
    """
    rows = numbers()["figure4"].get(experiment)
    if not isinstance(rows, dict) or task not in rows:
        return None
    return rows[task][kind], rows[task].get(f"{kind}_sd")


def best_eps(task: str) -> float | None:
    """Best eps of a task from Section 4.3; None if the paper has no number."""
    return numbers()["section_4_3"]["best_eps"].get(task)
