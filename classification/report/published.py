"""Published numbers of the paper. `published.yaml` contains the numbers and their sources."""

from functools import cache
from pathlib import Path

import yaml

from classification.datasets.specs import SUITE
from classification.transfer.protocols import MODES

ARCHS = ("resnet18", "resnet50", "wide_resnet50_2", "wide_resnet50_4")  # architectures in Table 1
EPS = (0.01, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 5.0)  # L2 radii of the robust networks
FILE = Path(__file__).with_name("published.yaml")


@cache
def numbers() -> dict:
    """Read and check `published.yaml`."""
    found = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    check(found)
    return found


def check(found: dict) -> None:
    """Check the contents of `published.yaml` for typos.

    Raises:
        ValueError: the schema, a key, the length of a list or a number is invalid.
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
    """Return a number from Table 1 in percent, or None if the table does not have the task.

    Args:
        kind: side of the comparison, `"robust"` or `"standard"`.
    """
    if task not in SUITE:
        return None
    return numbers()["table1"][mode][kind][SUITE.index(task)]


def best_run(mode: str, task: str, arch: str) -> dict | None:
    """Return `eps`, `lr` and `accuracy` (percent) of the best run, or None if it is unpublished."""
    return numbers()["best_runs"]["rows"][mode].get(task, {}).get(arch)


def table2(arch: str, eps: float, name: str) -> float | None:
    """Return a number from Table 2 in percent, or None if it lacks the architecture or eps.

    Args:
        name: dataset of the accuracy, `"imagenet"` or `"cifar10"`.
    """
    table = numbers()["table2"]
    key = f"eps{eps:g}"
    if arch not in table["archs"] or key not in ("eps0", "eps3"):
        return None
    return table[key][name][table["archs"].index(arch)]


def figure4(experiment: str, task: str, kind: str) -> tuple[float, float | None] | None:
    """Return AP and its standard deviation from Figure 4 in percent, or None if unpublished.

    Args:
        experiment: dataset and type of detector, `"voc_detection"`, `"coco_detection"` or
            `"coco_instance"`.
        task: type of AP, `"bbox"` or `"segm"`.
        kind: side of the comparison, `"robust"` or `"standard"`.
    """
    rows = numbers()["figure4"].get(experiment)
    if not isinstance(rows, dict) or task not in rows:
        return None
    return rows[task][kind], rows[task].get(f"{kind}_sd")


def best_eps(task: str) -> float | None:
    """Return the best eps of a task from Section 4.3, or None if the paper does not report it."""
    return numbers()["section_4_3"]["best_eps"].get(task)
