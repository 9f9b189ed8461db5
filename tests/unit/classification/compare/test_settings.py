"""The file compare.json: what is saved is read again, and differences are named as options."""

import dataclasses

import pytest

from classification.compare.settings import (
    CLASSIFICATION,
    SETTINGS,
    CompareSettings,
    Comparison,
    TrialGroup,
    load,
    save,
)
from robust_backbones.core.errors import UserError

BASE = CompareSettings(
    CLASSIFICATION,
    ("photos",),
    ("a.pt", "b.pt"),
    3,
    changes=(("epochs", "5"),),
    mode="full-network",
)


def test_round_trip(tmp_path):
    groups = (TrialGroup(0, 3), TrialGroup(3, 5, ("photos",)))
    saved = Comparison(BASE, groups, {"photos": ("1a", "2b")}, "digest")
    assert load(tmp_path) is None
    save(saved, tmp_path)
    assert load(tmp_path) == saved


@pytest.mark.parametrize("text", ["{}", "[]", '{"schema": 2}', "no JSON"])
def test_damaged_files(tmp_path, text):
    (tmp_path / SETTINGS).write_text(text)
    with pytest.raises(UserError, match=SETTINGS):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"weights": ("b.pt", "a.pt")}, ""),
        ({"trials": 5}, "--trials is 3 there, 5 here"),
        ({"data": ("photos", "digits")}, "DATA is photos there, photos digits here"),
        ({"changes": ()}, "--set is epochs=5 there, not given here"),
        ({"image_size": 64}, "--image-size is not given there, 64 here"),
        ({"root": "/data"}, "--data is not given there, /data here"),
    ],
)
def test_differences(changes, message):
    assert BASE.difference(dataclasses.replace(BASE, **changes)) == message


def test_labels_of_trials():
    assert [TrialGroup(*g).label for g in ((0, 3), (3, 1))] == ["0 to 2", "3"]
