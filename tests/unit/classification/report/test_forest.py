"""Forest plots of the page and the figure: one scale, marks without color, the margin."""

import pytest

from classification.report.answers import Answer
from classification.report.forest import MARKS, figure, forests
from classification.report.trial_variance import VariancePart
from classification.report.verdicts import Estimate, Missing, Outcome, Over, judge


def verdict(mean, error=0.5):
    return judge(Estimate(mean, Over.TRIALS, (3, 3), VariancePart(error**2, 10.0)))


def answer(unit="points", **verdicts):
    return Answer("q", "t", unit, verdicts)


def test_answers_of_one_unit_share_a_scale():
    small, large, ap = (
        answer(a=verdict(1.0)),
        answer(a=verdict(20.0)),
        answer("points of AP", a=verdict(1.0)),
    )
    one, two, three = forests([small, large, ap], None)
    assert one.ticks == two.ticks != three.ticks
    assert one.bars[0].width == pytest.approx(two.bars[0].width, abs=0.02)
    assert one.bars[0].middle < two.bars[0].middle


def test_positions():
    (found,) = forests([answer(a=verdict(-2.0), b=verdict(3.0))], None)
    zero = {label: place for place, label in found.ticks}["0"]
    low, high = found.bars
    assert 0 <= low.left < low.middle < low.left + low.width < zero < high.left
    assert high.left + high.width <= 100 and not low.cut and not high.cut


def test_a_verdict_has_its_mark():
    assert len(set(MARKS.values())) == len(Outcome)
    (found,) = forests([answer(a=verdict(3.0), b=verdict(0.8))], None)
    assert [(b.mark, b.verdict) for b in found.bars] == [("▲", "better"), ("○", "cannot tell")]
    assert "trials" in found.bars[1].advice and not found.bars[0].advice


def test_the_margin_is_drawn_if_given_or_used():
    (plain,), (given,) = (forests([answer(a=verdict(3.0))], margin) for margin in (None, 2.0))
    assert plain.margin is None and "margin" not in plain.caption
    assert given.margin[1] > 0 and "The band is the margin of 2." in given.caption
    (used,) = forests([answer(a=verdict(0.1, 0.2))], None)
    assert used.margin and used.bars[0].verdict == "no difference"


def test_an_interval_that_would_hide_the_others_is_cut():
    many = {f"t{k}": verdict(1.0) for k in range(5)}
    (found,) = forests([answer(**many, wide=verdict(1.0, 50.0))], None)
    assert [b.cut for b in found.bars] == [False] * 5 + [True]
    assert found.bars[0].width > 10


def test_no_interval_and_no_verdicts():
    missing = judge(Estimate(2.0, missing=Missing.TRIALS))
    bare, none = forests([answer(a=missing), answer()], None)
    assert none is None and bare.bars[0].left is None
    assert "no intervals are available yet" in bare.caption


def test_the_figure_has_all_answers():
    first = answer(a=verdict(3.0), b=verdict(0.8), wide=verdict(1.0, 50.0))
    second = Answer("other", "t", "points", {"c": judge(Estimate(2.0, missing=Missing.TRIALS))})
    found = figure([first, second, Answer("none", "t")], 1.0)
    assert [*found.panels] == ["q", "other"] and found.margin == 1.0
    better, open_ = found.panels["q"]
    assert (better.label, better.x, better.y) == ("better", ["a"], [3.0])
    assert (open_.label, open_.x) == ("cannot tell", ["b", "wide"])
    low, high = found.x_limits
    assert open_.low[0] > low > open_.low[1] and open_.high[1] > high > better.high[0]
    assert figure([answer()], 1.0) is None
