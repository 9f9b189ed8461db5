"""The command that makes a report: what it writes, what it replaces, what it refuses."""

import csv
import importlib.util
import json
import re
import subprocess
import sys
import time
from statistics import NormalDist

import numpy as np
import pytest
import yaml

from classification.datasets.specs import SUITE
from classification.report import __main__ as report
from classification.report import folder
from classification.study.file import read_study
from tests.support import ROOT, report_parts

LEVELS = ("0", "0.1", "3")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    for task in ("cifar10", "pets"):
        for k, eps in enumerate(LEVELS):
            report_parts.result(
                root / task / eps,
                task,
                (90.0 + k, 91.0, 92.0),
                weights=f"robust://resnet18_l2_eps{eps}",
            )
    report_parts.hostile_result(root / "hostile")
    (root / "broken").mkdir()
    (root / "broken" / "result.json").write_text("{")
    return root


@pytest.fixture(scope="module")
def written(results, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "new" / "folder"
    report.main([str(results), "--output", str(out)])
    return out


def files(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_what_is_written(written):
    names = set(files(written))
    assert {"index.html", "report.json"} <= names
    for ending in ("csv", "md", "tex"):
        assert f"tables/table1.{ending}" in names
    assert {"figures/table1.svg", "figures/table1.png"} <= names
    assert not [name for name in names if name.endswith(".tmp")]
    assert names - {"index.html", "report.json", "report.md"} == set(
        json.loads((written / "report.json").read_text())["files"]
    )


def test_what_is_printed(results, tmp_path, capsys):
    report.main(
        [str(results / "cifar10"), str(results / "broken"), "--output", str(tmp_path / "r")]
    )
    out = capsys.readouterr().out
    assert "table1: 2 of 24 numbers" in out and "warning: " in out and "broken" in out
    assert out.strip().endswith(str(tmp_path / "r" / "index.html"))


def test_the_answer_is_the_same_everywhere(results, tmp_path, capsys):
    folders = [str(results / "cifar10" / eps) for eps in ("0", "3")]
    report.main([*folders, "--output", str(tmp_path), "--margin", "2"])
    first = capsys.readouterr().out.splitlines()[0]
    (answer,) = json.loads((tmp_path / "report.json").read_text())["answers"]
    assert first == f"{answer['question']}: {answer['text']}" and answer["text"].endswith(".")
    assert answer["text"] in (tmp_path / "report.md").read_text().splitlines()[0].replace("\\", "")
    page = (tmp_path / "index.html").read_text()
    assert page.index(answer["text"]) < page.index("<nav")
    assert answer["tasks"][0]["margin"] == 2 and sum(answer["counts"].values()) == 1


def test_an_answer_is_not_quoted_without_its_caution(tmp_path):
    for eps in LEVELS:
        weights = f"robust://resnet18_l2_eps{eps}"
        report_parts.result(tmp_path / "results" / eps, "digits", weights=weights)
    report.main([str(tmp_path / "results"), "--output", str(tmp_path / "r")])
    first = (tmp_path / "r" / "report.md").read_text().splitlines()[0]
    assert first.endswith(" digits: small bundled data that only test the software.")


def test_no_text_of_a_result_is_a_tag(written):
    page = (written / "index.html").read_text()
    assert page.count("<script") == 2 and "<img" not in page.split("<script")[0]
    for path in written.glob("figures/*.svg"):
        assert "<script" not in path.read_text()


def test_the_same_results_give_the_same_report(results, written, tmp_path):
    report.main([str(results), "--output", str(tmp_path)])
    assert files(tmp_path) == files(written)


def test_again_replaces_what_it_wrote_and_nothing_else(results, tmp_path):
    report.main([str(results), "--output", str(tmp_path)])
    listed = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "tables" / "old.csv").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    outside = tmp_path.parent / "outside.txt"
    outside.write_text("mine")
    listed["files"] += ["tables/old.csv", "../outside.txt", "notes.txt", str(outside)]
    (tmp_path / "report.json").write_text(json.dumps(listed))
    before = (tmp_path / "index.html").read_bytes()
    report.main([str(results / "pets"), "--output", str(tmp_path)])
    assert (tmp_path / "index.html").read_bytes() != before
    assert not (tmp_path / "tables" / "old.csv").exists()
    assert outside.exists() and (tmp_path / "notes.txt").exists()


def test_looks_are_kept_in_the_folder(tmp_path):
    """The second look, at more trials, may spend less; the same look again is no new one."""
    levels, accuracies = [], (90.0, 91.0, 92.0, 91.5, 90.5)
    for trials in (3, 5, 5):
        for eps in ("0", "3"):
            report_parts.result(
                tmp_path / "runs" / eps,
                "cifar10",
                accuracies[:trials],
                weights=f"robust://resnet18_l2_eps{eps}",
            )
        report.main([str(tmp_path / "runs"), "--output", str(tmp_path / "out")])
        table = (tmp_path / "out" / "tables" / "paired.csv").read_text()
        levels.append(re.search(r"[\d.]+ % interval over trials", table)[0].split(" ")[0])
    assert levels == ["96", "99.5", "99.5"]
    looks = json.loads((tmp_path / "out" / "report.json").read_text())["looks"]
    assert {tuple(trials) for trials in looks.values()} == {("3 v 3", "5 v 5")}


@pytest.mark.parametrize("looks", [3, {"a": 3}, [], None, {"a": ["x"]}])
def test_looks_that_are_not_ours_are_passed_over(results, tmp_path, looks):
    listed = {"kind": folder.KIND, "files": [], "looks": looks}
    (tmp_path / "report.json").write_text(json.dumps(listed))
    report.main([str(results / "pets"), "--output", str(tmp_path)])
    assert (tmp_path / "index.html").exists()


@pytest.mark.parametrize("margin, verdict", [("1", "cannot tell"), ("9", "no difference")])
def test_the_margin_is_an_option(results, tmp_path, margin, verdict):
    folders = [str(results / "cifar10" / eps) for eps in ("0", "3")]
    report.main([*folders, "--output", str(tmp_path), "--margin", margin])
    assert verdict in (tmp_path / "tables" / "table1.md").read_text()


def test_a_report_that_was_cut_off_can_be_made_again(results, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"kind": folder.KIND, "files": []}))
    (tmp_path / "tables").mkdir()
    report.main([str(results / "pets"), "--output", str(tmp_path)])
    assert (tmp_path / "index.html").exists()


