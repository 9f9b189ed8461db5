"""Study files: the runs they ask for, errors in them, the table, status and plan."""

import json
import re

import pytest

from classification.study import __main__ as study
from classification.study.commands import COMMANDS
from classification.study.file import read_study
from classification.study.summary import plan, status, table
from robust_backbones.__main__ import COMMANDS as ENTRIES
from robust_backbones.core.errors import UserError
from tests.support import ROOT
from tests.support.study_runs import allow, toy, write
from tests.support.transfer_runs import write_network

STUDIES = ROOT / "configs" / "studies"
FILE = {
    "output": "out",
    "common": {"dataset": "digits", "trials": 2, "lr": [0.1, 0.01]},
    "axes": {
        "protocol": {"clean": {"protocol": "clean"}, "as it was": {"protocol": "paper"}},
        "weights": {"standard": {"weights": "a.pt"}, "eps 3": {"weights": "b.pt", "trials": 1}},
    },
}
PARTS = {
    "output": "out",
    "parts": [
        {
            "name": "train",
            "command": "pretrain",
            "common": {"dataset": "digits", "eps": "{eps}"},
            "axes": {"eps": [0, 0.5]},
        },
        {
            "command": "transfer",
            "resources": {"gpus": 0.5},
            "common": {"weights": "{train}/checkpoint.pt", "dataset": "{task}"},
            "axes": {"task": ["textures", "faces"], "eps": [0, 0.5]},
            "skip": [{"task": "faces", "eps": [0.5]}],
        },
    ],
}


def read(tmp_path, contents, changes=None):
    return read_study(write(tmp_path / "s.yaml", contents), changes)


def test_every_combination_once(tmp_path):
    runs = read(tmp_path, FILE, {"device": "cpu"})
    assert [tuple(run.labels.values()) for run in runs] == [
        ("clean", "standard"),
        ("clean", "eps 3"),
        ("as it was", "standard"),
        ("as it was", "eps 3"),
    ]
    assert runs[1].options == {
        "dataset": "digits",
        "trials": 1,
        "lr": [0.1, 0.01],
        "protocol": "clean",
        "weights": "b.pt",
        "device": "cpu",
    }
    assert re.fullmatch(r"out/transfer/as_it_was-eps_3-[0-9a-f]{8}", runs[3].folder.as_posix())
    assert runs[3].result == runs[3].folder / "result.json"


def test_what_a_result_depends_on_is_its_identity(tmp_path):
    def ids(contents, changes=None):
        return [run.id for run in read(tmp_path, contents, changes)]

    first = ids(FILE)
    assert len(set(first)) == 4 and ids(FILE) == first
    assert ids(FILE, {"workers": "8", "device": "cuda"}) == first
    files = FILE | {"common": FILE["common"] | {"dataset": "cars"}}
    assert ids(files, {"data": "/elsewhere"}) == ids(files)
    assert not set(ids(FILE, {"trials": "3"})) & set(first)
    weights = tmp_path / "w.pt"
    contents = FILE | {"axes": {"weights": {"mine": {"weights": str(weights)}}}}
    weights.write_bytes(b"one")
    before = ids(contents)
    weights.write_bytes(b"two and more")
    assert ids(contents) != before


def test_a_config_counts_with_what_it_is_based_on(tmp_path, monkeypatch):
    allow(monkeypatch)
    write(tmp_path / "base.yaml", "A: 1\n")
    write(tmp_path / "c.yaml", "_BASE_: base.yaml\n")
    contents = {"output": "o", "command": "toy", "common": {"config": str(tmp_path / "c.yaml")}}
    (before,) = read(tmp_path, contents)
    write(tmp_path / "base.yaml", "A: 2222\n")
    (after,) = read(tmp_path, contents)
    assert before.id != after.id


def test_parts_build_on_each_other(tmp_path):
    runs = read(tmp_path, PARTS)
    train, transfer = runs[:2], runs[2:]
    assert [tuple(run.labels.values()) for run in transfer] == [
        ("textures", "0"),
        ("textures", "0.5"),
        ("faces", "0"),
    ]
    for run in transfer:
        source = train[["0", "0.5"].index(run.labels["eps"])]
        assert run.needs == (source.folder,)
        assert run.options["weights"] == f"{source.folder.as_posix()}/checkpoint.pt"
        assert run.gpus == 0.5 and source.gpus == 1
    # That it exists by now changes nothing: its folder has its identity in the name.
    contents = PARTS | {"output": str(tmp_path / "there")}
    before = read(tmp_path, contents)
    before[0].folder.mkdir(parents=True)
    (before[0].folder / "checkpoint.pt").write_bytes(b"x")
    assert [run.id for run in read(tmp_path, contents)] == [run.id for run in before]


