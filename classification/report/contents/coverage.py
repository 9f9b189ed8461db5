"""Numbers of Figure 1, and the coverage of the report: found and missing results."""

from __future__ import annotations

from collections.abc import Iterable

from classification.report.contents.parts import ARCH, MODE, TASK, Results, of_trials
from classification.report.groups import Group
from classification.report.records import Record
from classification.report.sections import Cell, Column, Kind, Row, Section, Value
from classification.study.commands import read_metrics
from robust_backbones.core.eps import show_eps


def figure1(results: Results) -> list[Section]:
    """Build the table of numbers that belong to the visualizations of Figure 1."""
    found = [(i, r) for i, r in enumerate(results.records) if r.kind == "interpret"]
    if not found:
        return []
    parts = [
        (index, record, network, _numbers(row))
        for index, record in found
        for network, row in record.metrics.get("networks", {}).items()
    ]
    names = [*dict.fromkeys(name for *_, numbers in parts for name in numbers)]
    rows: list[Row] = [
        {"run": _run(record), "network": network}
        | {f"of_{n}": _value(numbers.get(n), index) for n in names}
        for index, record, network, numbers in parts
    ]
    text = [
        "Images that maximize a unit or a class score, and images that match a representation, "
        "found by gradient steps in a ball. The pictures are in the folders of the results. "
        "Confidence and agreement are in percent, for the network itself and for an independent "
        "evaluation classifier. Distances are relative; 0 means equal. The paper's figure has no "
        "numbers."
    ]
    columns = [
        Column("run"),
        Column("network"),
        *(Column(f"of_{n}", n.replace("_", " "), Kind.MEASURE) for n in names),
    ]
    warned = [warning["message"] for _, record in found for warning in _warnings(record)]
    return [
        Section(
            "figure1",
            "Figure 1: what networks see",
            text,
            columns,
            rows,
            [],
            warned,
            len(rows),
            len(rows),
        )
    ]


def _run(record: Record) -> str:
    """Return the labels of the run in its study, or the name of the run's folder."""
    return ", ".join(map(str, record.labels.values())) or record.path.parent.name


def _numbers(node: dict) -> dict[str, float]:
    """Collect the means in nested metrics, without the lists of numbers of single pictures."""
    found = {}
    for name, cell in node.items():
        if isinstance(cell, dict):
            found |= _numbers(cell)
        elif isinstance(cell, (int, float)) and not isinstance(cell, bool):
            found[name] = float(cell)
    return found


def _value(number: float | None, index: int) -> Value | None:
    return None if number is None else Value(number, records=(index,))


def _warnings(record: Record) -> Iterable[dict]:
    return [w for w in record.warnings if isinstance(w, dict) and "message" in w]


def coverage(
    results: Results, shown: list[Group], made: list[Section], empty: list[str]
) -> list[Section]:
    """Build the sections about coverage: tables and figures, the study, and missing networks.

    Args:
        results: results that the report is built from.
        shown: groups that have sections of their own.
        made: all other sections of the report.
        empty: names of tables and figures without any result.
    """
    rows: list[Row] = [
        {
            "title": section.title,
            "found": section.found,
            "wanted": section.wanted,
            "percent": _part(section),
            "section": section.name,
        }
        for section in made
    ]
    rows += [{"title": name, "found": 0, "percent": 0.0, "section": ""} for name in empty]
    text = [
        "Numbers that each table or figure has, and numbers that it should have. With published "
        "networks, it should have the paper's numbers. With your own networks, it should have "
        "every combination of their settings."
    ]
    columns = [
        Column("title", "table or figure"),
        Column("found", kind=Kind.COUNT),
        Column("wanted", kind=Kind.COUNT),
        Column("percent", kind=Kind.SHARE),
        Column("section"),
    ]
    counted = [section for section in made if section.wanted]
    warned = ["Simulated results are counted like measured ones."] * any(
        record.simulated for record in results.records
    )
    found = [
        Section(
            "coverage",
            "Coverage",
            text,
            columns,
            rows,
            [],
            warned,
            sum(s.found for s in counted),
            sum(s.wanted for s in counted),
        )
    ]
    return found + _study(results) + [s for g in shown for s in _missing(results, g)]


def _part(section: Section) -> float | None:
    return 100 * section.found / section.wanted if section.wanted else None


def _missing(results: Results, group: Group) -> list[Section]:
    """Build the table of networks without a run that Table 1, Figures 2 and 3 and curves need."""
    levels, found = (0.0, *group.eps), 0
    excluded = results.excluded.get(group.suffix, frozenset())
    wanted = len(group.modes) * len(group.tasks) * len(group.archs) * len(levels) - len(excluded)
    rows: list[Row] = []
    for mode in group.modes:
        for task in group.tasks:
            for arch in group.archs:
                have = group.row(mode, task, arch)
                found += len(have)
                lost = [
                    show_eps(group.key.norm, e)
                    for e in levels
                    if e not in have and (mode, task, arch, e) not in excluded
                ]
                if lost:
                    shown = "all" if len(lost) == len(levels) else ", ".join(lost)
                    rows.append(
                        {
                            "mode": mode,
                            "task": task,
                            "architecture": arch,
                            "eps_found": len(have),
                            "eps_missing": shown,
                        }
                    )
    if not rows:
        return []
    words = "; ".join(group.key.words)
    columns = [MODE, TASK, ARCH, Column("eps_found", kind=Kind.COUNT), Column("eps_missing")]
    return [
        Section(
            "missing" + group.suffix,
            f"Missing results ({words})",
            ["Combinations of mode, task, architecture and eps without a result."],
            columns,
            rows,
            [],
            [],
            found,
            wanted,
        )
    ]


def _study(results: Results) -> list[Section]:
    """Build the table of finished and missing runs of the study file, if there is a study."""
    if results.study is None:
        return []
    runs = results.planned
    indices = {record.path.resolve(): i for i, record in enumerate(results.records)}
    axes = [*dict.fromkeys(axis for run in runs for axis in run.labels)]
    rows: list[Row] = []
    found = 0
    for run in runs:
        index = indices.get(run.result.resolve())
        finished = index is not None or read_metrics(run.result) is not None
        found += finished
        rows.append(
            {
                "part": run.part,
                **{f"axis_{axis}": str(run.labels.get(axis, "")) for axis in axes},
                "state": "finished" if finished else "missing",
                "result": None if index is None else _result(results, index),
            }
        )
    columns = [
        Column("part"),
        *(Column(f"axis_{axis}", axis) for axis in axes),
        Column("state"),
        Column("result", kind=Kind.ACCURACY),
    ]
    text = [
        "Runs of the study file. A result is the mean over trials, with the lowest and the highest "
        "trial."
    ]
    return [
        Section(
            "study", f"Study {results.study.name}", text, columns, rows, [], [], found, len(rows)
        )
    ]


def _result(results: Results, index: int) -> Cell:
    accuracies = results.records[index].accuracies
    return of_trials(accuracies, (index,)) if accuracies else None
