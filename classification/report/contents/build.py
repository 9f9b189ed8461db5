"""Build all sections of a report from results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from classification.report import comparisons, records
from classification.report.comparisons import Rules
from classification.report.contents import (
    accuracy,
    conditions,
    coverage,
    detection,
    few_images,
    paired_differences,
    pretraining_accuracy,
    variants,
)
from classification.report.contents.excluded import excluded_cells
from classification.report.contents.parts import Results
from classification.report.groups import groups_of
from classification.report.records import Record
from classification.report.sections import Section
from classification.study.file import read_study

# Tables and figures in the order of the report, with their builders. Builders in `ONCE` are called
# once, as `(results) -> sections`. All other builders are called for each group of comparable
# transfer runs, as `(results, group) -> sections`.
BUILDERS: dict[str, Callable[..., list[Section]]] = {
    "Figure 1": coverage.figure1,
    "Table 1": accuracy.table1,
    "Figures 2 and 3": accuracy.bars,
    "paired differences": paired_differences.paired,
    "Section 4.3": paired_differences.section_4_3,
    "what else transfers": conditions.transferred,
    "calibration": conditions.calibrated,
    "few training images": few_images.few_images,
    "accuracy against eps": accuracy.curves,
    "average ranks": paired_differences.ranks,
    "Figure 4": detection.figure4,
    "Figure 5": pretraining_accuracy.figure5,
    "Table 2": pretraining_accuracy.table2,
    "Figure 6": variants.figure6,
    "Figure 7": variants.figure7,
    "Figure 8, evaluation": variants.evaluated,
    "Figure 8, transfer": variants.figure8,
}
ONCE = ("Figure 1", "Figure 4", "Figure 8, evaluation")


def collect(found: list[Record], study: Path | None = None, rules: Rules | None = None) -> Results:
    """Group the results and compare robust with standard networks.

    Args:
        found: results; `Value.records` of the sections are indices into this list.
        study: study file whose runs are counted; None: no study.
        rules: rules for verdicts; None: the default margin and no earlier looks.
    """
    rules = rules or Rules()
    runs = records.merged(found)
    groups = groups_of(runs)
    planned = read_study(study) if study else []
    for store in {run.store for run in planned if run.store}:
        store.fetch_small()
    return Results(
        found,
        runs,
        groups,
        {group.suffix: comparisons.compare(group, rules) for group in groups},
        {group.suffix: comparisons.compare_architectures(group, rules) for group in groups},
        study,
        rules,
        planned,
        {group.suffix: excluded_cells(group, found, planned) for group in groups},
        {group.suffix: comparisons.compare_conditions(group, found, rules) for group in groups},
    )


def build_sections(results: Results) -> list[Section]:
    """Build the sections that have a result, and the sections about coverage."""
    shown = few_images.shown_groups(results)
    made, empty = [], []
    for name, build in BUILDERS.items():
        own = build(results) if name in ONCE else [s for g in shown for s in build(results, g)]
        own = [section for section in own if section.found]
        made += own
        if not own:
            empty.append(name)
    return made + coverage.coverage(results, shown, made, empty)