def test_simulated_results_of_the_benchmark(tmp_path, capsys):
    path = ROOT / "benchmarks" / "report.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_reports", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    count = benchmark.simulate(
        tmp_path / "runs",
        60,
        tasks=("dtd", "pets"),
        archs=("resnet18",),
        levels=(0.0, 3.0),
        modes=("fixed-feature",),
        trials=2,
    )
    assert count == 8
    report.main([str(tmp_path / "runs"), "--output", str(tmp_path / "out")])
    assert "table1: 4 of 24 numbers" in capsys.readouterr().out
    assert "8 of 8 results" in (tmp_path / "out" / "index.html").read_text()
    assert ">simulated<" in (tmp_path / "out" / "figures" / "table1.svg").read_text()


def test_names_that_no_file_can_have(results, tmp_path, capsys):
    for name in ("a", "b"):
        report_parts.result(tmp_path / name, "數" * 400, protocol="../" * 9 + "é" * 400 + name)
    report.main([str(tmp_path), str(results / "pets"), "--output", str(tmp_path / "out")])
    assert len(list((tmp_path / "out" / "tables").glob("table1*.csv"))) == 3
    assert not list(tmp_path.glob("*.csv"))


def test_a_study(tmp_path, capsys):
    study = tmp_path / "study.yaml"
    axes = {"eps": {"first": {"weights": "a"}, "second": {"weights": "b"}}}
    contents = {"output": str(tmp_path / "runs"), "common": {"dataset": "pets"}, "axes": axes}
    study.write_text(yaml.safe_dump(contents))
    report_parts.result(read_study(study)[0].result.parent, "pets")
    report.main([str(tmp_path / "runs"), "--study", str(study), "--output", str(tmp_path / "out")])
    assert "study: 1 of 2 numbers" in capsys.readouterr().out
    table = (tmp_path / "out" / "tables" / "study.csv").read_text()
    assert "first,finished,91.1667" in table and "second,missing" in table


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda p: (["absent"], "new"), "absent does not exist"),
        (lambda p: ([p.mkdir("empty")], "new"), "no results in .*empty. Give folders that contain"),
        (lambda p: ([p.broken()], "new"), "no results in .*. Give .* is not a valid result"),
        (lambda p: ([p.results], p.other()), "contains files but no report. Choose another"),
        (lambda p: ([p.results], p.file()), "cannot read this folder"),
    ],
)
def test_mistakes(make, words, results, tmp_path, capsys):
    class Places:
        def __init__(self):
            self.results = results

        def mkdir(self, name):
            (tmp_path / name).mkdir()
            return tmp_path / name

        def broken(self):
            (self.mkdir("broken") / "result.json").write_text("no")
            return tmp_path / "broken"

        def other(self):
            (self.mkdir("other") / "thesis.tex").write_text("mine")
            return tmp_path / "other"

        def file(self):
            (tmp_path / "file").write_text("")
            return tmp_path / "file"

    given, out = make(Places())
    out = tmp_path / out
    with pytest.raises(SystemExit) as stopped:
        report.main([*map(str, given), "--output", str(out)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ")
    assert re.search(words, error) and error.count("\n") == 1


def test_help_comes_at_once():
    code = (
        "import sys; import classification.report as r; "
        "print({'torch', 'matplotlib', 'jinja2', 'numpy'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "set()", found.stderr
    began = time.perf_counter()
    command = [sys.executable, "-m", "classification.report", "--help"]
    assert "RESULTS" in subprocess.run(command, capture_output=True, text=True).stdout
    assert time.perf_counter() - began < 1.5


def simulated_study(folder, trials, gain):
    """Twelve tasks, a robust and a standard network each, with predictions; seeds scatter by one
    point."""
    rng = np.random.default_rng(0)
    for task in SUITE:
        hard = rng.normal(0, 0.9, 1000)
        for eps in ("0", "3"):
            level = 80 + (gain if eps == "3" else 0) + rng.normal(0, 1, trials)
            own = hard + rng.normal(0, 0.3, 1000)
            noise = rng.normal(0, 0.3, (trials, 1000))
            right = (own + noise) < NormalDist().inv_cdf(0.8) + (level[:, None] - 80) / 28
            run = folder / task / eps
            report_parts.result(
                run, task, tuple(100 * right.mean(1)), weights=f"robust://resnet18_l2_eps{eps}"
            )
            lines = np.column_stack([np.arange(1000), np.zeros(1000, int), ~right.T])
            head = ",".join(["index", "label", *(f"trial{k}" for k in range(trials))])
            np.savetxt(run / "per_image.csv", lines, "%d", ",", header=head, comments="")


@pytest.mark.parametrize(
    "trials, gain, verdict, least",
    [(1, 0, "cannot tell", 12), (1, 8, "cannot tell", 12), (3, 8, "better", 10)],
)
def test_a_study_of_twelve_tasks(tmp_path, trials, gain, verdict, least):
    """By the older method one trial without any difference gave five verdicts."""
    simulated_study(tmp_path / "runs", trials, gain)
    report.main([str(tmp_path / "runs"), "--output", str(tmp_path / "out")])
    with open(tmp_path / "out" / "tables" / "paired.csv", newline="") as file:
        heads, *lines = csv.reader(file)
    found = [line[heads.index("verdict")] for line in lines]
    assert len(found) == 13 and found[:12].count(verdict) >= least
    assert found[12] == ("cannot tell" if trials == 1 else "better")  # all tasks together
