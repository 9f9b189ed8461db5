"""What a detector's AP under common corruptions comes to: mPC, rPC, a table and a figure.

Michaelis et al. 2019 (arXiv 1907.07484): mPC, the mean performance under corruption, is the mean
over kinds of the mean over severities; rPC is its share of the performance on clean images.
"""

import csv
from pathlib import Path

from robust_backbones.core.figures import new_figure, save_figure
from robust_backbones.core.files import atomic
from robust_backbones.detection.robustness.corruptions import KINDS, SEVERITIES
from robust_backbones.detection.robustness.grid import CLEAN, TASKS, show, tasks_of


def summary(rows: dict[str, dict]) -> dict:
    """The figures of a result file.

    Args:
        rows: of all conditions, the clean one among them, as `measure_all` gives them.

    Returns:
        `corruptions` (the rows), `by_corruption` `{kind: {task: {metric: percent}}}`, means over
        severities, `mPC` and `rPC` `{task: {metric: percent}}`, and `complete`: whether every kind
        and severity is in them, without which they are not to be compared with published ones.
        None where a metric has no ground truth, and for rPC where the clean AP is 0.
    """
    corrupted = [row for name, row in rows.items() if name != CLEAN]
    kinds = list(dict.fromkeys(row["corruption"] for row in corrupted))
    by_kind = {
        kind: _means([row for row in corrupted if row["corruption"] == kind], tasks_of(rows))
        for kind in kinds
    }
    mpc = _means(list(by_kind.values()), tasks_of(rows))
    rpc = {
        task: {metric: _share(value, rows[CLEAN][task][metric]) for metric, value in means.items()}
        for task, means in mpc.items()
    }
    cells = {(row["corruption"], row["severity"]) for row in corrupted}
    return {
        "corruptions": rows,
        "by_corruption": by_kind,
        "mPC": mpc,
        "rPC": rpc,
        "complete": cells == {(kind, severity) for kind in KINDS for severity in SEVERITIES},
    }


def _means(rows: list[dict], tasks: list[str]) -> dict:
    """`{task: {metric: mean over rows}}`."""
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
    """Clean AP, AP of each kind and severity, their means, mPC and rPC, as aligned text; a table
    for each task."""
    from tabulate import tabulate

    texts = []
    for task in found["mPC"]:
        severities = sorted(
            {r["severity"] for r in found["corruptions"].values() if "severity" in r}
        )
        lines = [
            [
                kind,
                *(show(found["corruptions"][f"{kind} {s}"][task]["AP"]) for s in severities),
                show(means[task]["AP"]),
            ]
            for kind, means in found["by_corruption"].items()
        ]
        empty = [""] * len(severities)
        for name, value in (
            ("clean", found["corruptions"][CLEAN]),
            ("mPC", found["mPC"]),
            ("rPC, % of clean", found["rPC"]),
        ):
            lines.append([name, *empty, show(value[task]["AP"])])
        header = [f"{TASKS[task]} AP", *(f"severity {s}" for s in severities), "mean"]
        align = ("left", *["right"] * (len(header) - 1))
        texts.append(tabulate(lines, header, disable_numparse=True, colalign=align))
    return "\n\n".join(texts)


def write_csv(found: dict, path: Path) -> None:
    """One line for each kind and severity, and the clean images: AP, AP50 and the others."""
    rows = found["corruptions"]
    columns = [(task, metric) for task in found["mPC"] for metric in rows[CLEAN][task]]
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["corruption", "severity", *(f"{TASKS[t]} {m}" for t, m in columns)])
        for name, row in rows.items():
            values = ["" if row[t][m] is None else f"{row[t][m]:.4f}" for t, m in columns]
            writer.writerow([row.get("corruption", name), row.get("severity", 0), *values])


def draw(found: dict, path: Path) -> None:
    """AP of each kind, severities as dots and their mean as a bar, beside the clean AP; a PNG."""
    kinds, tasks, rows = list(found["by_corruption"]), list(found["mPC"]), found["corruptions"]
    figure = new_figure(5 * len(tasks), 1.5 + 0.3 * len(kinds))
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        means = [found["by_corruption"][kind][task]["AP"] or 0 for kind in kinds]
        axes.barh(kinds, means, color="C0", alpha=0.5, label="mean over severities")
        dots = [
            (row[task]["AP"] or 0, row["corruption"], row["severity"])
            for name, row in rows.items()
            if name != CLEAN
        ]
        values, names, severities = zip(*dots, strict=True)
        axes.scatter(values, names, c=severities, cmap="viridis", s=12, zorder=3)
        axes.axvline(rows[CLEAN][task]["AP"] or 0, color="black", ls=":", label="clean")
        axes.axvline(found["mPC"][task]["AP"] or 0, color="C3", label="mPC")
        axes.set(xlabel=f"{TASKS[task]} AP, percent (dots: severities, dark to light)")
        axes.invert_yaxis()
        axes.legend(fontsize="small")
    save_figure(figure, path)
