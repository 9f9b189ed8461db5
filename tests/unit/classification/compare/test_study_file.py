"""The study file of a comparison: comments, and folders that stay when trials are added."""

from dataclasses import replace
from pathlib import Path

from classification.compare import study_file
from classification.compare.classifiers import KIND
from classification.compare.kinds import Task
from classification.compare.settings import CLASSIFICATION, CompareSettings, TrialGroup
from classification.study.file import read_study
from tests.support.compared_networks import network

FIXED = CompareSettings(
    CLASSIFICATION, ("digits", "faces"), ("a.pt", "b.pt"), 3, mode="fixed-feature", limit=40
)
FULL = CompareSettings(
    CLASSIFICATION,
    ("digits", "faces"),
    ("a.pt", "b.pt"),
    2,
    changes=(("epochs", "5"),),
    mode="full-network",
)
TASKS = [Task(name, {"dataset": name}, 40, 20, 10, ("", "")) for name in ("digits", "faces")]
NETWORKS = [network("a.pt", "standard", 0.0), network("b.pt", "eps 1", 1.0)]


def runs(folder: Path, settings, *groups):
    parts = KIND.parts(settings, NETWORKS, TASKS, groups)
    study = folder / "study.yaml"
    study.write_text(study_file.text(parts, folder / "runs", study, folder / "report"))
    return read_study(study)


def test_fixed_features_share_a_run_and_more_trials_leave_its_folder(tmp_path):
    first = runs(tmp_path, FIXED, TrialGroup(0, 3))
    assert [run.labels for run in first] == [
        {"task": task, "weights": weights, "seed": "0 to 2"}
        for task in ("digits", "faces")
        for weights in ("standard", "eps 1")
    ]
    assert {(run.options["seed"], run.options["trials"]) for run in first} == {(0, 3)}
    more = runs(tmp_path, FIXED, TrialGroup(0, 3), TrialGroup(3, 5, ("faces",)))
    assert {run.folder for run in first} < {run.folder for run in more}
    assert {run.labels["task"] for run in more[len(first) :]} <= {"faces", "digits"}
    added = [run for run in more if run.options["seed"] == 3]
    assert [run.labels["task"] for run in added] == ["faces", "faces"]
    assert len(more) == len(first) + 2


def test_each_trial_of_the_full_network_is_a_run_with_the_options_of_all(tmp_path):
    found = runs(tmp_path, FULL, TrialGroup(0, 2))
    assert len(found) == 8
    assert {(run.options["trials"], run.options["epochs"]) for run in found} == {(1, "5")}
    assert {run.options["seed"] for run in found} == {0, 1}


def test_braces_in_paths_are_no_placeholders(tmp_path):
    folder, weights = str(tmp_path / "{seed}} birds"), "{a}.pt"
    tasks = [Task("birds", {"dataset": "folder", "data": folder}, 40, 20, 10, ("", ""))]
    networks = [network(weights, "standard", 0.0), NETWORKS[1]]
    settings = replace(FIXED, data=(folder,), weights=(weights, "b.pt"))
    parts = KIND.parts(settings, networks, tasks, [TrialGroup(0, 3)])
    study = tmp_path / "study.yaml"
    study.write_text(study_file.text(parts, tmp_path / "{runs}", study, tmp_path / "report"))
    found = read_study(study)
    assert {run.options["weights"] for run in found} == {weights, "b.pt"}
    assert {run.options["data"] for run in found} == {folder}
    assert {run.options["seed"] for run in found} == {0}


def test_the_file_explains_itself(tmp_path):
    runs(tmp_path, FIXED, TrialGroup(0, 3))
    text = (tmp_path / "study.yaml").read_text()
    assert f"robust-backbones study run {tmp_path / 'study.yaml'}" in text
    assert "  # Each network on each task." in text and "&id" not in text
