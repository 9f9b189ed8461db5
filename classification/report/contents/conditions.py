"""What else transfers: accuracy under attack, corruptions and shift, and calibration."""

from __future__ import annotations

from statistics import fmean

from classification.report import records, verdict_words
from classification.report.comparisons import Contest
from classification.report.conditions import SCORES
from classification.report.contents.accuracy import ROBUST, STANDARD
from classification.report.contents.few_images import learning_curves
from classification.report.contents.parts import ARCH, MODE, TASK, Results, section, series, value
from classification.report.groups import Group
from classification.report.records import Merged
from classification.report.sections import Cell, Column, Figure, Interval, Kind, Row, Section, Value
from classification.report.verdict_words import (
    P_VALUE,
    VERDICT,
    WOULD_TELL,
    interval,
    verdict_cells,
)
from robust_backbones.core.eps import show_eps

CLEAN = "clean"
TRANSFERRED = [
    MODE,
    TASK,
    ARCH,
    Column("condition"),
    STANDARD,
    ROBUST,
    Column("best_eps"),
    Column("cross_fitted", "cross-fitted difference", Kind.DIFFERENCE),
    P_VALUE,
    VERDICT,
    WOULD_TELL,
]
CALIBRATED = [
    MODE,
    TASK,
    ARCH,
    Column("images"),
    Column("network"),
    Column("nll", "NLL, nats", Kind.MEASURE),
    Column("nll_scaled", "NLL, scaled", Kind.MEASURE),
    Column("brier", "Brier score", Kind.MEASURE),
    Column("brier_scaled", "Brier score, scaled", Kind.MEASURE),
    Column("ece", "ECE, %", Kind.MEASURE),
    Column("ece_scaled", "ECE, scaled, %", Kind.MEASURE),
    Column("accuracy_at_80", "accuracy at 80 % coverage, %", Kind.MEASURE),
]


def transferred(results: Results, group: Group) -> list[Section]:
    """Build the table of robust and standard networks under each condition, with verdicts."""
    contests = results.by_condition[group.suffix]
    if not contests:
        return []
    rows: list[Row] = [
        {
            "mode": mode,
            "task": task,
            "architecture": arch,
            "condition": condition,
            "standard": value(c.standard),
            "robust": value(c.robust),
            "best_eps": show_eps(group.key.norm, c.robust.first.eps),
            "cross_fitted": interval(c.verdict, (*c.robust.indices, *c.standard.indices)),
            **verdict_cells(c.verdict),
        }
        for (mode, task, arch, condition), c in contests.items()
    ]
    clean = results.by_architecture[group.suffix]
    conditions = group.conditions(results.records)
    modes = dict.fromkeys(mode for mode, *_ in contests)
    text = [
        "Accuracy of the trained classifiers on changed test images, in percent: under attack, "
        "corrupted, or from another distribution. Classifiers are trained and selected on clean "
        "images. Each number is the mean over trials, with the lowest and the highest trial. The "
        "best eps is chosen under each condition, and the cross-fitted difference is measured on "
        "other images and trials. p-values are corrected for the number of tasks and conditions.",
        verdict_words.how(results.rules),
        *verdict_words.about(contests.values()),
    ]
    return [
        section(
            group,
            "conditions",
            "What else transfers",
            runs=[run for c in contests.values() for run in (c.robust, c.standard)],
            text=text,
            columns=TRANSFERRED,
            rows=rows,
            figures=[_figure(results, group, mode) for mode in modes],
            warned=_differences(contests),
            found=len(rows),
            wanted=len(clean) * len(conditions),
        )
    ]


def _figure(results: Results, group: Group, mode: str) -> Figure:
    """Return bars of standard and robust networks under each condition, one panel for each task.

    The last bars are for clean images and the smallest training set, if there are several. Their
    label has the number of training images per class.
    """
    cells: dict[tuple[str, str], dict[str, Contest]] = {}
    contests, curves = results.by_condition[group.suffix], learning_curves(results, group)
    for (own, task, arch), c in results.by_architecture[group.suffix].items():
        under = {key[3]: c for key, c in contests.items() if key[:3] == (own, task, arch)}
        if own == mode and under:
            few = curves.get((own, task, arch), {})
            fewest = {f"few-shot ({images:g})": c for images, c in [*few.items()][:1]}
            cells[task, arch] = {CLEAN: c} | under | fewest
    several = len({arch for _, arch in cells}) > 1
    panels = {
        f"{task}, {arch}" if several else task: [
            series(side, [*own], [value(getattr(c, side)) for c in own.values()])
            for side in ("standard", "robust")
        ]
        for (task, arch), own in cells.items()
    }
    title, axes = (f"What else transfers, {mode}", ("condition", "accuracy, %"))
    return Figure(f"conditions-{mode}{group.suffix}", "bars", title, *axes, panels)


def _differences(contests: dict[tuple[str, str, str, str], Contest]) -> list[str]:
    """Warn about conditions whose settings or images differ between the two networks of a row."""
    differ = dict.fromkeys(
        f"{name} on {task}"
        for (_, task, _, name), c in contests.items()
        if c.robust.first.condition.facts != c.standard.first.condition.facts
    )
    return [f"Settings or images of a condition differ between the networks: {n}." for n in differ]


def calibrated(results: Results, group: Group) -> list[Section]:
    """Build the table of calibration scores of the standard and the best robust network."""
    rows: list[Row] = []
    runs, wanted = [], 0
    for (mode, task, arch), c in results.by_architecture[group.suffix].items():
        for name in ("", *group.conditions(results.records)):
            for run in (c.standard, c.robust):
                found = records.under(results.records, name, run) if name else run
                scores = _scores(found) if found else {}
                wanted += not name
                if not scores:
                    continue
                runs.append(run)
                eps = run.first.eps
                rows.append(
                    {
                        "mode": mode,
                        "task": task,
                        "architecture": arch,
                        "images": name or CLEAN,
                        "network": f"eps {show_eps(group.key.norm, eps)}" if eps else "standard",
                        **scores,
                    }
                )
    if not rows:
        return []
    text = [
        "Calibration of the standard network and of the robust one with the best clean accuracy. "
        "Lower is better, except for the accuracy. NLL is the negative log-likelihood. The Brier "
        "score is the squared error of the probabilities, from 0 to 2. ECE is the expected "
        "calibration error over bins with equal numbers of images. It is biased upward with few "
        "images, and its interval corrects for part of this bias. Scaled: the logits are divided "
        "by a temperature that was chosen on validation images. The last column is the accuracy on "
        "the 80 % of the images with the highest confidence. Intervals are over test images only, "
        "so there are no verdicts."
    ]
    return [
        section(
            group,
            "calibration",
            "Calibration",
            runs=runs,
            text=text,
            columns=CALIBRATED,
            rows=rows,
            found=sum(row["images"] == CLEAN for row in rows),
            wanted=wanted,
        )
    ]


def _scores(run: Merged) -> dict[str, Cell]:
    """Return the calibration scores of a run, as means over trials with intervals over images.

    All trials share their test images, so the ends of their intervals are averaged. A score is
    missing if a trial lacks it.
    """
    found: dict[str, Cell] = {}
    for name in SCORES:
        own = [(record.condition.calibration.get(name), k) for record, k in run.sources]
        scores = [(score, k) for score, k in own if score]
        if len(scores) == len(own):
            ends = Interval(
                fmean(score.low for score, _ in scores),
                fmean(score.high for score, _ in scores),
                0.95,
                "test images",
            )
            mean = fmean(score.trials[k] for score, k in scores)
            found[name] = Value(mean, ends, len(scores), run.indices)
    return found
