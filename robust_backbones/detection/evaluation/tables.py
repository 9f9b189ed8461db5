"""Format metrics as tables for logs, terminals and CSV files."""

import csv
import io
import logging

from tabulate import tabulate

from robust_backbones.core.detector_tasks import TASKS


def log_metrics(results: dict[str, dict]) -> None:
    """Log the metrics as tables with Detectron2's logger."""
    logging.getLogger("detectron2").info("results, percent\n%s", markdown(results))


def rows(results: dict[str, dict]) -> list[tuple[str, str, str, float]]:
    """Return one row `(task, metric, class, percent)` for each metric.

    The class is "" for metrics over all classes.

    Args:
        results: metrics `{task: {metric: percent}}`. The metric `AP-cat` is the AP of class cat.
    """
    return [
        (task, *key.partition("-")[::2], value)
        for task, metrics in results.items()
        for key, value in metrics.items()
    ]


def markdown(results: dict[str, dict]) -> str:
    """Format the metrics as Markdown tables, in percent.

    The first table contains the metrics of each class. It is omitted if no metric belongs to a
    class. The second table contains the metrics over all classes, with one column for each task.
    The last lines repeat AP and mIoU, because a terminal shows the end of the output.
    """
    overall, classes = {}, {}
    for task, metric, name, value in rows(results):
        if name:
            classes.setdefault(name, {})[f"{task} {metric}"] = value
        else:
            overall.setdefault(metric, {})[task] = value
    tables = [_table("class", classes)] if classes else []
    tables.append(_table("metric", overall))
    for metric in dict.fromkeys(task.main for task in TASKS.values()):
        if values := overall.get(metric):
            shown = ", ".join(f"{task} {value:.2f}" for task, value in values.items())
            tables.append(f"{metric}: {shown}")
    return "\n\n".join(tables)


def _table(title: str, cells: dict[str, dict]) -> str:
    columns = list(dict.fromkeys(key for row in cells.values() for key in row))
    body = [[name, *(row.get(column, "") for column in columns)] for name, row in cells.items()]
    return tabulate(body, [title, *columns], tablefmt="pipe", floatfmt=".2f", disable_numparse=[0])


def csv_text(results: dict[str, dict]) -> str:
    """Format the metrics as CSV with columns task, metric, class, percent. NaN cells are empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["task", "metric", "class", "percent"])
    for *names, value in rows(results):
        writer.writerow([*names, "" if value != value else value])
    return file.getvalue()
