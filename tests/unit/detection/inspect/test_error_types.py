"""Kinds of errors: a table of small cases, and their sums."""

import pytest

from robust_backbones.detection.inspect import error_types

# An object, and boxes that overlap it by a known part (IoU) of 0.8, 0.5, 0.3, 0.1 and 0.
A = (0, 0, 10, 10)
A80, A50, A30, A10, AWAY = (
    (0, 0, 10, 8),
    (0, 0, 10, 5),
    (0, 0, 10, 3),
    (0, 0, 10, 1),
    (50, 0, 60, 9),
)
B = (12, 0, 22, 10)
CROWD = (0, 0, 40, 40)

# predictions (box, class, score); objects (box, class) or (box, class, "ignored"); their kinds
CASES = {
    "right": ([(A80, 1, 0.9)], [(A, 1)], ["right"], ["right"]),
    "right at the limit": ([(A50, 1, 0.9)], [(A, 1)], ["right"], ["right"]),
    "wrong class": ([(A80, 2, 0.9)], [(A, 1)], ["wrong class"], ["wrong class"]),
    "wrong class at the limit": ([(A50, 2, 0.9)], [(A, 1)], ["wrong class"], ["wrong class"]),
    "poor box": ([(A30, 1, 0.9)], [(A, 1)], ["poor box"], ["poor box"]),
    "poor box at the limit": ([(A10, 1, 0.9)], [(A, 1)], ["poor box"], ["poor box"]),
    "both wrong": ([(A30, 2, 0.9)], [(A, 1)], ["wrong class and box"], ["missed"]),
    "background": ([(AWAY, 1, 0.9)], [(A, 1)], ["background"], ["missed"]),
    "background at the limit": ([(A10, 2, 0.9)], [(A, 1)], ["background"], ["missed"]),
    "nothing predicted": ([], [(A, 1), (B, 2)], [], ["missed", "missed"]),
    "nothing there": ([(A, 1, 0.9)], [], ["background"], []),
    "nothing at all": ([], [], [], []),
    "the higher score is right": (
        [(A, 1, 0.6), (A80, 1, 0.9)],
        [(A, 1)],
        ["duplicate", "right"],
        ["right"],
    ),
    "a poor box on a found object": (
        [(A, 1, 0.9), (A30, 1, 0.6)],
        [(A, 1)],
        ["right", "poor box"],
        ["right"],
    ),
    "a wrong class on a found object": (
        [(A, 1, 0.9), (A, 2, 0.6)],
        [(A, 1)],
        ["right", "wrong class"],
        ["right"],
    ),
    "each to its own": (
        [(A, 1, 0.6), (B, 1, 0.9)],
        [(B, 1), (A, 1)],
        ["right", "right"],
        ["right", "right"],
    ),
    "the second of two like objects": (
        [(A, 1, 0.9), (A80, 1, 0.6)],
        [(A, 1), (A, 1)],
        ["right", "right"],
        ["right", "right"],
    ),
    "own class first": ([(A30, 1, 0.9)], [(A, 1), (A30, 2)], ["poor box"], ["poor box", "missed"]),
    "the better-scored error names the object": (
        [(A30, 1, 0.6), (A80, 2, 0.9)],
        [(A, 1)],
        ["poor box", "wrong class"],
        ["wrong class"],
    ),
    "in a crowd": ([(A, 1, 0.9)], [(CROWD, 1, "ignored")], ["ignored"], ["ignored"]),
    "in another class's crowd": (
        [(A, 2, 0.9)],
        [(CROWD, 1, "ignored")],
        ["background"],
        ["ignored"],
    ),
    "beside a crowd": ([(AWAY, 1, 0.9)], [(CROWD, 1, "ignored")], ["background"], ["ignored"]),
    "an object in a crowd": (
        [(A, 1, 0.9)],
        [(CROWD, 1, "ignored"), (A, 1)],
        ["right"],
        ["ignored", "right"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_prediction_and_object_has_its_kind(name):
    predictions, objects, kinds, marks = CASES[name]
    boxes, classes, scores = zip(*predictions, strict=True) if predictions else ((), (), ())
    found = error_types.mark(
        boxes,
        classes,
        scores,
        [thing[0] for thing in objects],
        [thing[1] for thing in objects],
        [len(thing) == 3 for thing in objects],
    )
    assert found == (kinds, marks)


def test_the_table_has_every_kind():
    seen = {kind for _, _, kinds, marks in CASES.values() for kind in (*kinds, *marks)}
    assert seen == set(error_types.KINDS)


def test_counts_are_of_predictions_and_missed_objects():
    counts = error_types.count(
        ["right", "poor box", "poor box", "ignored"], ["right", "poor box", "missed", "ignored"]
    )
    assert {kind: n for kind, n in counts.items() if n} == {
        "right": 1,
        "poor box": 2,
        "missed": 1,
        "ignored": 1,
    }
    assert set(counts) == set(error_types.KINDS)
    assert error_types.errors(counts) == 3
