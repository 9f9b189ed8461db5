"""What a study's folders say: its table, its state, and what the rest will take."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

from classification.study import queue as study_queue
from classification.study.commands import COMMANDS, metrics
from classification.study.file import REPEATS, Run
from classification.study.run import FAILED, FINISHED

# What a run's time depends on most: those that agree in the first are like it; else in fewer.
LIKE = (
    ("command", "dataset", "mode", "config", "weights"),
    ("command", "dataset", "mode"),
    ("command",),
)


def table(runs: list[Run]) -> str:
    """Markdown, one table for each part; percent, mean and standard deviation over trials or
    seeds."""
    parts = []
    for name in dict.fromkeys(run.part for run in runs):
        of_part = [run for run in runs if run.part == name]
        command = COMMANDS[of_part[0].command]
        axes = [axis for axis in of_part[0].labels if axis not in REPEATS]
        heads = [*axes, *command.columns]
        lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        rows: dict[tuple, list[Run]] = {}
        for run in of_part:
            rows.setdefault(tuple(run.labels[axis] for axis in axes), []).append(run)
        for labels, group in rows.items():
            found = [m for m in (metrics(run.result) for run in group) if m is not None]
            cells = command.cells(found) if found else [""] * (len(command.columns) - 1)
            cells = cells if found else [*cells, "missing"]
            lines.append(f"| {' | '.join([*map(_escaped, labels), *cells])} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def status(runs: list[Run]) -> str:
    """A line for each run that has not finished, and a count of all."""
    lines, states = [], Counter()
    for run in runs:
        state, error = study_queue.state(run)
        states[state] += 1
        if state != FINISHED:
            lines.append(f"{state:11}  {run.name}" + (f": {error}" if state == FAILED else ""))
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    return "\n".join([*lines, f"{len(runs)} runs: {counts}"])


def plan(runs: list[Run]) -> str:
    """How many runs there are and are left; time and room, judged by those that have finished."""
    done = {run.folder: _spent(run) for run in runs if metrics(run.result) is not None}
    left = [run for run in runs if run.folder not in done]
    lines = []
    for name in dict.fromkeys(run.part for run in runs):
        of_part = [run for run in runs if run.part == name]
        finished = sum(run.folder in done for run in of_part)
        trials = sum(_trials(run) for run in of_part)
        repeated = f" with {trials} trials" if trials != len(of_part) else ""
        lines.append(f"{name}: {len(of_part)} runs{repeated}, {finished} finished")
    finished = [(run, *done[run.folder]) for run in runs if run.folder in done]
    hours, gpu_hours, room, unknown = 0.0, 0.0, 0, 0
    for run in left:
        like = _like(run, finished)
        if like is None:
            unknown += 1
            continue
        seconds, size = like
        hours += seconds / 3600
        gpu_hours += run.gpus * seconds / 3600
        room += size
    if len(left) > unknown:
        lines.append(
            f"{len(left) - unknown} runs are left whose like has finished: "
            f"{hours:.1f} hours one after the other, {gpu_hours:.1f} GPU hours, "
            f"{room / 1e9:.2f} GB"
        )
    if unknown:
        lines.append(
            f"{unknown} runs are left of whose kind none has finished: no estimate; make "
            "one of each first"
        )
    if not left:
        lines.append("nothing is left to do")
    return "\n".join(lines)


def _trials(run: Run) -> int:
    return COMMANDS[run.command].trials(run.options)


def _spent(run: Run) -> tuple[float, int]:
    """Seconds and bytes of a finished run."""
    seconds = 0.0
    if run.result.suffix == ".json":
        seconds = float(json.loads(run.result.read_text(encoding="utf-8")).get("seconds") or 0)
    return seconds, sum(f.stat().st_size for f in Path(run.folder).rglob("*") if f.is_file())


def _like(run: Run, finished: list) -> tuple[float, float] | None:
    def traits(other: Run, names: Iterable[str]) -> list:
        known = other.options | {"command": other.command}
        return [known.get(name) for name in names]

    for names in LIKE:
        rows = [row for row in finished if traits(row[0], names) == traits(run, names)]
        if rows:
            each = [(seconds / _trials(other), size) for other, seconds, size in rows]
            return mean(row[0] for row in each) * _trials(run), mean(row[1] for row in each)
    return None
