"""The command on a few digits: output, resuming after a kill, finished runs and user errors."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from classification.datasets.shard_writer import write_shards
from classification.robustness_eval import __main__ as robustness_eval
from classification.robustness_eval import execute, report
from classification.robustness_eval.checks import FAULTS
from classification.robustness_eval.options import EPS
from classification.robustness_eval.plan import Attack, AttackResult, gray_radius
from classification.training.evaluate import evaluate
from robust_backbones import attacks
from tests.support.networks import random_network
from tests.support.small_data import write_tree
from tests.support.small_models import digits, trained

FEW = [
    "--dataset",
    "digits",
    "--images",
    "10",
    "--batch-size",
    "4",
    "--steps",
    "2",
    "--eps",
    "0.5",
    "1",
    "--device",
    "cpu",
    "--seed",
    "3",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save(random_network("shufflenet_v2_x1_0", 10).state_dict(), path)
    return path


def command(weights, output, *options):
    return ["--weights", str(weights), *FEW, "--output", str(output), *options]


def run(weights, output, *options):
    robustness_eval.main(command(weights, output, *options))


@pytest.fixture(scope="module")
def done(weights, tmp_path_factory):
    """The folder of one finished run; not to be changed."""
    output = tmp_path_factory.mktemp("eval") / "run"
    run(weights, output)
    return output


def read(output):
    return json.loads((output / "result.json").read_text())


def numbers(output):
    rows = read(output)["metrics"]["attacks"]
    return {name: row | {"seconds": 0} for name, row in rows.items()}


def test_the_result_is_complete(done, weights):
    from robust_backbones.core.files import sha256

    result = read(done)
    assert result["kind"] == "robustness" and result["weights_sha256"] == sha256(weights)
    assert result["data"]["test"]["images"] == 10 and result["data"]["test"]["fingerprint"]
    assert isinstance(result["warnings"], list)
    rows = result["metrics"]["attacks"]
    assert list(rows) == [
        "clean",
        "pgd-2 eps 0.5",
        "pgd-2 eps 1",
        "unbounded",
        "worst case eps 0.5",
        "worst case eps 1",
    ]
    assert rows["clean"]["accuracy"] == result["metrics"]["clean_top1"]
    for name, row in rows.items():
        low, high = row["interval"]
        assert 0 <= low <= row["accuracy"] <= high <= 100
        assert row["images"] == (4 if name == "unbounded" else 10)
    assert 0 < rows["pgd-2 eps 0.5"]["max_norm"] <= 0.5 + 1e-5
    images = [json.loads(line) for line in (done / "per_image.jsonl").read_text().splitlines()]
    assert len({image["index"] for image in images}) == 10
    for name in ("clean", "pgd-2 eps 0.5", "pgd-2 eps 1"):
        assert sum(image["right"][name] for image in images) == rows[name]["right"]
    assert (done / "curve.png").stat().st_size > 5000 and not list(done.glob("state.*"))


def test_a_finished_run_is_skipped_and_another_one_refused(done, weights, capsys):
    before = (done / "result.json").read_bytes()
    run(weights, done)
    assert "finished. Nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        run(weights, done, "--restarts", "2")
    assert stop.value.code == 2 and "restarts is 1 there, 2 here" in capsys.readouterr().err
    assert (done / "result.json").read_bytes() == before


def test_killed_and_resumed_it_gives_the_same(done, weights, tmp_path, capsys):
    output = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "classification.robustness_eval", *command(weights, output)],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    state, deadline = output / "state.0.jsonl", time.monotonic() + 120
    while not state.exists() or state.read_bytes().count(b"\n") < 4:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (output / "result.json").exists()
    with open(state, "ab") as file:
        file.write(b'{"attack": "cle')  # as if it had died while it wrote
    with pytest.raises(SystemExit):
        run(weights, output, "--batch-size", "5")
    assert "batch_size is 4 there, 5 here. Use the same settings" in capsys.readouterr().err
    run(weights, output)
    assert re.search(r"resuming after \d of 3 batches", capsys.readouterr().out)
    assert numbers(output) == numbers(done)
    assert (output / "per_image.jsonl").read_text() == (done / "per_image.jsonl").read_text()


def test_eps_0_measures_clean_accuracy_on_balanced_images(done, weights, tmp_path, capsys):
    output = tmp_path / "clean"
    words = command(weights, output, "--eps", "0")
    start = words.index("--steps")
    del words[start : start + 2]
    robustness_eval.main(words)
    rows = read(output)["metrics"]["attacks"]
    assert list(rows) == ["clean"] and not (output / "curve.png").exists()
    assert rows["clean"] | {"seconds": 0} == numbers(done)["clean"]
    labels = [json.loads(line)["label"] for line in open(output / "per_image.jsonl")]
    assert sorted(labels) == list(range(10))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--constraint", "linf", "--eps", "4"], r"--eps 4: .*Did you mean 4/255\?"),
        (["--eps", "-1"], "'-1' is not a finite number of at least 0"),
        (["--eps", "0"], "--steps has no effect without an --eps above 0. Remove --steps"),
        (["--images", "361"], "--images 361: the test split has only 360 images"),
        (["--images", "0"], "'0' is not a whole number of at least 1"),
        (["--steps", "1.5"], "'1.5' is not a whole number"),
        (["--constraint", "l1"], "invalid choice: 'l1'.*l2.*linf"),
        (["--dataset", "mnist"], "dataset 'mnist' is unknown. For your own images, choose folder"),
        (["--weights", "nowhere.pt"], "file 'nowhere.pt' does not exist"),
        (["--weights", "robust://resnet50_l2_eps77"], "resnet50_l2_eps77"),
        (
            ["--device", "abacus"],
            "--device abacus: torch cannot use this device. Choose from .*cpu",
        ),
    ],
)
def test_user_mistakes(weights, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        run(weights, tmp_path, *options)
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, last), last
    assert not (tmp_path / "result.json").exists()


def test_a_model_of_other_classes(tmp_path, capsys):
    torch.save(random_network("shufflenet_v2_x1_0", 7).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(SystemExit):
        run(tmp_path / "seven.pth", tmp_path / "out")
    assert "the model has 7 classes, but digits has 10" in capsys.readouterr().err


def test_without_the_package(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(SystemExit) as stop:
        run(weights, tmp_path, "--autoattack")
    assert stop.value.code == 2
    assert "Run: pip install pyautoattack" in capsys.readouterr().err


def test_help_explains_every_option_and_comes_at_once():
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "classification.robustness_eval", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.perf_counter() - start < 1.5
    options = re.split(r"\n  --", done.stdout)[1:]
    assert len(options) >= 12 and all(re.search("default|required", o) for o in options)


def test_the_parser_offers_what_the_attacks_have():
    assert set(EPS) == set(attacks.CONSTRAINTS)


@pytest.mark.parametrize("constraint, eps", [("l2", 0.5), ("linf", 8 / 255)])
@pytest.mark.parametrize("restarts", [1, 2])
def test_a_row_is_what_evaluate_gives(constraint, eps, restarts):
    model, (x, y) = trained(), digits(50)
    attack = Attack("pgd", constraint, eps, 5, restarts)
    plan, records = [Attack("clean", constraint, 0.0), attack], []
    execute.execute_plan(
        model, [(x, y)], plan, seed=1, classes=10, records=records, add=records.append
    )
    found = report.summarize(execute.collect_results(plan, records))
    pgd = execute.adversary(attack, 1, 0, 10, torch.device("cpu"))
    assert found[attack.group]["accuracy"] == evaluate(model, [(x, y)], pgd).top1
    assert found["clean"]["accuracy"] == evaluate(model, [(x, y)]).top1


def test_the_worst_case_counts_what_survives_everything():
    def outcome(attack, right):
        counts = dict.fromkeys(FAULTS, 0)
        return AttackResult(attack, right, [0.0] * len(right), 0.0, counts, [])

    outcomes = [
        outcome(Attack("clean", "l2", 0.0), [True, True, True, False]),
        outcome(Attack("pgd", "l2", 1.0, 5), [True, True, False, True]),
        outcome(Attack("pgd", "l2", 1.0, 9), [True, False, True, True]),
        outcome(Attack("pgd", "l2", 2.0, 9), [True, True, True, True]),
    ]
    found = report.summarize(outcomes)
    assert found["worst case eps 1"]["right"] == 1 and found["worst case eps 2"]["right"] == 3


@pytest.mark.parametrize(
    "attack, name",
    [
        (Attack("pgd", "linf", 4 / 255, 20), "pgd-20 eps 4/255"),
        (Attack("pgd", "linf", 0.01, 20), "pgd-20 eps 2.55/255"),
        (Attack("pgd", "l2", 0.5, 20, 5), "pgd-20x5 eps 0.5"),
        (Attack("autoattack", "l2", 0.5, None, part="fab-t"), "autoattack eps 0.5 fab-t"),
        (Attack("clean", "l2", 0.0), "clean"),
    ],
)
def test_names(attack, name):
    assert attack.name == name


@pytest.mark.parametrize("constraint", ["l2", "linf"])
def test_gray_is_within_reach(constraint):
    eps = gray_radius(constraint, (3, 4, 4))
    corner = torch.zeros(1, 48)
    assert (corner - 0.5).norm(p={"l2": 2, "linf": float("inf")}[constraint]).item() <= eps + 1e-6


def test_shards_are_refused_before_anything_is_written(weights, tmp_path, capsys):
    tree = write_tree(tmp_path / "tree", {"train": 2, "test": 2})
    shards = write_shards(tree, tmp_path / "shards", 3)
    with pytest.raises(SystemExit) as stop:
        robustness_eval.main(
            [
                "--weights",
                str(weights),
                "--dataset",
                "folder",
                "--data",
                str(shards),
                "--output",
                str(tmp_path / "run"),
            ]
        )
    assert stop.value.code == 2 and not (tmp_path / "run").exists()
    assert "these are shards, whose images cannot be read by index" in capsys.readouterr().err
