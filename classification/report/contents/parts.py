"""Shared parts of the sections: columns, values from runs, and warnings about runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from classification.datasets.specs import DATASETS
from classification.report.comparisons import Contest, Rules
from classification.report.contents.excluded import NetworkCell
from classification.report.groups import Group
from classification.report.records import Merged, Record
from classification.report.sections import Cell, Column, Ends, Kind, Row, Section, Series, Value
from classification.study.file import StudyRun
from robust_backbones.core.eps import show_eps

MODE, TASK, ARCH = Column("mode"), Column("task"), Column("architecture")

# Settings that differ between the runs of a table by design, or do not affect the accuracy.
_MAY_DIFFER = {
    "arch",
    "weights",
    "weights_sha256",
    "source",
    "statistics",
    "trained_image_size",
    "seed",
    "trials",
    "data",
    "downscale",
    "save_classifier",
    "limit",
    "test_limit",
    "shots",
    "fraction",
    "conditions",
}
EMBEDDED = tuple(name for name, row in DATASETS.items() if not row.needs_root)


@dataclass(frozen=True, eq=False)
class Results:
    """Results from which all sections of a report are built.

    Attributes:
        records: all records of the report; `Value.records` are indices into this list.
        runs: merged records; all trials of a configuration form one run.
        groups: groups of comparable transfer runs.
        contests: for each group's suffix, a mapping from (mode, task) to the contest between
            the best robust and standard networks.
        by_architecture: for each group's suffix, a mapping from (mode, task, architecture) to the
            contest between networks of this architecture.
        study: study file, or None.
        rules: rules for verdicts.
        planned: runs of the study file; empty without a study.
        excluded: for each group's suffix, the cells that the study excludes, so that they do not
            count as missing.
        by_condition: for each group's suffix, a mapping from (mode, task, architecture, condition)
            to the contest under an attack, on corrupted images, or on shifted images.
    """

    records: list[Record]
    runs: list[Merged]
    groups: list[Group]
    contests: dict[str, dict[tuple[str, str], Contest]]
    by_architecture: dict[str, dict[tuple[str, str, str], Contest]]
    study: Path | None = None
    rules: Rules = field(default_factory=Rules)
    planned: list[StudyRun] = field(default_factory=list)
    excluded: dict[str, frozenset[NetworkCell]] = field(default_factory=dict)
    by_condition: dict[str, dict[tuple[str, str, str, str], Contest]] = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[Merged]:
        """Return the runs of one kind of result, which is a key of `result_kinds.READERS`."""
        return [run for run in self.runs if run.first.kind == kind]


def value(run: Merged | None) -> Value | None:
    """Return the mean over the trials of a run, with the lowest and the highest trial."""
    return None if run is None else of_trials(run.accuracies, run.indices)


def of_trials(accuracies: tuple[float, ...], records: tuple[int, ...]) -> Value:
    """Return the mean over trials, with the lowest and the highest trial if there are several.

    Args:
        accuracies: accuracy of each trial, percent.
        records: indices of the records that contain the trials.
    """
    count = len(accuracies)
    ends = Ends(min(accuracies), max(accuracies)) if count > 1 else None
    return Value(sum(accuracies) / count, ends, count, records)


def minus(a: Cell, b: Cell) -> float | None:
    """Return `a - b` for two cells with numbers or means; None if a cell is missing."""
    a, b = (cell.mean if isinstance(cell, Value) else cell for cell in (a, b))
    assert not isinstance(a, str) and not isinstance(b, str)
    return None if a is None or b is None else a - b


def series(label: str, x: list, cells: Iterable[Cell], **more: Any) -> Series:
    """Convert cells of a table to a series of a figure. Spreads become error bars.

    Args:
        label: name in the legend.
        x: position of each cell, a number or category.
        cells: numbers or means, percent; None: no number.
        more: further fields of the series.
    """
    values = [Value(cell) if isinstance(cell, (int, float)) else cell for cell in cells]
    ends = [v.ends if isinstance(v, Value) else (None, None) for v in values]
    means = [v.mean if isinstance(v, Value) else None for v in values]
    return Series(label, x, means, [low for low, _ in ends], [high for _, high in ends], **more)


def eps_column(eps: float, norm: str, kind: Kind = Kind.ACCURACY) -> Column:
    """Return the column for networks with one eps. The best number of each row is bold."""
    return Column(_eps_key(eps), f"eps {show_eps(norm, eps)}", kind, compared=True)


def eps_cells(levels: Iterable[float], numbers: Iterable[Cell]) -> Row:
    """Return the cells of a row for the columns of `eps_column`."""
    return dict(zip(map(_eps_key, levels), numbers, strict=True))


def _eps_key(eps: float) -> str:
    return f"eps_{eps:g}"


def section(
    group: Group,
    name: str,
    title: str,
    *,
    runs: Iterable[Merged | None],
    text: list[str],
    columns: list[Column],
    rows: list[Row],
    warned: Iterable[str] = (),
    **more: Any,
) -> Section:
    """Create a section about a group, and add warnings about the runs.

    Args:
        group: group of comparable results.
        name: name of the section, without the group's suffix.
        title: heading of the section.
        runs: runs whose numbers are in the section; None entries are ignored.
        text: paragraphs above the table.
        columns: columns of the table.
        rows: rows of the table.
        warned: further warnings.
        more: further fields of the section.
    """
    used = list({id(run): run for run in runs if run}.values())
    words = "; ".join(group.key.words)
    made = Section(
        name + group.suffix,
        f"{title} ({words})" if group.suffix else title,
        [*text, f"Results: {words}."],
        columns,
        rows,
        **more,
    )
    warned = [*warnings(used), *pretraining_differs(run.first for run in used), *warned]
    warned += [
        f"The standard network of {row} is its published twin, a {arch}."
        for row, arch in group.other_twins.items()
    ]
    found = [*_mixed_with_paper(group, made), *warned, *chosen(group, used)]
    return replace(made, warnings=found)


def _mixed_with_paper(group: Group, section: Section) -> list[str]:
    """Warn if the paper's numbers are in a table of runs with another protocol."""
    if group.key.protocol == "paper" or not any(column.paper for column in section.columns):
        return []
    return [
        "Protocols are mixed: the paper's numbers are from its own protocol, these are from "
        f"'{group.key.protocol}'. Part of a difference may be due to the protocol."
    ]