def test_single_runs_beside_and_without_axes(tmp_path):
    contents = FILE | {
        "axes": {"weights": ["a.pt", "b.pt"]},
        "common": {"dataset": "digits", "weights": "{weights}"},
        "runs": [{"weights": "c.pt", "seed": 3}],
    }
    runs = read(tmp_path, contents)
    assert [run.options["weights"] for run in runs] == ["a.pt", "b.pt", "c.pt"]
    assert runs[2].options["seed"] == 3 and "seed" not in runs[0].options
    (only,) = read(tmp_path, {"output": "o", "runs": [{"dataset": "digits", "weights": "a.pt"}]})
    assert only.labels == {} and only.folder.parent.name == "transfer"
    only = read(tmp_path, FILE | {"only": [{"protocol": "clean"}, {"weights": "standard"}]})
    assert len(only) == 3


@pytest.mark.parametrize(
    "command, options, gpus, expected",
    [
        (
            "transfer",
            {
                "dataset": "digits",
                "weights": "w.pt",
                "save_classifier": True,
                "compile": False,
                "lr": [0.1, 0.01],
                "trials": 2,
            },
            0,
            "-m classification.transfer --output F --dataset digits --weights w.pt "
            "--save-classifier --lr 0.1 0.01 --trials 2",
        ),
        (
            "pretrain",
            {"dataset": "digits", "eps": 0.5},
            0,
            "-m classification.pretrain --resume --output F --dataset digits --eps 0.5",
        ),
        (
            "robustness_eval",
            {"dataset": "digits", "weights": "w.pt", "eps": [0.1, 0.2]},
            0,
            "-m classification.robustness_eval --output F --dataset digits --weights w.pt "
            "--eps 0.1 0.2",
        ),
        (
            "transfer",
            {"dataset": "digits", "weights": "w.pt", "mode": "full-network"},
            8,
            "-m classification.training.torchrun --standalone --nproc-per-node 8 "
            "-m classification.transfer --output F --dataset digits --weights w.pt "
            "--mode full-network",
        ),
        (
            "train",
            {"config": "C", "MODEL.WEIGHTS": "w.pth", "SEED": 2},
            8,
            "-m robust_backbones train --config C --num-gpus 8 --resume MODEL.WEIGHTS w.pth SEED 2 "
            "OUTPUT_DIR F",
        ),
        (
            "attack",
            {"config": "C", "eps": [2, 4], "MODEL.WEIGHTS": "w.pth"},
            8,
            "-m robust_backbones attack --config C --eps 2 4 --num-gpus 8 MODEL.WEIGHTS w.pth "
            "--output F",
        ),
        (
            "corrupt",
            {"config": "C", "images": 5, "MODEL.WEIGHTS": "w.pth"},
            0,
            "-m robust_backbones corrupt --config C --images 5 --num-gpus 1 MODEL.WEIGHTS w.pth "
            "--output F",
        ),
        (
            "convert",
            {"source": "c.pt"},
            0,
            "-m robust_backbones convert c.pt F/backbone.pth --force",
        ),
    ],
)
def test_command_lines(tmp_path, request, command, options, gpus, expected):
    config = str(request.config.rootpath / "configs" / "digits_mask_rcnn_robust.yaml")
    options = {k: config if v == "C" else v for k, v in options.items()}
    (run,) = read(tmp_path, {"output": "o", "command": command, "common": options})
    (words,) = run.lines(gpus)
    expected = expected.replace(" C ", f" {config} ")
    assert " ".join(words).replace(run.folder.as_posix(), "F") == expected


def test_commands_have_the_names_that_users_type(tmp_path):
    assert {name.replace("_", "-") for name in COMMANDS} <= set(ENTRIES)
    contents = {"output": "o", "common": {"dataset": "digits", "weights": "w.pt"}}
    runs = [
        read(tmp_path, contents | {"command": command})[0]
        for command in ("robustness_eval", "robustness-eval")
    ]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", sorted(path.name for path in STUDIES.glob("*.yaml")))
