"""Rows that measure a device: one that fails, hangs or lacks a package does not stop the next."""

import functools
import importlib
import json
import sys

import pytest
import torch

from robust_backbones.commands.check import command, device_rows, rows
from robust_backbones.core import measurements
from robust_backbones.core.measurements import Line, at_least, at_most, fast_if

LINE = measurements.MARK + json.dumps({"name": "a", "value": 1.0, "unit": "s", "bound": "<= 2"})


@pytest.mark.parametrize(
    ("script", "times", "states", "said"),
    [
        (f"echo '{LINE}'", (60, 60), ["ok"], ["1 s (<= 2)"]),
        (
            f"echo '{LINE}'; echo 'ValueError: no' >&2; exit 3",
            (60, 60),
            ["ok", "FAILED"],
            ["1 s", "exit code 3: ValueError: no"],
        ),
        (f"echo '{LINE}'; sleep 60", (1.6, 60), ["ok", "FAILED"], ["1 s", "stopped after 2 s"]),
        ("sleep 60", (60, 1.1), ["skipped"], ["stopped after 1 s: --budget is spent"]),
        ("kill -9 $$", (60, 60), ["FAILED"], ["exit code -9: no output"]),
    ],
)
def test_a_row_reports_what_it_measured_and_how_it_ended(
    script, times, states, said, tmp_path, monkeypatch
):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    found = list(device_rows.run_row("row", rows.Row("title", "module", 60), "cpu", *times))
    assert [record.state for record in found] == states
    assert all(record.text.startswith(text) for record, text in zip(found, said, strict=True))


def test_rows_are_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(device_rows.importlib.util, "find_spec", lambda name: None)
    found = list(device_rows.measure("cpu", ("detector_step", "parity"), 1.0))
    assert [record.state for record in found] == ["skipped", "skipped"]
    assert "Run: robust-backbones install-detectron2" in found[0].text
    assert found[1].text == "--budget 1 is spent"


@pytest.mark.parametrize(
    ("value", "passed"), [(1.0, True), (2.0, True), (2.1, False), (float("nan"), False)]
)
def test_bounds_include_their_end_and_refuse_nan(value, passed):
    state = "ok" if passed else "FAILED"
    assert at_most("x", value, 2.0).state == at_least("x", -value, -2.0).state == state
    assert fast_if("x", -value, -2.0).state == ("ok" if passed else "slow")
    assert Line("x", 1234.5, "images/s").shown == "1,234 images/s"


def test_every_row_has_its_function():
    assert {
        name: row.module
        for name, row in rows.ROWS.items()
        if name in importlib.import_module(row.module).ROWS
    } == {name: row.module for name, row in rows.ROWS.items()}


def test_the_fastest_rows_on_the_cpu(tmp_path, capsys):
    output = tmp_path / "check.json"
    words = ["--device", "cpu", "--rows", "evaluation", "out_of_memory", "--output", str(output)]
    assert command.main(words) == 0, capsys.readouterr().out
    *_, table = json.loads(output.read_text())["tables"]
    found = {step["step"]: step for step in table["steps"]}
    rate = found["evaluation: random starts drawn on cpu"]
    assert table["table"] == "device cpu" and rate["facts"]["value"] > 0
    assert [step["state"] for step in table["steps"]] == ["ok", "skipped"]


@pytest.mark.slow
@pytest.mark.parametrize("name", rows.ROWS)
def test_a_row_passes_on_the_cpu(name, request, monkeypatch):
    """In this process. The command starts one for each row.

    Graphs are captured as usual. Generating code for a CPU would take minutes.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    measure = importlib.import_module(rows.ROWS[name].module).ROWS[name]
    states = {line.state for line in measure(torch.device("cpu"), False)}
    assert states == {"skipped" if name == "out_of_memory" else "ok"}
