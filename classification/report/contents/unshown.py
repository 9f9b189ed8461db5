"""Name the results that no table or figure of the report shows."""

from __future__ import annotations

from collections.abc import Iterable

from classification.report.contents.detection import is_candidate
from classification.report.contents.parts import Results
from classification.report.records import Record
from classification.report.result_kinds import READERS, named
from classification.report.sections import Section, Value
from robust_backbones.core.detector_tasks import TASKS

LISTED = 3  # maximum number of paths in a sentence


def unshown(results: Results, sections: Iterable[Section]) -> list[str]:
    """Return one sentence for each reason why results are not shown.

    Args:
        results: results that the report is built from.
        sections: all sections of the report.
    """
    shown = {
        index
        for section in sections
        if section.name != "study"  # lists every run of the study file
        for row in section.rows
        for cell in row.values()
        if isinstance(cell, Value)
        for index in cell.records
    }
    shown |= {
        index for group in results.groups for run in group.ambiguous_runs for index in run.indices
    }
    reasons: dict[str, list[str]] = {}
    for index, record in enumerate(results.records):
        for reason in _reasons(record, index in shown):
            reasons.setdefault(reason, []).append(str(record.path.parent))
    return [_sentence(reason, paths) for reason, paths in reasons.items()]


def _sentence(reason: str, paths: list[str]) -> str:
    more = f" and {len(paths) - LISTED} more" if paths[LISTED:] else ""
    return f"Not in any table, because {reason}: {', '.join(paths[:LISTED])}{more}."


def _reasons(record: Record, is_shown: bool) -> list[str]:
    """Return the reasons why the result, or a part of it, is not shown."""
    if record.kind == "detection" and is_candidate(record):  # results of others record its AP
        return []
    if record.kind == "detection":
        found = _unknown_parts(record)
        if is_shown or found:
            return found
    if is_shown or record.kind in ("pretrain", "interpret"):  # networks and pictures
        return []
    if record.kind not in READERS:
        return [f"the report has no table for the kind '{record.kind}'"]
    if record.eps is None and record.kind != "robustness":
        return [
            "the network is neither standard nor robust"
            if named(record.weights).get("eps", 0.0) is None
            else "the eps of the network's pretraining is unknown"
        ]
    of_what = record.arch or record.dataset
    return [f"no table includes the {record.kind} results of {of_what}"]


def _unknown_parts(record: Record) -> list[str]:
    """Return the reasons why numbers of a detector are not shown: its tasks and test sets."""
    found = []
    numbers = record.metrics.get(record.dataset)
    tasks = [name for name in numbers if name not in TASKS] if isinstance(numbers, dict) else []
    if tasks:
        known = ", ".join(TASKS)
        found.append(f"the report has tables for {known}, but not for {', '.join(tasks)}")
    others = [name for name in record.metrics if name not in (record.dataset, "best")]
    if others:
        found.append(f"only the first test set is shown, but not {', '.join(others)}")
    if not record.accuracies and not tasks:
        found.append("the detector has no AP or mIoU")
    return found