def test_the_studies_that_come_along_can_be_read(request, monkeypatch, name):
    monkeypatch.chdir(request.config.rootpath)
    runs = read_study(f"configs/studies/{name}")
    assert len({run.folder for run in runs}) == len(runs) > 1


MISTAKES = [
    ("a: [", "is not YAML"),
    ("- 1", "a study file must be a mapping with output and axes or parts"),
    ("output: o\ncommon: {}\ncommon: {}", "s.yaml:3: duplicate key 'common'"),
    ("output: o\n\naxis: {}", "s.yaml:3: unknown key 'axis'. Did you mean axes? Choose from"),
    ("output: o\naxis: {}", "Did you mean axes?"),
    ("axes: {a: [1]}", "output is missing. Give a folder for all results"),
    ("output: o\nparts: []", "s.yaml:2: parts must be a list of at least one part"),
    ("output: o\nparts:\n  - 3", "s.yaml:3: a part must be a mapping"),
    ("output: o\nparts:\n  - common: {}\n    output: x", "s.yaml:4: unknown key 'output'"),
    ("output: o\ncommand: fly", "s.yaml:2: unknown command 'fly'. Choose from pretrain, robust"),
    ("output: o\naxes: {}", "part 'transfer' is empty"),
    (
        "output: o\nparts:\n  - {name: a, command: convert, common: {source: x}}\n  - name: a",
        "s.yaml:4: two parts have the name 'a'",
    ),
    ("output: o\nname: a b\ncommon: {}", "s.yaml:2: invalid part name 'a b'"),
    ("output: o\naxes:\n  a: 3", "s.yaml:3: axis 'a' must be a list of values or a mapping"),
    ("output: o\naxes:\n  a: [[1]]", "the value [1] is neither a string nor a number"),
    ("output: o\naxes:\n  a: [1, '1']", "s.yaml:3: axis 'a' has the same label twice"),
    ("output: o\naxes:\n  a:\n    b: 1", "s.yaml:4: b must be a mapping of names to values"),
    ("output: o\ncommon: x", "s.yaml:2: common must be a mapping"),
    ("output: o\naxes: {a: [1]}\nskip:\n  - {a: 2}", "s.yaml:4: axis 'a' has no label '2'"),
    ("output: o\naxes: {a: [1]}\nonly:\n  - {b: 2}", "s.yaml:4: unknown key 'b'. Choose from a."),
    ("output: o\naxes: {a: [1]}\nruns:\n  - {seed: 2}", "the run has no label for the axis 'a'"),
    ("output: o\nresources: {gpu: 1}\ncommon: {}", "Did you mean gpus? Choose from gpus, cpus."),
    ("output: o\nresources: {gpus: -1}\ncommon: {}", "gpus must be a number of at least 0, not -1"),
    (
        "output: o\nresources: {gpus: 1.5}\ncommon: {}",
        "gpus must be a whole number or a fraction below 1",
    ),
    (
        "output: o\ncommand: convert\nresources:\n  gpus: 2\ncommon: {source: x}",
        "s.yaml:4: convert: gpus is 2, but this run uses one GPU at most. Set gpus to 1. Commands "
        "for several GPUs: pretrain, robustness_eval, transfer, train, attack, corrupt.",
    ),
    (
        "output: o\nresources: {gpus: 2}\ncommon: {dataset: digits, weights: w}",
        "s.yaml:2: transfer: gpus is 2, but this run uses one GPU at most",
    ),
    (
        "output: o\ncommon:\n  dataset: digits\n  sed: 3\n  weights: w",
        "transfer has no option 'sed'. Did you mean seed?",
    ),
    (
        "output: o\ncommon:\n  dataset: digits\n  trials: none\n  weights: w",
        "s.yaml:4: transfer: argument --trials: 'none' is not",
    ),
    ("output: o\ncommon: {dataset: digits, weights: '{eps}'}", "{eps} is neither an axis nor an"),
    (
        "output: o\ncommon: {dataset: digits, weights: w}\naxes: {a: [1, 2]}",
        "the runs 'transfer, 1' and 'transfer, 2' have the same options",
    ),
    (
        "output: o\ncommand: pretrain\ncommon:\n  beta: 6\n  method: pgd",
        "s.yaml:4: pretrain: --beta has no effect without --method trades. Remove --beta",
    ),
    (
        "output: o\ncommand: attack\ncommon:\n  config: c\n  num-gpus: 8",
        "s.yaml:5: attack: the study sets the option 'num-gpus'. Remove it, and give the part "
        "resources: {gpus: N}.",
    ),
    ("output: o\ncommand: train\ncommon: {OUTPUT_DIR: x}", "study sets the option 'OUTPUT_DIR'"),
    ("output: o\ncommand: pretrain\ncommon: {resume: must}", "study sets the option 'resume'"),
    ("output: o\ncommon: {output: x}", "sets the option 'output'. Remove it: each run has its own"),
    ("output: o\ncommand: train\ncommon: {SEED: 1}", "the option 'config' is missing"),
    ("output: o\ncommand: train\ncommon: {config: none.yaml}", "train: config file"),
    ("output: o\ncommand: convert\ncommon: {a: 1}", "convert: the option 'source' is missing"),
    ("a: &a [1]\nb: &b [*a, *a]\nc: &c [*b, *b]\n? [x]\n: 3", "is neither a string nor a number"),
    ("a: 2024-13-45", "s.yaml:1: month must be in 1..12"),
]


