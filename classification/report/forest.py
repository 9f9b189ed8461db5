"""Forest plots: the estimate and the interval of each task.

The page has a plot for each answer. Answers with the same unit share one scale, so that their plots
can be compared. All positions are in percent of the plot's width. A figure has all plots.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from classification.report import numbers
from classification.report.answers import Answer
from classification.report.sections import Figure, Kind, Series, Value
from classification.report.verdict_words import advice, interval
from classification.report.verdicts import Outcome, Verdict

# Symbol of each verdict in the plot. Shapes differ, so that no verdict depends on color alone.
MARKS = {
    Outcome.BETTER: "▲",
    Outcome.WORSE: "▼",
    Outcome.NO_DIFFERENCE: "■",
    Outcome.CANNOT_TELL: "○",
}
# Intervals that are wider than this many median half-widths to one side may be cut, so that the
# other intervals remain readable.
WIDEST = 4


@dataclass(frozen=True)
class Bar:
    """Estimate of one task with its interval, as one line of a forest plot.

    Attributes:
        task: name of the task.
        text: rounded estimate and interval.
        verdict, mark: the verdict in words and as a symbol.
        advice: trials or images that would settle a `cannot tell`; empty for other verdicts.
        left, width: position of the low end and width of the interval; None: no interval.
        middle: position of the estimate.
        cut: whether the estimate or an end of the interval is outside the plot.
    """

    task: str
    text: str
    verdict: str
    mark: str
    advice: str
    left: float | None
    width: float | None
    middle: float
    cut: bool


@dataclass(frozen=True)
class Forest:
    """Forest plot of an answer.

    Attributes:
        bars: one bar for each task.
        ticks: position and label of each tick. The tick at zero difference is labeled "0".
        margin: position of the low end and width of the margin; None: the margin is not drawn.
        caption: explanation of the plot.
    """

    bars: list[Bar]
    ticks: list[tuple[float, str]]
    margin: tuple[float, float] | None
    caption: str


FIGURE = "forest"  # name of the figure


def figure(answers: list[Answer], margin: float) -> Figure | None:
    """Return a figure with the forest plots of all answers, or None without verdicts.

    Args:
        answers: answers of the report.
        margin: largest difference that counts as no difference, points.
    """
    panels = {a.question: _series(a) for a in answers if a.verdicts}
    x_label = "robust minus standard, percentage points"
    title = "Differences with their intervals"
    limits = _scale((v for a in answers for v in a.verdicts.values()), margin)
    if not panels:
        return None
    return Figure(FIGURE, "forest", title, x_label, "", panels, margin=margin, x_limits=limits)


def _series(answer: Answer) -> list[Series]:
    """Return the estimates of the tasks, one series for each verdict."""
    found = []
    for outcome in Outcome:
        own = {task: v for task, v in answer.verdicts.items() if v.outcome is outcome}
        if own:
            means: list[float | None] = [verdict.estimate.mean for verdict in own.values()]
            low, high = [v.low for v in own.values()], [v.high for v in own.values()]
            found.append(Series(outcome.value, [*own], means, low, high))
    return found


def forests(answers: list[Answer], margin: float | None) -> list[Forest | None]:
    """Return the forest plot of each answer, or None for an answer without verdicts.

    Args:
        answers: answers of the report.
        margin: margin to draw in every plot, points; None: a plot shows the margin only if one of
            its verdicts is `no difference`.
    """
    found: list[Forest | None] = []
    for answer in answers:
        alike = [v for a in answers if a.unit == answer.unit for v in a.verdicts.values()]
        found.append(_forest(answer, _scale(alike, margin), margin) if alike else None)
    return [forest if forest and forest.bars else None for forest in found]


def _scale(verdicts: Iterable[Verdict], margin: float | None) -> tuple[float, float]:
    """Return the low and high ends of the scale that these verdicts share, in points."""
    verdicts = list(verdicts)
    ends = [0.0, *(verdict.estimate.mean for verdict in verdicts)]
    halves = [(v.high - v.low) / 2 for v in verdicts if v.low is not None and v.high is not None]
    limit = WIDEST * statistics.median(halves) if halves else math.inf
    for v in verdicts:
        if v.low is not None and v.high is not None:
            ends += [max(v.low, v.estimate.mean - limit), min(v.high, v.estimate.mean + limit)]
    ends += [-margin, margin] if margin else []
    low, high = min(ends), max(ends)
    room = 0.04 * (high - low) or 1.0
    return low - room, high + room


def _forest(answer: Answer, scale: tuple[float, float], margin: float | None) -> Forest:
    low, high = scale

    def place(value: float) -> float:
        """Return the position of a value, percent, rounded to keep the page small."""
        return round(100 * (min(max(value, low), high) - low) / (high - low), 2)

    bars = []
    for task, verdict in answer.verdicts.items():
        left = width = None
        ends = [verdict.estimate.mean]
        if verdict.low is not None and verdict.high is not None:
            ends += [verdict.low, verdict.high]
            left = place(verdict.low)
            width = round(place(verdict.high) - left, 2)
        bars.append(
            Bar(
                task,
                _text(verdict),
                verdict.outcome.value,
                MARKS[verdict.outcome],
                advice([verdict]),
                left,
                width,
                place(verdict.estimate.mean),
                min(ends) < low or max(ends) > high,
            )
        )
    verdicts = [*answer.verdicts.values()]
    if margin is None and any(v.outcome is Outcome.NO_DIFFERENCE for v in verdicts):
        margin = verdicts[0].margin
    band = (place(-margin), round(place(margin) - place(-margin), 2)) if margin else None
    ticks = [(place(tick), f"{tick:g}".replace("-", numbers.MINUS)) for tick in _ticks(low, high)]
    return Forest(bars, ticks, band, _caption(answer, margin))


def _text(verdict: Verdict) -> str:
    """Return the rounded estimate and its interval."""
    if value := interval(verdict):
        return numbers.text(value, Kind.DIFFERENCE)
    return f"{numbers.text(Value(verdict.estimate.mean), Kind.DIFFERENCE)} (no interval)"


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers between the ends, including 0."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(k * step for k in (1, 2, 5, 10) if (high - low) / (k * step) < 6)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _caption(answer: Answer, margin: float | None) -> str:
    """Write the caption of a plot."""
    levels = sorted({100 * (1 - v.alpha) for v in answer.verdicts.values() if v.low is not None})
    shown = " or ".join(f"{level:g} %" for level in levels)
    text = f"Robust minus standard, {answer.unit}"
    text += f", with {shown} intervals." if levels else "; no intervals are available yet."
    return text + (f" The band is the margin of {margin:g}." if margin else "")
