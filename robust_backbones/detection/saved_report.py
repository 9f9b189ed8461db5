"""Score a file of detections, print the metrics and write them to files."""

import time

from robust_backbones.core import results
from robust_backbones.core.files import atomic
from robust_backbones.detection import config, run_checks
from robust_backbones.detection.evaluation import saved, tables


def report(
    predictions: str,
    *,
    annotations: str | None,
    dataset: str | None,
    overrides: list[str],
    tasks: list[str],
    areas: list[float],
    limit: int | None,
    csv: str | None,
    output: str | None,
) -> None:
    """Score detections and report the metrics.

    Args:
        predictions: JSON file in COCO's result format.
        annotations: COCO annotation file; None if `dataset` is given.
        dataset: registered or custom dataset; None if `annotations` is given.
        overrides: changes to the way the dataset is read, `KEY VALUE` pairs in a flat list.
        tasks: tasks to score; empty for the tasks of the detections.
        areas: edges of size buckets for AP by object size, the square root of the area, pixels.
        limit: largest number of detections per image and class that are scored; None for 100.
        csv: CSV file to write; None to write no CSV file.
        output: result file to write; None to write no result file.

    Raises:
        UserError: a file or a detection is invalid, or the dataset is unknown.
    """
    started = time.perf_counter()
    name = None
    if dataset:
        cfg = config.dataset_config(dataset, overrides)
        run_checks.check_inputs(cfg, train=False, overrides=overrides)
        (name,) = cfg.DATASETS.TEST
    scored = saved.score_file(predictions, annotations, name, tasks, areas, limit)
    print(f"{predictions} on {scored.name}, percent:\n\n{tables.markdown(scored.metrics)}")
    if csv:
        with atomic(csv) as temporary:
            temporary.write_text(tables.csv_text(scored.metrics), encoding="utf-8")
    if output:
        settings = {
            "predictions": predictions,
            "annotations": annotations,
            "dataset": dataset,
            "overrides": overrides,
            "tasks": tasks,
            "areas": [f"{edge:g}" for edge in areas],  # JSON has no infinity
            "max_detections": limit,
            "csv": csv,
            "output": output,
        }
        results.write(
            output,
            kind="detection",
            metrics={scored.name: scored.metrics},
            settings=settings,
            weights_sha256=None,
            data=scored.data,
            seed=0,
            seconds=time.perf_counter() - started,
            device="cpu",
        )
