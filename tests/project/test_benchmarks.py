"""Test the runner of all benchmarks: numbers read from tables, and failures that stop nothing."""

import importlib.util
import sys

import pytest

from tests.support.commands import ROOT

OUTPUT = """\
torch 2
| implementation | speedup | s |
|---|---|---|
| theirs | 1.00 | 3 |
| ours, slow | 1.30 | 2 |
| ours, fast | more than 4.5 | 1 |

| speedup | part |
|---|---|
| 9 | ours |
| | ours |
"""


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("benchmark_run", ROOT / "benchmarks/run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("column", "rows", "found"),
    [
        ("speedup", ("ours",), [1.3, 4.5, 9]),
        ("speedup", ("ours", "fast"), [4.5]),
        ("s", (), [3, 2, 1]),
        ("nothing", (), []),
    ],
)
def test_numbers_come_from_the_selected_rows(run, column, rows, found):
    assert run.numbers(OUTPUT, column, rows) == found


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (dict(least=1.3), "worst 1.3, target at least 1.3: met"),
        (dict(least=1.5), "worst 1.3, target at least 1.5: **missed**"),
        (dict(least=1.5, best=True), "best 9, target at least 1.5: met"),
        (dict(most=8), "worst 9, target at most 8: **missed**"),
        (dict(most=2, best=True), "best 1.3, target at most 2: met"),
    ],
)
def test_a_target_applies_to_the_worst_row_unless_one_is_enough(run, target, said):
    assert run.Target("speedup", ("ours",), **target).check(OUTPUT).endswith(said)


def test_no_number_does_not_meet_a_target(run):
    assert "has no number" in run.Target("speedup", ("hers",), least=0).check(OUTPUT)


def test_a_failure_is_reported_and_the_others_run(run, tmp_path, monkeypatch, capsys):
    rows = {
        "bad": run.Question("Bad", "nothing", "-c 'import sys; sys.exit(\"no package x\")'", ""),
        "good": run.Question("Good", "it", "-c 'print(1 + 1)'", ""),
    }
    monkeypatch.setattr(run, "QUESTIONS", rows)
    assert run.main(["--only", "bad", "good", "--output", str(tmp_path / "page.md")]) == 1
    page = (tmp_path / "page.md").read_text()
    assert "**Failed** with exit code 1: no package x" in page
    assert "## Good" in page and "\n2\n" in page and "bad" in capsys.readouterr().err


def test_simulated_verdicts(capsys):
    """A few studies of a few worlds: the table is there, and no bound is missed for certain."""
    import importlib

    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        verdicts = importlib.import_module("verdicts")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    assert len(set(verdicts.table(60))) == 60
    args = ["--smoke", "--studies", "8", "--worlds", "4"]
    assert verdicts.main([*args, "--parts", "worlds", "tasks"]) == 0
    out = capsys.readouterr().out
    assert "| family |" in out and "| bounds missed |" in out


def test_every_question_has_its_script(run):
    for question in run.QUESTIONS.values():
        for words in (question.quick, question.full):
            assert (ROOT / words.split()[0]).is_file()


def test_the_hardware_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location("hardware", ROOT / "benchmarks/hardware.py")
    hardware = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hardware)
    assert hardware.page() == hardware.PAGE.read_text("utf-8")