def warnings(runs: list[Merged]) -> list[str]:
    """List reasons not to compare or trust the numbers of these runs, one sentence each."""
    records = [run.first for run in runs]
    found = []
    if any(r.simulated for r in records):
        found.append("Simulated: no network was trained for these numbers.")
    if small := sorted({r.dataset for r in records} & set(EMBEDDED)):
        found.append(
            f"{', '.join(small)}: small bundled tasks, which show that the software works. Their "
            "numbers are not evidence for or against the paper's claim."
        )
    versions = sorted({r.code_version for r in records})
    if len(versions) > 1:
        found.append(f"The results are from several versions of the code: {', '.join(versions)}.")
    for task in sorted({r.dataset for r in records}):
        own = [r for r in records if r.dataset == task]
        metrics = sorted({r.metric for r in own})
        if len(metrics) > 1:
            found.append(f"{task} is measured in {' and '.join(metrics)}: not comparable.")
    if mixed := _mixed(records):
        found.append(f"Runs of one task and mode have different settings: {', '.join(mixed)}.")
    if any(r.settings.get("selection") == "test" for r in records):
        found.append(
            "Epochs and learning rates were chosen on the test images, as the paper's protocol "
            "does. The accuracies are too high."
        )
    if any(r.assumed_standard for r in records):
        found.append(
            "Some weight files do not record how they were trained. They count as standard "
            "networks."
        )
    if any(r.assumed_statistics for r in records):
        found.append(
            "Some weight files do not state their input mean and std. ImageNet's are assumed. For "
            "networks that were trained with others, the numbers are wrong."
        )
    counts = sorted({len(run.accuracies) for run in runs})
    if len(counts) > 1:
        found.append(f"Numbers of trials differ: {counts[0]} to {counts[-1]}.")
    if any(run.contradictions for run in runs):
        found.append(
            "Some seeds have several results with different accuracies. The first result by path "
            "is used."
        )
    return found


def pretraining_differs(records: Iterable[Record]) -> list[str]:
    """Warn if networks are known to be pretrained on different data."""
    data = sorted({record.pretrained_on for record in records} - {""})
    return [f"The networks are pretrained on different data: {', '.join(data)}."] * (len(data) > 1)


def _mixed(records: list[Record]) -> list[str]:
    """List the settings that differ between transfer runs of one task and mode."""
    alike: dict[tuple, list[dict]] = {}
    for r in records:
        if r.kind == "transfer":
            alike.setdefault((r.mode, r.dataset), []).append(r.settings)
    return sorted(
        {
            key
            for own in alike.values()
            for key in set().union(*own) - _MAY_DIFFER
            if len({str(settings.get(key)) for settings in own}) > 1
        }
    )


def chosen(group: Group, runs: list[Merged]) -> list[str]:
    """Warn if a run is the best of several configurations on the test images."""
    if not (number := sum(id(run) in group.ambiguous for run in runs)):
        return []
    return [
        f"{number} runs are one of several configurations of their network (other settings, "
        "another pretraining seed, or another standard network). The table shows the configuration "
        "that is best on the test images, as the paper does."
    ]
