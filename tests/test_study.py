"""Study files: which runs they ask for, what happens to them, the table, and mistakes in them."""

import re
import subprocess
from types import SimpleNamespace

import pytest
import yaml
from transfer_runs import write_network

from classification import study, transfer_options

FILE = {
    "output": "out",
    "common": {"dataset": "digits", "trials": 2, "lr": [0.1, 0.01]},
    "axes": {
        "protocol": {"clean": {"protocol": "clean"}, "as it was": {"protocol": "paper"}},
        "weights": {"standard": {"weights": "a.pt"}, "eps 3": {"weights": "b.pt", "trials": 1}},
    },
}


def write(path, contents):
    path.write_text(
        contents if isinstance(contents, str) else yaml.safe_dump(contents, sort_keys=False)
    )
    return path


def test_every_combination_once(tmp_path):
    runs = study.read(write(tmp_path / "s.yaml", FILE), {"device": "cpu"})
    assert [tuple(run.labels.values()) for run in runs] == [
        ("clean", "standard"), ("clean", "eps 3"), ("as it was", "standard"),
        ("as it was", "eps 3")]  # fmt: skip
    assert runs[1].options == {"dataset": "digits", "trials": 1, "lr": [0.1, 0.01],
                               "protocol": "clean", "weights": "b.pt", "device": "cpu"}  # fmt: skip
    assert runs[3].folder.as_posix() == "out/as_it_was-eps_3"


def test_options_become_a_command_line():
    options = {"save_classifier": True, "compile": False, "lr": [0.1, 0.01], "trials": 2}
    run = study.Run({}, options, "folder")
    assert run.arguments() == ["--output", "folder", "--save-classifier", "--lr", "0.1", "0.01",
                               "--trials", "2"]  # fmt: skip


@pytest.mark.parametrize("name", ["cifar_protocols", "small_transfer", "small_protocols"])
def test_the_studies_that_come_along_ask_for_what_there_is(request, name):
    folder = request.config.rootpath / "configs" / "studies"
    parser = transfer_options.parser("")
    known = {"arch": "resnet50", "image_size": None, "weights_sha256": "0"}
    runs = study.read(folder / f"{name}.yaml")
    found = [transfer_options.settings(parser.parse_args(run.arguments()), known) for run in runs]
    assert len({str(settings | {"weights": run.options["weights"]} | run.labels)
                for settings, run in zip(found, runs, strict=True)}) == len(runs)  # fmt: skip


def test_runs_are_made_skipped_and_told_of(tmp_path, capfd):
    weights = write_network(tmp_path / "w.pt", "shufflenet_v2_x1_0")
    contents = {
        "output": str(tmp_path / "out"),
        "common": {"dataset": "digits", "limit": 40, "test_limit": 30, "probe": "nearest",
                   "weights": str(weights)},
        "axes": {"k": {"one": {"neighbours": 1}, "none": {"neighbours": 0}}},
    }  # fmt: skip
    file = write(tmp_path / "s.yaml", contents)
    with pytest.raises(SystemExit) as stop:
        study.main(["run", str(file)])
    out, err = capfd.readouterr()
    assert stop.value.code == 2 and "run 2 of 2: none" in out
    assert "1 of 2 runs failed: none. Their errors are above" in err
    assert "'0' is not a whole number of at least 1" in err  # the run's own words

    contents["axes"]["k"]["none"] = {"neighbours": 3}
    write(file, contents)
    study.main(["run", str(file)])
    out, _ = capfd.readouterr()
    assert out.count("finished; nothing to do") == 1
    rows = re.findall(r"^\| (one|none) \| (\d+\.\d\d) \|  \| 1 \|$", out, re.M)
    assert [name for name, _ in rows] == ["one", "none"]


def test_a_stopped_study_ends_as_stopped_runs_do(tmp_path, monkeypatch):
    calls = []

    def run(command):
        calls.append(command)
        return SimpleNamespace(returncode=study.STOPPED)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit) as stop:
        study.main(["run", str(write(tmp_path / "s.yaml", FILE))])
    assert stop.value.code == study.STOPPED and len(calls) == 1


def test_what_is_missing_is_said(tmp_path, capsys):
    study.main(["table", str(write(tmp_path / "s.yaml", FILE))])
    assert capsys.readouterr().out.count("| missing |") == 4


@pytest.mark.parametrize(
    "contents, message",
    [
        ("a: [", "is not YAML"),
        ("- 1", "needs output and axes"),
        ({"output": "o"}, "needs output and axes"),
        (FILE | {"seeds": 3}, "needs output and axes, and may have common; nothing else"),
        (FILE | {"axes": {}}, "axes one of axis names to"),
        (FILE | {"axes": {"a": ["b"]}}, "axes one of axis names to"),
        (FILE | {"axes": {"a": {"b": 1}}}, "axes one of axis names to"),
        (FILE | {"common": "x"}, "common is a mapping of options"),
        (FILE | {"axes": {"eps": {3: {"seed": 1}}}}, "the label 3 is not text; put it between"),
        (FILE | {"axes": {"a": {"b c": {}, "b/c": {}}}}, "differ in punctuation only"),
    ],
)
def test_mistakes_in_a_file(tmp_path, capsys, contents, message):
    with pytest.raises(SystemExit) as stop:
        study.main(["table", str(write(tmp_path / "s.yaml", contents))])
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--set", "trials"], ["--set", "=1"]])
def test_mistakes_on_the_command_line(tmp_path, capsys, words):
    with pytest.raises(SystemExit) as stop:
        study.main(["table", str(write(tmp_path / "s.yaml", FILE)), *words])
    assert stop.value.code == 2 and "is not OPTION=VALUE" in capsys.readouterr().err
