"""Find the networks that a study excludes on purpose, so that they do not count as missing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from classification.report.groups import Group
from classification.report.records import Record
from classification.study.file import StudyRun

NetworkCell = tuple[str, str, str, float | None]  # mode, task, architecture and eps of the network
Finished = tuple[dict[str, str], NetworkCell]  # labels of a finished run, and its cell


def excluded_cells(
    group: Group, records: list[Record], planned: Iterable[StudyRun]
) -> frozenset[NetworkCell]:
    """Find the cells of a group that a study excludes with `skip` or `only`.

    A study file has labels for its axes, but does not name cells. The finished runs of a part show
    which mode, task, architecture and eps belong to each label. If they do not show the cell of an
    excluded combination, the combination still counts as missing.

    Args:
        group: group of comparable results.
        records: all records of the report.
        planned: runs of the study file.
    """
    cells: dict[str, NetworkCell] = {}
    for task, runs in group.runs.items():
        for run in runs:
            if run.first.downscale is None:
                cell = (run.first.mode, task, group.names[id(run)], run.first.eps)
                cells |= {str(records[index].path.resolve()): cell for index in run.indices}
    parts: dict[str, list[StudyRun]] = {}
    for planned_run in planned:
        parts.setdefault(planned_run.part, []).append(planned_run)
    found: set[NetworkCell] = set()
    for part in parts.values():
        finished = [
            (run.labels, cells[path])
            for run in part
            if (path := str(run.result.resolve())) in cells
        ]
        axes = {axis: dict.fromkeys(run.labels[axis] for run in part) for axis in part[0].labels}
        taken = {tuple(run.labels.values()) for run in part}
        for labels in set(itertools.product(*axes.values())) - taken if finished else ():
            if cell := _cell(dict(zip(axes, labels, strict=True)), finished):
                found.add(cell)
    levels = (0.0, *group.eps)
    grid = itertools.product(group.modes, group.tasks, group.archs, levels)
    return frozenset(found.intersection(grid) - set(cells.values()))


def _cell(
    labels: Mapping[str, str], finished: list[tuple[dict[str, str], NetworkCell]]
) -> NetworkCell | None:
    """Return the cell of the network with these labels; None if the finished runs do not show it.

    Args:
        labels: label of each axis.
        finished: labels and cell of each finished run of the same part.
    """
    values = []
    for number in range(4):
        every = {cell[number] for _, cell in finished}
        options = {value for axis in labels for value in _value(axis, labels, finished, number)}
        if len(every) == 1:
            options = every
        if len(options) != 1:
            return None
        values += options
    mode, task, arch, eps = values
    return mode, task, arch, eps


def _value(
    axis: str,
    labels: Mapping[str, str],
    finished: list[tuple[dict[str, str], NetworkCell]],
    number: int,
) -> set:
    """Return the value that a label of this axis gives to a field of the cell.

    Args:
        axis: name of the axis.
        labels: label of each axis.
        finished: labels and cell of each finished run of the same part.
        number: index of the field in a cell.

    Returns:
        Set with the value. The set is empty if a label of the axis has several values, if two
        labels have the same value, or if the axis has only one label.
    """
    known: dict[str, set] = {}
    for own, cell in finished:
        known.setdefault(own[axis], set()).add(cell[number])
    values = [value for found in known.values() for value in found]
    unique = all(len(found) == 1 for found in known.values()) and len(set(values)) == len(known)
    return known.get(labels[axis], set()) if unique and len(known) > 1 else set()
