"""What the exhibits share: how a number becomes a `Value`, and what must be warned of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from classification.datasets.specs import DATASETS
from classification.report.comparisons import Contest, Rules
from classification.report.groups import Group
from classification.report.records import Merged, Record
from classification.report.sections import Column, Section, Series, Value

# Settings in which runs of a table differ by its design, and those that change no accuracy.
_OWN = {
    "arch",
    "weights",
    "weights_sha256",
    "source",
    "seed",
    "trials",
    "data",
    "downscale",
    "save_classifier",
    "limit",
    "test_limit",
}
EMBEDDED = tuple(name for name, row in DATASETS.items() if not row.needs_root)


@dataclass(frozen=True, eq=False)
class Results:
    """All that the exhibits are made of.

    Attributes:
        records: of the report, which `Value.records` count.
        runs: the same, with trials put together.
        groups: of the transfer runs.
        contests: group's suffix -> (mode, task) -> the best robust against the best standard.
        study: a study file, or None.
        rules: how verdicts are made.
    """

    records: list[Record]
    runs: list[Merged]
    groups: list[Group]
    contests: dict[str, dict[tuple[str, str], Contest]]
    study: Path | None = None
    rules: Rules = field(default_factory=Rules)

    def of_kind(self, kind: str) -> list[Merged]:
        return [run for run in self.runs if run.first.kind == kind]


def value(run: Merged | None, note: str = "") -> Value | None:
    """Mean and ends of its trials."""
    if run is None:
        return None
    several = len(run.accuracies) > 1
    return Value(
        run.mean,
        min(run.accuracies) if several else None,
        max(run.accuracies) if several else None,
        len(run.accuracies),
        run.places,
        note,
    )


def minus(a: Value | float | None, b: Value | float | None) -> float | None:
    """Difference of the means; None where one is missing."""
    a, b = (v.mean if isinstance(v, Value) else v for v in (a, b))
    return None if a is None or b is None else a - b


def series(label: str, x: list, values: list[Value | None], **more: Any) -> Series:
    """Means with the ends of their trials."""
    return Series(
        label,
        x,
        [v.mean if v else None for v in values],
        [v.low if v else None for v in values],
        [v.high if v else None for v in values],
        **more,
    )


def columns(*names: str | tuple) -> list[Column]:
    """Text columns, and `(name, digits)` or `(name, digits, best)` of numbers."""
    return [Column(name, None) if isinstance(name, str) else Column(*name) for name in names]


def section(
    group: Group,
    name: str,
    title: str,
    *,
    runs: Iterable[Merged],
    text: list[str],
    columns: list[Column],
    rows: list[list],
    warned: Iterable[str] = (),
    **more: Any,
) -> Section:
    """A section about a group, with the warnings that its runs call for."""
    runs = list({id(run): run for run in runs if run}.values())
    words = "; ".join(group.key.words)
    heads, rows = without_paper(columns, rows)
    return Section(
        name + group.suffix,
        f"{title} ({words})" if group.suffix else title,
        [*text, f"Results: {words}."],
        heads,
        rows,
        warnings=[*_mixed_with_paper(group, heads), *warnings(runs), *warned, *chosen(group, runs)],
        **more,
    )


def _mixed_with_paper(group: Group, heads: list[Column]) -> list[str]:
    """Its numbers beside runs of another protocol than its own."""
    if group.key.protocol == "paper" or not any("paper" in column.name for column in heads):
        return []
    return [
        "Protocols are mixed: the paper's numbers are of its own, these of "
        f"'{group.key.protocol}'. A difference between them may be one of protocols."
    ]


def without_paper(heads: list[Column], rows: list[list]) -> tuple[list[Column], list[list]]:
    """Leave out columns for the paper's numbers where it has none."""
    kept = [
        i
        for i, column in enumerate(heads)
        if "paper" not in column.name or any(row[i] not in (None, "") for row in rows)
    ]
    return [heads[i] for i in kept], [[row[i] for i in kept] for row in rows]


def warnings(runs: list[Merged]) -> list[str]:
    """Sentences about what keeps runs from being compared, or believed, as they stand."""
    records = [run.first for run in runs]
    found = []
    if any(r.simulated for r in records):
        found.append("Simulated: no network was trained for these numbers.")
    if small := sorted({r.dataset for r in records} & set(EMBEDDED)):
        found.append(
            f"{', '.join(small)}: small embedded tasks, which show that the parts work. Nobody "
            "should quote them as evidence for or against the paper's claim."
        )
    versions = sorted({r.code_version for r in records})
    if len(versions) > 1:
        found.append(f"Results of several versions of the code: {', '.join(versions)}.")
    for task in sorted({r.dataset for r in records}):
        own = [r for r in records if r.dataset == task]
        metrics = sorted({r.metric for r in own})
        if len(metrics) > 1:
            found.append(f"{task} is measured in {' and '.join(metrics)}: not comparable.")
    if mixed := _mixed(records):
        found.append(f"Runs of one task and mode were not made alike: {', '.join(mixed)}.")
    if any(r.settings.get("selection") == "test" for r in records):
        found.append(
            "Epochs and learning rates were chosen on the test images, as the protocol has it: "
            "accuracies are too good."
        )
    if any(r.assumed_standard for r in records):
        found.append("Networks whose files say nothing of their training count as standard ones.")
    counts = sorted({len(run.accuracies) for run in runs})
    if len(counts) > 1:
        found.append(f"Numbers of trials differ: {counts[0]} to {counts[-1]}.")
    if any(run.contradictions for run in runs):
        found.append(
            "A seed was found more than once with different accuracies: the first by path counts."
        )
    return found


def _mixed(records: list[Record]) -> list[str]:
    """Settings that differ between transfer runs of one task and mode."""
    alike: dict[tuple, list[dict]] = {}
    for r in records:
        if r.kind == "transfer":
            alike.setdefault((r.mode, r.dataset), []).append(r.settings)
    return sorted(
        {
            key
            for own in alike.values()
            for key in set().union(*own) - _OWN
            if len({str(settings.get(key)) for settings in own}) > 1
        }
    )


def chosen(group: Group, runs: list[Merged]) -> list[str]:
    """Whether a run is the best of several configurations by the test images."""
    if not (number := sum(id(run) in group.ambiguous for run in runs)):
        return []
    return [
        f"{number} cells have several configurations (other settings, or other weights of the same "
        "architecture and eps); the best on the test images is shown, as the paper does."
    ]
