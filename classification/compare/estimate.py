"""Measure short runs of a comparison, and estimate the cost of all its runs from them."""

import heapq
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from classification.compare import study_file
from classification.compare.kinds import Cost, Kind, Measured, Task
from classification.compare.networks import Network
from classification.compare.settings import REPORT, RUNS, SHORT_RUN, STUDY, CompareSettings
from classification.study.commands import read_metrics
from classification.study.executors import Executor
from classification.study.file import StudyRun, read_study
from classification.study.options import Execution
from classification.study.run import duration, execute_all
from classification.study.summary import at_once, wall_seconds
from robust_backbones.core.errors import UserError, counted
from robust_backbones.core.files import atomic, cache_dir


def measure(
    kind: Kind,
    settings: CompareSettings,
    networks: Sequence[Network],
    tasks: Sequence[Task],
    output: Path,
    executor: Executor,
    execution: Execution,
    retry: str,
) -> list[Measured]:
    """Execute the short runs one by one, unless they have finished, and return their times.

    The executor gives each of them the same cores and GPUs as a run of the comparison.

    Args:
        kind: kind of the data.
        settings, networks, tasks: comparison.
        output: folder of the comparison.
        executor: executor of the comparison.
        execution: how often to start a failing run.
        retry: command that starts failed runs again, for the error message.

    Raises:
        UserError: a short run failed.
    """
    folder = output / SHORT_RUN
    parts = kind.short_parts(settings, networks, tasks)
    write_study(parts, folder)
    runs = read_study(folder / STUDY)
    if any(read_metrics(run.result) is None for run in runs):
        shutil.rmtree(folder / RUNS, ignore_errors=True)  # interrupted runs would show wrong times
        print(f"measuring {len(runs)} short run{'s' * (len(runs) > 1)}", flush=True)
        execute_all(runs, executor, execution, retry, at_once=1)
    return [_read(run) for run in runs]


def write_study(parts: Sequence[dict], folder: Path) -> str:
    """Write `study.yaml` to a folder if it is valid, and return its contents.

    Args:
        parts: parts of the study, as plain values.
        folder: folder of the file. The results go to its subfolder `RUNS`.

    Raises:
        UserError: the study is invalid.
    """
    study = folder / STUDY
    text = study_file.text(parts, folder / RUNS, study, folder / REPORT)
    with atomic(study) as temporary:
        temporary.write_text(text, encoding="utf-8")
        read_study(temporary)
    return text


def _read(run: StudyRun) -> Measured:
    result, begun = run.result, run.folder / "run.json"
    elapsed = result.stat().st_mtime - begun.stat().st_mtime
    if result.suffix != ".json":  # a converted network
        return Measured(run, elapsed, 0.0)
    seconds = float(json.loads(result.read_text(encoding="utf-8"))["seconds"])
    return Measured(run, seconds, max(0.0, elapsed - seconds))


def describe(
    kind: Kind, runs: Sequence[StudyRun], costs: Sequence[Cost], total: int, executor: Executor
) -> str:
    """Describe the expected cost of the unfinished runs.

    Args:
        kind: kind of the data.
        runs, costs: unfinished runs and their costs.
        total: number of all runs.
        executor: executor of the comparison.
    """
    ends = [[cost.low for cost in costs], [cost.high for cost in costs]]
    low, high = (wall_seconds([*zip(runs, each, strict=True)], executor) for each in ends)
    every = len(costs) == total
    count = counted(total, "run", "runs") if every else f"{len(costs)} of {total} runs"
    number = at_once(runs, executor)
    order = f"{number} at the same time" if number > 1 else "one after another"
    return (
        f"cost: {count}, {order} {_range(low, high)}; {_size(disk(costs, number))} of disk.\n"
        f"  This assumes {kind.assumes}."
    )


def _range(low: float, high: float) -> str:
    ends = list(dict.fromkeys(duration(value) for value in (low, high)))
    return f"about {ends[0]}" if len(ends) == 1 else f"{ends[0]} to {ends[1]}"


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def disk(costs: Sequence[Cost], at_once: int) -> float:
    """Return the disk space of runs in bytes, of which `at_once` are executed simultaneously."""
    temporary = heapq.nlargest(at_once, (cost.temporary for cost in costs))
    return sum(cost.disk for cost in costs) + sum(temporary)


def check_disk(needed: float, output: Path) -> None:
    """Check that the disks of the runs and of the feature cache have room.

    Args:
        needed: disk space of the runs in bytes.
        output: folder of the comparison.

    Raises:
        UserError: the disk is too full.
    """
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    for folder in (output, cache):
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise UserError(
                f"{folder}: the runs need {_size(needed)}, but the disk has {_size(free)} free. "
                "Free space, or choose another --output and "
                "ROBUST_BACKBONES_CACHE."
            )
