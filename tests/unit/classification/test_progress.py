"""Progress on a terminal, in a log, and in files."""

import json

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from classification import progress

HISTORY = [
    {"epoch": 1, "train_loss": 2.0, "train_top1": 10.0, "clean_loss": 1.9, "clean_top1": 20.0},
    {
        "epoch": 2,
        "train_loss": 1.0,
        "train_top1": 30.0,
        "clean_loss": 1.5,
        "clean_top1": 40.0,
        "adversarial_loss": 3.0,
        "adversarial_top1": 5.0,
    },
]


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize("terminal", [True, False])
def test_the_line_shows_the_count_and_the_remaining_time(clock, monkeypatch, capsys, terminal):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    line = progress.ProgressLine(total=2500, done=500)
    clock[0] += 10
    line.show(100, "epoch 1/2")
    assert "epoch 1/2, 10 images/s, 0:03:10 left" in capsys.readouterr().err
    clock[0] += 30
    line.show(300, "epoch 1/2")
    assert ("epoch 1/2, 10 images/s, 0:02:40 left" in capsys.readouterr().err) == terminal
    clock[0] += 30
    line.show(300, "epoch 2/2")
    assert "epoch 2/2, 10 images/s, 0:02:10 left" in capsys.readouterr().err
    line.clear()
    assert bool(capsys.readouterr().err) == terminal


WIDTHS = {
    120: "epoch 1/2: 9/99 images, loss 2.625, accuracy 6.2 %, 10 images/s, 0:03:10 left",
    70: "epoch 1/2: 9/99 images, loss 2.625, accuracy 6.2 %, 0:03:10 left",
    40: "epoch 1/2: 9/99 images, 0:03:10 left",
    20: "epoch 1/2: 9/99 ima",
}


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_line_fits_the_terminal(clock, monkeypatch, capsys, columns):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    line = progress.ProgressLine(total=2000)
    clock[0] += 10
    line.show(100, "epoch 1/2: 9/99 images, loss 2.625, accuracy 6.2 %")
    assert capsys.readouterr().err == f"\r{WIDTHS[columns]}\x1b[K"


def test_a_dumb_terminal_gets_whole_lines(clock, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    line = progress.ProgressLine(total=2000)
    clock[0] += 60
    line.show(100, "epoch 1/2")
    line.clear()
    assert capsys.readouterr().err == "epoch 1/2, 1.67 images/s, 0:19:00 left\n"


def test_pauses_do_not_slow_the_rate(clock):
    line = progress.ProgressLine(100)
    clock[0] += 5
    line.show(50, "")
    with line.paused():
        clock[0] += 1000
    assert line.rate == 10


@pytest.mark.parametrize("seconds, text", [(5, "0:00:05"), (65, "0:01:05"), (3725.4, "1:02:05")])
def test_clock(seconds, text):
    assert progress.clock(seconds) == text


def test_history_is_one_object_a_line(tmp_path):
    progress.write_history(tmp_path / "m.jsonl", HISTORY)
    read = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert read == HISTORY
    progress.write_history(tmp_path / "m.jsonl", [{"epoch": 1, "clean_loss": float("nan")}])
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"epoch": 1, "clean_loss": None}


def test_tensorboard_has_each_number_once_though_written_twice(tmp_path):
    progress.write_tensorboard(tmp_path, HISTORY[:1])
    progress.write_tensorboard(tmp_path, HISTORY)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("clean_top1")] == [(1, 20), (2, 40)]
    assert "adversarial_loss" in events.Tags()["scalars"] and len(list(tmp_path.iterdir())) == 1


def test_curves_are_a_picture(tmp_path):
    progress.draw_curves(tmp_path / "c.png", HISTORY, "title", "test")
    with Image.open(tmp_path / "c.png") as image:
        assert image.size[0] > 800 and len(image.getcolors(1 << 24)) > 3  # lines were drawn
