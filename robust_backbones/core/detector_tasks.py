"""Tasks of detectors and segmenters, and the metrics by which their results are compared."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A task. Detectron2's evaluators return its metrics under the name of the task.

    Attributes:
        prefix: beginning of the names of its metrics in tables, such as `"box "`.
        main: metric by which results are compared.
        second: metric that tables show as well.
    """

    prefix: str
    main: str
    second: str

    @property
    def title(self) -> str:
        """Name of the main metric in tables, such as `box AP`."""
        return self.prefix + self.main


# Detectron2's name -> task. The first task of a result is its main one.
TASKS = {
    "bbox": Task("box ", "AP", "AP50"),
    "segm": Task("mask ", "AP", "AP50"),
    "sem_seg": Task("", "mIoU", "pACC"),
}


def main_metric(metrics: Mapping[str, Mapping]) -> tuple[str, str, float | None]:
    """Return the main task of a result, the name of its metric, and the value in percent.

    The value is None if it is unknown.

    Args:
        metrics: metrics `{task: {metric: percent}}`.

    Raises:
        KeyError: no task is in `TASKS`.
    """
    for name, task in TASKS.items():
        if name in metrics:
            return name, task.main, metrics[name][task.main]
    raise KeyError(f"none of {', '.join(TASKS)}")
