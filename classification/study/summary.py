"""Summarize a study from the folders of its runs: results table, state and cost estimate."""

import heapq
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import mean

from classification.study.commands import COMMANDS, read_metrics
from classification.study.execute import FAILED, FINISHED, state
from classification.study.executors import Executor
from classification.study.file import REPEATS, StudyRun
from robust_backbones.core.errors import counted

# Options that the time of a run depends on, most specific list first. An estimate is the mean over
# the finished runs with the same values of these options. It uses the first list for which such
# runs exist.
SIMILAR = (
    ("command", "dataset", "mode", "config", "weights"),
    ("command", "dataset", "mode"),
    ("command",),
)


def table(runs: list[StudyRun]) -> str:
    """Return a Markdown table for each part, with mean and standard deviation over seeds."""
    tables = []
    for of_part in _by_part(runs).values():
        command = COMMANDS[of_part[0].command]
        axes = [axis for axis in of_part[0].labels if axis not in REPEATS]
        headings = [*axes, *command.columns]
        lines = [_line(headings), "|" + "---|" * len(headings)]
        rows: dict[tuple, list[StudyRun]] = {}
        for run in of_part:
            rows.setdefault(tuple(run.labels[axis] for axis in axes), []).append(run)
        for labels, group in rows.items():
            found = [m for m in (read_metrics(run.result) for run in group) if m is not None]
            empty = [*[""] * (len(command.columns) - 1), "missing"]
            cells = command.cells(found) if found else empty
            lines.append(_line([*(label.replace("|", "\\|") for label in labels), *cells]))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _by_part(runs: list[StudyRun]) -> dict[str, list[StudyRun]]:
    parts: dict[str, list[StudyRun]] = {}
    for run in runs:
        parts.setdefault(run.part, []).append(run)
    return parts


def status(runs: list[StudyRun]) -> str:
    """Return a line for every unfinished run, and the number of runs in each state."""
    lines, states = [], Counter()
    for run in runs:
        name, error = state(run)
        states[name] += 1
        if name != FINISHED:
            lines.append(f"{name:11}  {run.name}" + (f": {error}" if name == FAILED else ""))
    counts = ", ".join(f"{count} {name}" for name, count in states.items())
    return "\n".join([*lines, f"{counted(len(runs), 'run', 'runs')}: {counts}", *_unclaimed(runs)])


def _unclaimed(runs: list[StudyRun]) -> list[str]:
    """Report finished runs in the parts' folders that are no longer in the study file."""
    lines, known = [], {run.folder for run in runs}
    for of_part in _by_part(runs).values():
        part, result = of_part[0].folder.parent, of_part[0].result.name
        found = {path.parent for path in part.glob(f"*/{result}")} - known
        if found:
            lines.append(
                f"{len(found)} finished runs in {part} do not match this study. Their options, "
                "command or input files have changed."
            )
    return lines


def plan(runs: list[StudyRun], executor: Executor | None = None) -> str:
    """Return the number of runs of each part, and the estimated cost of the unfinished runs.

    Args:
        runs: runs of a study.
        executor: executor for the estimate of the wall time; None: no such estimate.
    """
    done = [(run, *_cost(run)) for run in runs if read_metrics(run.result) is not None]
    folders = {run.folder for run, *_ in done}
    lines = []
    for name, of_part in _by_part(runs).items():
        finished = sum(run.folder in folders for run in of_part)
        trials = sum(_trials(run) for run in of_part)
        repeated = f" with {trials} trials" if trials != len(of_part) else ""
        own = counted(len(of_part), "run", "runs")
        lines.append(f"{name}: {own}{repeated}, {finished} finished")
    left = [run for run in runs if run.folder not in folders]
    if not left:
        lines.append("All runs have finished.")
    wall, known = "", [(run, cost) for run in left if (cost := _estimate(run, done))]
    if known:
        seconds = sum(cost[0] for _, cost in known)
        gpu_seconds = sum(run.gpus * cost[0] for run, cost in known)
        size = sum(cost[1] for _, cost in known)
        if executor:
            times = [(run, cost[0]) for run, cost in known]
            wall = f"{wall_seconds(times, executor) / 3600:.1f} hours with"
            wall += f" {at_once([run for run, _ in known], executor)} runs at the same time, "
        lines.append(
            f"{len(known)} unfinished runs, estimated from similar finished ones: "
            f"{seconds / 3600:.1f} hours in sequence, {wall}{gpu_seconds / 3600:.1f} GPU hours, "
            f"{size / 1e9:.2f} GB"
        )
    if unknown := len(left) - len(known):
        lines.append(
            f"{unknown} unfinished runs without an estimate: no similar run has finished. Run one "
            "of each kind first."
        )
    return "\n".join(lines + _unclaimed(runs))


def at_once(runs: Sequence[StudyRun], executor: Executor) -> int:
    """Return the largest number of runs of one part that the executor runs at the same time."""
    parts = _by_part([*runs]).values()
    return max((min(len(part), executor.places(part[0])) for part in parts), default=1)


def wall_seconds(times: Sequence[tuple[StudyRun, float]], executor: Executor) -> float:
    """Return the wall time of runs in seconds, if each part begins after the one before.

    Args:
        times: runs in the order of their start, each with its own wall time in seconds.
        executor: executor of the runs.
    """
    total = 0.0
    for _, rows in itertools.groupby(times, lambda row: row[0].part):
        part = list(rows)
        ends = [0.0] * min(len(part), executor.places(part[0][0]))  # of the last run in each place
        for _, seconds in part:
            heapq.heapreplace(ends, ends[0] + seconds)
        total += max(ends)
    return total


def _trials(run: StudyRun) -> int:
    return COMMANDS[run.command].trials(run.options)


def _cost(run: StudyRun) -> tuple[float, int]:
    """Return the wall time in seconds and the disk space in bytes of a finished run."""
    seconds = 0.0
    if run.result.suffix == ".json":
        seconds = float(json.loads(run.result.read_text(encoding="utf-8")).get("seconds") or 0)
    return seconds, sum(f.stat().st_size for f in run.folder.rglob("*") if f.is_file())


def _estimate(run: StudyRun, done: list[tuple[StudyRun, float, int]]) -> tuple[float, float] | None:
    """Return the expected seconds and bytes of a run, or None if no similar run has finished."""

    def traits(other: StudyRun, names: Iterable[str]) -> list:
        options = other.options | {"command": other.command}
        return [options.get(name) for name in names]

    for names in SIMILAR:
        costs = [
            (seconds / _trials(other), size)
            for other, seconds, size in done
            if traits(other, names) == traits(run, names)
        ]
        if costs:
            return mean(c[0] for c in costs) * _trials(run), mean(c[1] for c in costs)
    return None
