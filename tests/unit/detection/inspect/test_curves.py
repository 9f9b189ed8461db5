"""Training curves: traces of interruptions are mended, runs are drawn over each other."""

import json

import numpy as np
import pytest
from PIL import Image

from robust_backbones.core.errors import UserError
from robust_backbones.detection.inspect import curves


def line(iteration, **numbers) -> str:
    return json.dumps({"iteration": iteration, **numbers})


# name: lines of the file, and what the total loss is then
FILES = {
    "whole": ([line(19, total_loss=3.0), line(39, total_loss=2.0)], {19: 3.0, 39: 2.0}),
    "two lines for one iteration": (
        [line(19, total_loss=3.0), line(19, total_loss=2.5)],
        {19: 2.5},
    ),
    "resumed from 25": (
        [
            line(19, total_loss=3.0),
            line(39, total_loss=2.0),
            line(59, total_loss=1.0),
            line(29, total_loss=2.9),
            line(49, total_loss=1.9),
        ],
        {19: 3.0, 29: 2.9, 49: 1.9},
    ),
    "cut off at the end": ([line(19, total_loss=3.0), '{"iteration": 39, "tot'], {19: 3.0}),
    "cut off, then resumed": (
        [line(19, total_loss=3.0), '{"iteration": 39, "tot' + line(39, total_loss=2.0)],
        {19: 3.0, 39: 2.0},
    ),
    "diverged": ([line(19, total_loss=3.0), '{"iteration": 39, "total_loss": NaN}'], {19: 3.0}),
    "other lines": (["", "[1]", "3", line(19, total_loss=3.0, note="text")], {19: 3.0}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_runs_numbers_are_read(tmp_path, name):
    lines, expected = FILES[name]
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    assert curves.read(tmp_path) == {"total_loss": expected}
    assert curves.read(tmp_path / "metrics.json") == {"total_loss": expected}


def test_a_run_without_numbers_is_refused(tmp_path):
    with pytest.raises(
        UserError, match="No such file or directory.. Give the folder of a run, with metrics"
    ):
        curves.read(tmp_path)
    (tmp_path / "metrics.json").write_text('{"iteration": 3')
    with pytest.raises(UserError, match="contains no training iteration"):
        curves.read(tmp_path)
    with pytest.raises(UserError, match="no loss, learning rate or AP"):
        curves.draw({"a": {"time": {1: 2.0}}}, tmp_path / "curves.png")


def test_panels_are_losses_learning_rate_and_every_ap():
    one = {"lr": {1: 1}, "loss_cls": {1: 1}, "total_loss": {1: 1}, "time": {1: 1}}
    other = {"segm/AP": {9: 1}, "bbox/AP": {9: 1}, "bbox/AP50": {9: 1}, "a_val/bbox/AP": {9: 1}}
    assert curves.panels({"one": one, "other": other}) == [
        "total_loss",
        "loss_cls",
        "lr",
        "a_val/bbox/AP",
        "bbox/AP",
        "segm/AP",
    ]


LABELS = [
    (["out/standard/detector", "out/robust/detector"], ["standard/detector", "robust/detector"]),
    (["out/a", "out/b/metrics.json"], ["a", "b"]),
    (["out/a"], ["a"]),
    ([], []),
]


@pytest.mark.parametrize(("paths", "expected"), LABELS)
def test_labels_are_as_short_as_they_can_be(paths, expected):
    assert curves.labels(paths) == expected


def test_a_run_given_twice_is_refused():
    with pytest.raises(UserError, match="out/b/../a is given twice"):
        curves.labels(["out/a", "out/b/../a"])


def test_each_run_is_drawn(tmp_path):
    """One more run changes the picture; its colour is in it."""
    falling = {
        "total_loss": {i: 3.0 - i / 100 for i in range(0, 200, 10)},
        "lr": {0: 0.1, 190: 0.1},
    }
    rising = {"total_loss": {i: i / 100 for i in range(0, 200, 10)}, "bbox/AP": {190: 40.0}}
    assert curves.draw({"a": falling}, tmp_path / "one.png") == ["total_loss", "lr"]
    both = curves.draw({"a": falling, "b": rising}, tmp_path / "two.png")
    assert both == ["total_loss", "lr", "bbox/AP"]
    vermillion = (
        np.asarray(Image.open(tmp_path / f"{n}.png").convert("RGB")) for n in ("one", "two")
    )
    assert [(pixels == (0xD5, 0x5E, 0)).all(axis=2).any() for pixels in vermillion] == [False, True]