@pytest.mark.parametrize("contents, message", MISTAKES, ids=[m[:40] for _, m in MISTAKES])
def test_mistakes_in_a_file(tmp_path, capsys, contents, message):
    with pytest.raises(SystemExit) as stop:
        study.main(["table", str(write(tmp_path / "s.yaml", contents))])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and message in err and len(err.splitlines()) == 1


def test_aliases_of_aliases_are_not_written_out(tmp_path):
    lines = ["a0: &a0 [1, 1]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    with pytest.raises(UserError, match="more than 100000 entries"):
        read(tmp_path, "\n".join(lines))


def test_a_part_that_does_not_fit_the_one_before(tmp_path):
    contents = json.loads(json.dumps(PARTS))
    contents["parts"][1]["axes"]["eps"] = [0, 3]
    contents["parts"][1]["skip"] = []
    with pytest.raises(UserError, match=r"\{train\} in 'transfer, textures, 3' matches 0 runs"):
        read(tmp_path, contents)


CHOICE = """
output: out
parts:
  - name: learning-rate
    command: train
    common: {config: configs/digits_mask_rcnn_robust.yaml, DATASETS.HELD_OUT: 0.2}
    axes:
      weights: {standard: {MODEL.WEIGHTS: a.pth}, eps 3: {MODEL.WEIGHTS: b.pth}}
      rate: {low: {SOLVER.BASE_LR: 0.01}, high: {SOLVER.BASE_LR: 0.02}}
  - name: detection
    command: train
    common:
      config: configs/digits_mask_rcnn_robust.yaml
      choose-lr: ["{learning-rate}"]
      SEED: "{SEED}"
    axes:
      weights: {standard: {MODEL.WEIGHTS: a.pth}, eps 3: {MODEL.WEIGHTS: b.pth}}
      SEED: [0, 1]
"""


def test_an_entry_of_a_list_stands_for_all_runs_whose_labels_agree(tmp_path):
    runs = read(tmp_path, CHOICE)
    candidates, detectors = runs[:4], runs[4:]
    for run in detectors:
        own = [c.folder for c in candidates if c.labels["weights"] == run.labels["weights"]]
        assert run.needs == tuple(own) and len(own) == 2
        words = run.lines(0)[0]
        place = words.index("--choose-lr") + 1
        assert words[place : place + 2] == [folder.as_posix() for folder in own]
        assert words[place + 2].startswith("-")
    assert len({run.id for run in runs}) == len(runs)
    single = CHOICE.replace('["{learning-rate}"]', '"{learning-rate}"')
    with pytest.raises(UserError, match=r"standard, 0' matches 2 .*as a list, \[.{learning-rate}"):
        read(tmp_path, single)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--set", "trials"], "is not OPTION=VALUE"),
        (["--set", "=1"], "is not OPTION=VALUE"),
        (["--jobs", "0"], "'0' is not a whole number of at least 1"),
        (["--set", "nothing=1"], "--set nothing: no command of"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        study.main(["table", str(write(tmp_path / "s.yaml", FILE)), *words])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def result(run, metrics, **more):
    run.folder.mkdir(parents=True, exist_ok=True)
    run.result.write_text(json.dumps({"metrics": metrics} | more))


def test_the_table_is_over_seeds(tmp_path, request):
    config = str(request.config.rootpath / "configs" / "digits_mask_rcnn_robust.yaml")
    contents = {
        "output": str(tmp_path / "out"),
        "command": "train",
        "common": {"config": config, "SEED": "{seed}", "MODEL.WEIGHTS": "{weights}"},
        "axes": {"weights": ["a|b", "c"], "seed": [0, 1]},
    }
    runs = read(tmp_path, contents)
    for run, (box, mask) in zip(runs, [(40.0, 36.0), (41.0, None)], strict=False):
        result(run, {"val": {"bbox": {"AP": box}, "segm": {"AP": mask}}})
    assert table(runs).splitlines() == [
        "| weights | box AP | mask AP | mIoU | runs |",
        "|---|---|---|---|---|",
        "| a\\|b | 40.50 ± 0.71 | 36.00 |  | 2 |",
        "| c |  |  |  | missing |",
    ]


def test_plan_judges_by_what_has_finished(tmp_path, monkeypatch):
    allow(monkeypatch)
    runs = read_study(toy(tmp_path, 4))
    assert "4 unfinished runs without an estimate: no similar run has finished" in plan(runs)
    result(runs[0], {"value": 1}, seconds=7200.0)
    text = plan(runs)
    assert "toy: 4 runs, 1 finished" in text and "3 unfinished runs, estimated from similar" in text
    assert "6.0 hours in sequence, 0.0 GPU hours" in text
    for run in runs:
        result(run, {"value": 1}, seconds=1.0)
    assert plan(runs).endswith("All runs have finished.")


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--jobs", "2"], "10.0 hours in sequence, 6.0 hours with 2 runs at the same time"),
        (["--jobs", "9"], "10.0 hours in sequence, 2.0 hours with 5 runs at the same time"),
        ([], "10.0 hours in sequence, 0.0 GPU hours"),
    ],
)
def test_plan_of_several_runs_at_the_same_time(tmp_path, monkeypatch, capsys, words, expected):
    allow(monkeypatch)
    file = toy(tmp_path, 6)
    result(read_study(file)[0], {"value": 1}, seconds=7200.0)
    study.main(["plan", str(file), *words])
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    "command, gpus",
    [("pretrain", 1), ("transfer", 1), ("robustness_eval", 1), ("train", 1), ("convert", 0)],
)
def test_networks_get_a_gpu_by_default(command, gpus):
    assert COMMANDS[command].gpus == gpus


