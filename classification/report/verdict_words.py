"""Describe verdicts in words and in table cells."""

from __future__ import annotations

from collections.abc import Iterable

from classification.report.comparisons import Contest, Rules
from classification.report.sections import Column, Interval, Kind, Row, Value
from classification.report.verdicts import (
    FIRST,
    FIXED,
    MOST_IMAGES,
    MOST_TRIALS,
    Missing,
    Over,
    Verdict,
)

# Columns that describe a verdict; `verdict_cells` returns their cells.
P_VALUE = Column("p", "p, corrected", Kind.P_VALUE)
VERDICT = Column("verdict", "verdict on robust")
WOULD_TELL = Column("would_tell")
OVER = {
    Over.NOTHING: "",
    Over.TRIALS: "trials, on this test set",
    Over.IMAGES: "test images, no variance over trials",
    Over.TRIALS | Over.IMAGES: "trials and test images",
    Over.TASKS: "tasks",
}
LACKING = {
    Missing.PREDICTIONS: "the predictions (per_image.csv) of all networks",
    Missing.TASKS: "more tasks",
}


def interval(verdict: Verdict | None, indices: tuple[int, ...] = ()) -> Value | None:
    """Return the estimate of a verdict with its interval, or None if there is no interval.

    Args:
        verdict: verdict to describe; None: no comparison.
        indices: indices of the records behind the estimate.
    """
    if verdict is None or verdict.low is None or verdict.high is None:
        return None
    estimate = verdict.estimate
    trials = estimate.tests if estimate.over is Over.TASKS else min(estimate.trials)
    spread = Interval(verdict.low, verdict.high, 1 - verdict.alpha, OVER[estimate.over])
    return Value(estimate.mean, spread, trials or 1, indices)


def verdict_cells(verdict: Verdict | None) -> Row:
    """Return the cells of a verdict in the columns `P_VALUE`, `VERDICT` and `WOULD_TELL`."""
    return {
        P_VALUE.key: verdict.p if verdict else None,
        VERDICT.key: outcome(verdict),
        WOULD_TELL.key: would_tell(verdict),
    }


def outcome(verdict: Verdict | None) -> str:
    """Return the outcome as text, or an empty text if there is no comparison."""
    return verdict.outcome.value if verdict else ""


def over(verdict: Verdict | None) -> str:
    """Describe the sources of variation that the interval covers."""
    if verdict is None:
        return ""
    tasks = verdict.estimate.over is Over.TASKS
    return f"{verdict.estimate.tests} tasks" if tasks else OVER[verdict.estimate.over]


def would_tell(verdict: Verdict | None) -> str:
    """Return `advice` for one verdict, or an empty text if there is no comparison."""
    return advice([verdict]) if verdict else ""


def advice(verdicts: Iterable[Verdict]) -> str:
    """Describe how many trials or test images would turn `cannot tell` into another verdict.

    The range of numbers covers all verdicts. The text is empty if no verdict is `cannot tell`.
    """
    needed = [verdict.needed for verdict in verdicts if verdict.needed]
    trials = [one.trials for one in needed if one.trials]
    images = [one.images for one in needed if one.images and not one.trials]
    found = []
    if trials:
        found.append(f"{_range(trials, MOST_TRIALS)} trials of each network")
    if images:
        found.append(f"{_range(images, MOST_IMAGES)} test images")
    rest = [one.missing for one in needed if not (one.trials or one.images)]
    found += dict.fromkeys(LACKING[one] if one else "no number of trials" for one in rest)
    return " or ".join(found)


def _range(ranges: list[tuple[int, int]], end: int) -> str:
    """Format ranges as `8 to 25`, or as `at least 8` if the largest number reaches `end`."""
    fewest, most = min(low for low, _ in ranges), max(high for _, high in ranges)
    if most >= end:
        return f"at least {_rounded(fewest):,}"
    return f"{_rounded(fewest):,} to {_rounded(most):,}"


def _rounded(number: int) -> int:
    """Round up to two significant digits, because the advice is not more precise."""
    step = 10 ** max(0, len(str(number)) - 2)
    return -(-number // step) * step


def how(rules: Rules) -> str:
    """Return the paragraph that explains the rules of the verdicts."""
    return (
        "Verdicts are about robust minus standard. Better or worse: the p-value, corrected for the "
        f"number of rows of a column (Holm), is at most {100 * FIRST:g} % at the first look. "
        "Later looks at more trials share another 1 %, so all looks together are allowed 5 % wrong "
        f"verdicts. Runs without variance over trials are tested once, at {100 * FIXED:g} %. "
        f"No difference: the interval is within {rules.margin:g} points of 0. Cannot tell: all "
        "other cases. Standard and robust networks may have different variances over trials."
    )


def about(contests: Iterable[Contest]) -> list[str]:
    """Return a sentence on whether the verdicts apply to these checkpoints or to the recipe."""
    if all(c.pretrainings for c in contests):
        return [
            "Every network was pretrained several times. The intervals include the variance over "
            "pretrainings."
        ]
    return [
        "The verdicts are about these checkpoints. Another pretraining with the same recipe "
        "may transfer differently."
    ]
