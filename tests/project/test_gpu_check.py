"""The GPU check: a row that fails, hangs or lacks a package does not stop the next one."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.commands import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu_check

LINE = gpu_check.MARK + json.dumps(
    {"name": "a", "value": "1 s", "bound": "<= 2", "result": "PASS", "seconds": 0.1}
)


@pytest.mark.parametrize(
    ("text", "rows"), [("1", [1]), ("1,3-5", [1, 3, 4, 5]), ("14, 2", [14, 2])]
)
def test_rows_are_numbers_and_ranges(text, rows):
    assert gpu_check.parse_rows(text) == rows


@pytest.mark.parametrize("text", ["", "0", "99", "1-99", "x", "3-", "5-3", "1;2"])
def test_other_rows_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="."):
        gpu_check.parse_rows(text)


@pytest.mark.parametrize(
    ("script", "results", "said"),
    [
        (f"echo '{LINE}'", ["PASS"], ["1 s"]),
        (
            f"echo '{LINE}'; echo 'ValueError: no' >&2; exit 3",
            ["PASS", "FAIL"],
            ["1 s", "exit code 3"],
        ),
        (f"echo '{LINE}'; sleep 60", ["PASS", "FAIL"], ["1 s", "stopped"]),
        ("kill -9 $$", ["FAIL"], ["exit code -9"]),
    ],
)
def test_a_row_reports_what_it_measured_and_how_it_ended(
    script, results, said, tmp_path, monkeypatch
):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    report = gpu_check.Report(tmp_path / "out")
    gpu_check.run(1, "cpu", 1.5, report)
    gpu_check.run(1, "cpu", 1.5, report)
    passed = report.close("command")
    lines = [json.loads(text) for text in (tmp_path / "out/gpu_check.jsonl").open()]
    assert [line["result"] for line in lines] == results * 2
    assert all(word in line["value"] for word, line in zip(said * 2, lines, strict=True))
    assert passed == ("FAIL" not in results)
    assert (tmp_path / "out/gpu_check.md").read_text().count("| 1 |") == len(lines)


def test_a_missing_package_skips_the_row(tmp_path, monkeypatch):
    row = gpu_check.Row("title", "nowhere:nothing", 60, ("torch", "no_such_package"))
    monkeypatch.setitem(gpu_check.ROWS, 1, row)
    report = gpu_check.Report(tmp_path)
    gpu_check.run(1, "cpu", 60, report)
    assert [line["result"] for line in report.lines] == ["SKIP"]
    assert report.lines[0]["value"] == "needs no_such_package"
    assert report.close("command")


def test_a_package_missed_at_import_skips_the_row(monkeypatch, capsys):
    monkeypatch.setitem(gpu_check.ROWS, 1, gpu_check.Row("title", "no_such_module:f", 60, ()))
    gpu_check.measure(1, "cpu")
    line = json.loads(capsys.readouterr().out.removeprefix(gpu_check.MARK))
    assert (line["result"], line["value"]) == ("SKIP", "needs gpu.no_such_module")


@pytest.mark.parametrize(
    ("value", "passed"), [(1.0, True), (2.0, True), (2.1, False), (float("nan"), False)]
)
def test_bounds_include_their_end_and_refuse_nan(value, passed):
    from gpu.lines import at_least, at_most

    assert at_most("x", value, 2.0).passed is passed
    assert at_least("x", -value, -2.0).passed is passed


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_error_names_the_fix():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_check.py"], cwd=ROOT, text=True, capture_output=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --device cuda: no CUDA GPU found. Use --device cpu")


@pytest.mark.slow
def test_all_rows_pass_on_the_cpu(tmp_path):
    words = [
        "benchmarks/gpu_check.py",
        "--device",
        "cpu",
        "--output",
        str(tmp_path),
        "--budget",
        "3000",
    ]  # other tests run beside it
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    lines = [json.loads(text) for text in Path(tmp_path, "gpu_check.jsonl").open()]
    assert {line["row"] for line in lines} == set(gpu_check.ROWS)
    bad = [line for line in lines if line["result"] == "FAIL"]
    assert not bad and done.returncode == 0, (bad, done.stderr)
    assert [line["row"] for line in lines if line["result"] == "SKIP"] == [13]  # needs a GPU