def test_finished_runs_that_no_longer_match_are_reported(tmp_path, monkeypatch):
    allow(monkeypatch)
    for run in read_study(toy(tmp_path, 2)):
        result(run, {"value": 1})
    assert "do not match" not in status(read_study(toy(tmp_path, 2)))
    changed = read_study(toy(tmp_path, 2, kind="other"))
    line = f"2 finished runs in {tmp_path}/out/toy do not match this study"
    assert line in status(changed) and line in plan(changed)


def test_real_runs_of_two_parts(tmp_path, capfd):
    weights = write_network(tmp_path / "w.pt", "shufflenet_v2_x1_0")
    contents = {
        "output": str(tmp_path / "out"),
        "common": {
            "dataset": "digits",
            "limit": 40,
            "test_limit": 30,
            "probe": "knn",
            "weights": str(weights),
            "neighbors": "{k}",
        },
        "axes": {"k": [1, 3]},
    }
    file = write(tmp_path / "s.yaml", contents)
    study.main(["run", str(file)])
    out, _ = capfd.readouterr()
    rows = re.findall(r"^\| (\d) \| (\d+\.\d\d) \|  \| 1 \|$", out, re.M)
    assert [name for name, _ in rows] == ["1", "3"] and "[2/2] transfer, 3: finished in" in out
    study.main(["run", str(file)])
    assert "finished in" not in capfd.readouterr().out  # nothing was left to do
