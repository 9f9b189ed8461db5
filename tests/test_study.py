"""Study files: which runs they ask for, what happens to them, the table, and mistakes in them."""

import json
import re
import subprocess
from types import SimpleNamespace

import pytest
import yaml
from transfer_runs import write_network

from classification import study, transfer_options
from robust_backbones.errors import UserError
from robust_backbones.stopping import STOPPED

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
    (line,) = study.Run({}, options, "folder").lines()
    assert line[1:] == ["-m", "classification.transfer", "--output", "folder", "--save-classifier",
                        "--lr", "0.1", "0.01", "--trials", "2"]  # fmt: skip


def test_seeds_of_a_detector_are_runs_of_their_own(tmp_path):
    options = {"config": "c.yaml", "seeds": 2, "gpus": 8, "MODEL.WEIGHTS": "w.pth"}
    run = study.Run({"weights": "robust"}, options, tmp_path, "detection")
    first, second = run.lines()
    assert first[2:] == ["--config", "c.yaml", "--resume", "--num-gpus", "8", "MODEL.WEIGHTS",
                         "w.pth", "SEED", "0", "OUTPUT_DIR", str(tmp_path / "seed0")]  # fmt: skip
    assert second[-3:] == ["1", "OUTPUT_DIR", str(tmp_path / "seed1")]
    assert run.cells() == ["", "", "missing"]
    for seed, (box, mask) in enumerate([(40.0, 36.0), (41.0, None)]):
        (tmp_path / f"seed{seed}").mkdir()
        metrics = {"val": {"bbox": {"AP": box}, "segm": {"AP": mask}}}
        text = json.dumps({"metrics": metrics})
        (tmp_path / f"seed{seed}" / "result.json").write_text(text)
    assert run.cells() == ["40.50 ± 0.71", "36.00", "2 of 2"]
    with pytest.raises(UserError, match="the run robust has no option 'config'"):
        study.Run({"weights": "robust"}, {}, tmp_path, "detection").lines()


@pytest.mark.parametrize("name", ["detection", "small_detection"])
def test_the_studies_of_detectors_ask_for_configs_that_there_are(request, name):
    from robust_backbones.detection import config

    root = request.config.rootpath
    runs = study.read(root / "configs" / "studies" / f"{name}.yaml")
    for run in runs:
        line = run.lines()[-1]
        keys = line[line.index("--num-gpus") + 2 :]
        cfg = config.load_config(root / line[line.index("--config") + 1], keys)
        assert cfg.SEED == len(run.lines()) - 1


@pytest.mark.parametrize("name", ["cifar_protocols", "small_transfer", "small_protocols"])
def test_the_studies_that_come_along_ask_for_what_there_is(request, name):
    folder = request.config.rootpath / "configs" / "studies"
    parser = transfer_options.parser("")
    known = {"arch": "resnet50", "image_size": None, "weights_sha256": "0"}
    runs = study.read(folder / f"{name}.yaml")
    found = [
        transfer_options.settings(parser.parse_args(run.lines()[0][3:]), known) for run in runs
    ]
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
        return SimpleNamespace(returncode=STOPPED)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit) as stop:
        study.main(["run", str(write(tmp_path / "s.yaml", FILE))])
    assert stop.value.code == STOPPED and len(calls) == 1


def test_what_is_missing_is_said(tmp_path, capsys):
    study.main(["table", str(write(tmp_path / "s.yaml", FILE))])
    assert capsys.readouterr().out.count("| missing |") == 4


@pytest.mark.parametrize(
    "contents, message",
    [
        ("a: [", "is not YAML"),
        ("- 1", "needs output and axes"),
        ({"output": "o"}, "needs output and axes"),
        (
            FILE | {"seeds": 3},
            "and may have command and common; nothing else",
        ),
        (FILE | {"command": "pretrain"}, "'pretrain' is unknown; one of: transfer, detection"),
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
