"""The trials that --more adds, from the advice of a report."""

import json

import pytest

from classification.compare.more import advised
from classification.compare.settings import TrialGroup
from robust_backbones.core.errors import UserError

FIRST = TrialGroup(0, 3)


def row(task, verdict="cannot tell", trials=None, images=None, would_tell=""):
    return {
        "task": task,
        "verdict": verdict,
        "trials": trials,
        "images": images,
        "would_tell": would_tell,
    }


def report(folder, *rows):
    (folder / "report").mkdir(exist_ok=True)
    contents = {"answers": [{"text": "No answer yet.", "tasks": [*rows]}]}
    (folder / "report" / "report.json").write_text(json.dumps(contents))


@pytest.mark.parametrize(
    ("rows", "groups", "added"),
    [
        ([row("a", trials=[8, 25])], [FIRST], [TrialGroup(3, 5)]),
        ([row("a", trials=[8, 25]), row("b", "better")], [FIRST], [TrialGroup(3, 5, ("a",))]),
        (
            [row("a", trials=[8, 25]), row("b", trials=[40, 100])],
            [FIRST],
            [TrialGroup(3, 5, ("a",)), TrialGroup(3, 37, ("b",))],
        ),
        ([row("a", trials=[8, 9]), row("b", trials=[8, 30])], [FIRST], [TrialGroup(3, 5)]),
        (
            [row("a", trials=[12, 30]), row("b", "worse")],
            [FIRST, TrialGroup(3, 5, ("a",))],
            [TrialGroup(8, 4, ("a",))],
        ),
        ([row("a at 12 pixels", trials=[5, 6]), row("b", "worse")], [FIRST], None),
        ([row("Faster R-CNN", trials=[5, 6])], [FIRST], [TrialGroup(3, 2)]),
    ],
)
def test_trials(tmp_path, rows, groups, added):
    report(tmp_path, *rows)
    added = [TrialGroup(3, 2, ("a",))] if added is None else added
    assert advised(tmp_path, groups, ["a", "b"][: max(1, len(rows))]) == added


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "No answer yet"),
        ([row("a", "no difference")], "the report has an answer for every task"),
        ([row("a", trials=[3, 9])], "does not contain the latest trials"),
        (
            [row("a", images=[900, 2000], would_tell="900 to 2,000 test images")],
            "900 to 2,000 test images would",
        ),
    ],
)
def test_nothing_to_add(tmp_path, rows, message):
    with pytest.raises(UserError, match="has no report. Run the command without --more first"):
        advised(tmp_path, [FIRST], ["a"])
    report(tmp_path, *rows)
    with pytest.raises(UserError, match=message):
        advised(tmp_path, [FIRST], ["a"])
