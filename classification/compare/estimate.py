"""Measure short runs of a comparison, and estimate the cost of all its runs from them."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from classification.compare import study_file
from classification.compare.kinds import Cost, Kind, Measured, Task
from classification.compare.networks import Network
from classification.compare.settings import REPORT, RUNS, SHORT_RUN, STUDY, CompareSettings
from classification.study.commands import read_metrics
from classification.study.file import StudyRun, read_study
from classification.study.options import Execution
from classification.study.run import duration, execute_all
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic, cache_dir


def measure(
    kind: Kind,
    settings: CompareSettings,
    networks: Sequence[Network],
    tasks: Sequence[Task],
    output: Path,
    execution: Execution,
    retry: str,
) -> list[Measured]:
    """Execute the short runs, unless they have finished, and return their times.

    Args:
        kind: kind of the data.
        settings, networks, tasks: comparison.
        output: folder of the comparison.
        execution: where the runs of the comparison will be executed.
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
        alone = replace(execution, jobs=1) if execution.executor == "local" else execution
        execute_all(runs, alone, retry)
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


def describe(kind: Kind, costs: Sequence[Cost], total: int) -> str:
    """Describe the expected cost of the unfinished runs.

    Args:
        kind: kind of the data.
        costs: cost of each unfinished run.
        total: number of all runs.
    """
    low, high = sum(cost.low for cost in costs), sum(cost.high for cost in costs)
    count = f"{total} runs" if len(costs) == total else f"{len(costs)} of {total} runs"
    return (
        f"cost: {count}, one after another {_range(low, high)}; {_size(_disk(costs))} of disk.\n"
        f"  This assumes {kind.assumes}."
    )


def _range(low: float, high: float) -> str:
    ends = list(dict.fromkeys(duration(value) for value in (low, high)))
    return f"about {ends[0]}" if len(ends) == 1 else f"{ends[0]} to {ends[1]}"


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _disk(costs: Sequence[Cost]) -> float:
    return sum(cost.disk for cost in costs) + max((cost.temporary for cost in costs), default=0.0)


def check_disk(costs: Sequence[Cost], output: Path) -> None:
    """Check that the disks of the runs and of the feature cache have room.

    Raises:
        UserError: the disk is too full.
    """
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    for folder in (output, cache):
        free = shutil.disk_usage(folder).free
        if free < (needed := _disk(costs)):
            raise UserError(
                f"{folder}: the runs need {_size(needed)}, but the disk has {_size(free)} free. "
                "Free space, or choose another --output and "
                "ROBUST_BACKBONES_CACHE."
            )
