"""The command on bundled data: plan, run, repetition, changes, and further trials."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from classification.compare import __main__ as compare
from classification.compare.settings import STUDY, TrialGroup, digest, load, save
from classification.study import commands
from robust_backbones import weights
from tests.support.transfer_runs import write_network

LIMITS = ["--limit", "40", "--test-limit", "30"]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Arguments of a standard and a robust network of the same recipe."""
    folder = tmp_path_factory.mktemp("networks")
    recipe = {"arch": "shufflenet_v2_x1_0", "dataset": "cifar10", "constraint": "l2", "epochs": 9}
    for eps in (0.0, 1.0):
        method = "pgd" if eps else "standard"
        facts = recipe | {"eps": eps, "method": method}
        write_network(folder / f"eps{eps:g}.pt", **facts)
    return ["--weights", *map(str, sorted(folder.iterdir()))]


@pytest.fixture(scope="module")
def finished(networks, tmp_path_factory):
    """Output folder of a finished comparison."""
    output = tmp_path_factory.mktemp("compared") / "digits"
    run(output, networks)
    return output


def run(output, networks, *more):
    compare.main(["digits", *networks, *LIMITS, "--output", str(output), *more])


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the comparison."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    study = (folder / STUDY).read_text().replace(str(finished), str(folder))
    (folder / STUDY).write_text(study)
    save(replace(load(folder), study=digest(study)), folder)
    return folder


def error(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_the_answer_is_the_sentence_of_the_report(finished, networks, capsys):
    capsys.readouterr()
    run(finished, networks)
    printed = capsys.readouterr().out
    report = json.loads((finished / "report" / "report.json").read_text())
    assert [a["question"] in printed and a["text"] in printed for a in report["answers"]] == [True]
    assert str(finished / "report" / "index.html") in printed
    assert "cost:" not in printed  # nothing was left to run
    assert len(list(finished.glob("runs/transfer/*/result.json"))) == 2


@pytest.fixture
def moved(networks):
    """Move the files of the networks away."""
    for name in networks[1:]:
        Path(name).rename(f"{name}.away")
    yield networks
    for name in networks[1:]:
        Path(f"{name}.away").rename(name)


def test_the_answer_is_shown_without_the_networks(copy, moved, capsys):
    run(copy, moved)
    printed = capsys.readouterr().out
    assert "note: no runs were started." in printed and moved[1] in printed
    report = json.loads((copy / "report" / "report.json").read_text())
    assert report["answers"][0]["text"] in printed
    assert moved[1] in error(capsys, copy, moved, "--more")


def test_other_options_are_an_error_that_names_them(finished, networks, capsys):
    assert "--trials is 3 there, 5 here" in error(capsys, finished, networks, "--trials", "5")


def test_plan_writes_the_study_and_starts_no_run(networks, tmp_path, capsys):
    run(tmp_path / "new", networks, "--plan")
    printed = capsys.readouterr().out
    assert "twins" in printed and "cost: 2 runs, one after another" in printed
    assert (tmp_path / "new" / "study.yaml").exists() and not (tmp_path / "new" / "runs").exists()
    run(
        tmp_path / "new", networks, "--plan", "--trials", "4"
    )  # not started: other options are fine
    planned = load(tmp_path / "new")
    assert planned.groups == (TrialGroup(0, 4),)
    save(replace(planned, fingerprints={"digits": ("other", "images")}), tmp_path / "new")
    run(tmp_path / "new", networks, "--plan", "--trials", "4")  # not started: so are other images
    assert load(tmp_path / "new") == planned


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--set", "trials=4"], "use --trials"),
        (["--set", "epoks=4"], "has no option 'epoks'"),
        (["--set", "help=true"], "help is not an option of a run"),
        (["--set", "penalty=x"], "penalty"),
        (["--limit", "3"], "a limit of 3 images is less than the"),
        (["--set", "epochs=3"], "does not apply .* with --set OPTION=VALUE"),
        (["--output", __file__], "is a file. Choose another folder"),
        (["--more"], "has no comparison"),
        (["--mode", "full-network", "--set", "batch-size=64"], "batch-size 64"),
    ],
)
def test_errors_before_anything_is_written(changes, message, networks, tmp_path, capsys):
    assert re.search(message, error(capsys, tmp_path / "new", networks, *changes))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("data", ["missing", "voc:missing", "coco:missing:missing.json"])
def test_data_are_opened_before_networks_are_downloaded(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "fetch_weights", None)
    with pytest.raises(SystemExit) as stopped:
        compare.main([data, "--output", "new"])
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert "missing" in captured.err
    assert "Traceback" not in captured.out + captured.err
    assert not Path("new").exists()


def test_changed_networks_and_moved_folders_start_no_runs(finished, copy, networks, capsys):
    saved, lines = load(copy), networks[1:]
    save(replace(saved, networks=dict.fromkeys(saved.networks, "other")), copy)
    shutil.rmtree(next((copy / "runs" / "transfer").iterdir()))  # something is left to run
    assert f"{lines[0]}: the contents of the file have changed" in error(capsys, copy, networks)
    shutil.copy(finished / STUDY, copy)
    assert f"its runs are in {finished / 'runs'}" in error(capsys, copy, networks)


def test_an_edited_study_is_used_but_gets_no_trials(copy, networks, capsys):
    study = copy / "study.yaml"
    study.write_text(study.read_text().replace("0 to 2:", "first:"))
    assert "study.yaml:" in (message := error(capsys, copy, networks, "--more"))
    assert "was edited" in message


def test_more_adds_the_advised_trials(copy, networks, capsys, monkeypatch):
    contents = json.loads((copy / "report" / "report.json").read_text())
    row = contents["answers"][0]["tasks"][0]
    row |= {"verdict": "cannot tell", "trials": [5, 9], "images": None}
    (copy / "report" / "report.json").write_text(json.dumps(contents))
    run(copy, networks, "--more")
    assert "2 more trials" in capsys.readouterr().out
    assert load(copy).groups == (TrialGroup(0, 3), TrialGroup(3, 2))
    assert commands.read_metrics(next(copy.glob("runs/transfer/*3_to_4*/result.json")))
    looks = json.loads((copy / "report" / "report.json").read_text())["looks"]
    assert all(len(trials) == 2 for trials in looks.values())
