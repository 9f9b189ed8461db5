"""Results -> the sections of a report: each table and figure of the paper from what there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from classification import (
    cells,
    comparisons,
    exhibit_accuracy,
    exhibit_statistics,
    records,
)
from classification.exhibit_parts import Results
from classification.records import Record
from classification.sections import Section

# Made once for each group of results that may be compared: (results, group) -> sections.
OF_GROUPS: dict[str, Callable] = {
    "Table 1": exhibit_accuracy.table1,
    "Figures 2 and 3": exhibit_accuracy.bars,
    "accuracy against eps": exhibit_accuracy.curves,
    "Section 4.3": exhibit_statistics.selection,
    "paired differences": exhibit_statistics.paired,
    "average ranks": exhibit_statistics.ranks,
}


def sections(found: list[Record], study: Path | None = None) -> list[Section]:
    """The exhibits for which there is a result.

    Args:
        found: results; `Value.records` of the sections are places in this list.
        study: a study file, whose runs are counted.
    """
    runs = records.merged(found)
    groups = cells.groups(runs)
    contests = {group.suffix: comparisons.compare(group) for group in groups}
    results = Results(found, runs, groups, contests, study)
    made = []
    for build in OF_GROUPS.values():
        for group in groups:
            made += [section for section in build(results, group) if section.found]
    return made
