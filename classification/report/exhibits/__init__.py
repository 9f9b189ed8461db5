"""Results -> the sections of a report: each table and figure of the paper from what there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from classification.report import comparisons, records
from classification.report import groups as cells
from classification.report.comparisons import Rules
from classification.report.exhibits import accuracy as exhibit_accuracy
from classification.report.exhibits import coverage as exhibit_coverage
from classification.report.exhibits import detection as exhibit_detection
from classification.report.exhibits import pretraining_accuracy as exhibit_sources
from classification.report.exhibits import statistics as exhibit_statistics
from classification.report.exhibits import variants as exhibit_variants
from classification.report.exhibits.parts import Results
from classification.report.records import Record
from classification.report.sections import Section

# Exhibit -> its builder, in the order of the report. Those of `ONCE` are called once, `(results)
# -> sections`; the others for each group of transfer results that may be compared, `(results,
# group) -> sections`.
EXHIBITS: dict[str, Callable[..., list[Section]]] = {
    "Figure 1": exhibit_coverage.figure1,
    "Table 1": exhibit_accuracy.table1,
    "Figures 2 and 3": exhibit_accuracy.bars,
    "paired differences": exhibit_statistics.paired,
    "Section 4.3": exhibit_statistics.selection,
    "accuracy against eps": exhibit_accuracy.curves,
    "average ranks": exhibit_statistics.ranks,
    "Figure 4": exhibit_detection.figure4,
    "Figure 5": exhibit_sources.figure5,
    "Table 2": exhibit_sources.table2,
    "Figure 6": exhibit_variants.figure6,
    "Figure 7": exhibit_variants.figure7,
    "Figure 8, evaluation": exhibit_variants.evaluated,
    "Figure 8, transfer": exhibit_variants.figure8,
}
ONCE = ("Figure 1", "Figure 4", "Figure 8, evaluation")


def sections(
    found: list[Record], study: Path | None = None, rules: Rules | None = None
) -> list[Section]:
    """The exhibits for which there is a result, and how much of each there is.

    Args:
        found: results; `Value.records` of the sections are places in this list.
        study: a study file, whose runs are counted.
        rules: how verdicts are made; None: with the default margin, at a first look.
    """
    rules = rules or Rules()
    runs = records.merged(found)
    groups = cells.groups(runs)
    contests = {group.suffix: comparisons.compare(group, rules) for group in groups}
    results = Results(found, runs, groups, contests, study, rules)
    # Networks that learnt on stylized images are sources of Figure 8, not a study of their own.
    shown = [group for group in groups if not cells.stylized(group.key.pretrained_on)]
    made, empty = [], []
    for name, build in EXHIBITS.items():
        own = build(results) if name in ONCE else [s for g in shown for s in build(results, g)]
        own = [section for section in own if section.found]
        made += own
        if not own:
            empty.append(name)
    return made + exhibit_coverage.coverage(results, made, empty)
