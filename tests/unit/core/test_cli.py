"""Test help and errors of command lines."""

import importlib
import subprocess
import sys

import pytest

from robust_backbones.__main__ import COMMANDS
from robust_backbones.core.cli import Parser, count, whole
from tests.support import ROOT


def parser(extra: int = 0) -> Parser:
    made = Parser(
        "tool",
        {"--epochs": "Set steps instead"},
        description="Trains a network.\nA second line stays one.",
    )
    made.add_argument(
        "--arch", choices=tuple(f"net{i}" for i in range(9)), default="net0", help="network"
    )
    made.add_argument("--norm", choices=("l2", "linf"), required=True, help="norm")
    made.add_argument("--steps", type=count, nargs="+", default=[3, 5], help="a count")
    made.add_argument("--seed", type=whole, default=0, help="a number")
    made.add_argument("--fast", action="store_true", help="be quick")
    made.add_argument("--data", help="a path")
    for i in range(extra):
        made.add_argument(f"--other{i}")
    return made


ERRORS = [
    ([], "error: the following arguments are required: --norm (see tool --help)"),
    (["--nrom", "l2"], "required: --norm. --nrom is not an option. Did you mean --norm? (see"),
    (["--seed", "1"], "error: the following arguments are required: --norm (see"),
    (["--norm", "l1"], "error: argument --norm: invalid choice: 'l1'"),
    (["--norm", "l2", "--sede", "1"], "error: --sede is not an option. Did you mean --seed? (see"),
    (["--norm", "l2", "--zzz"], "error: --zzz is not an option (see"),
    (["--norm", "l2", "--form"], "error: --form is not an option. Did you mean --norm?"),
    (["--norm", "l2", "--st", "3"], "error: --st is not an option. Did you mean --steps?"),
    (["--norm", "l2", "word"], "error: word is not expected here (see"),
    (["--norm", "l2", "--epochs=3"], "error: --epochs is not an option. Set steps instead (see"),
    (["--norm", "l2", "--fast=3"], "error: --fast takes no value, but '3' is given (see"),
    (["--norm", "l2", "--steps", "0"], "'0' is not a whole number of at least 1"),
    (["--norm", "l2", "--seed", "-1"], "'-1' is not a whole number of at least 0"),
    (["--norm", "l2", "--seed", "1.5"], "'1.5' is not a whole number of at least 0"),
]


@pytest.mark.parametrize("argv, message", ERRORS)
def test_an_error_is_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(argv)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and message in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "refused"),
    [
        (["--norm", "l2"], None),
        (["--norm", "linf", "--steps", "5"], None),
        (["--norm", "l2", "--steps", "5"], "--steps"),
        (["--norm", "l2", "--steps", "3", "5"], "--steps"),  # equal to the default
        (["--norm", "l2", "--fast"], "--fast"),
    ],
)
def test_options_without_effect_are_refused(argv, refused, capsys):
    made = parser()
    made.restrict("--steps", "--fast", to="--norm linf", when=lambda args: args.norm == "linf")
    if refused is None:
        assert made.parse_args(argv) == parser().parse_args(argv)
        return
    with pytest.raises(SystemExit):
        made.parse_args(argv)
    fix = f"Remove {refused}, or use --norm linf"
    assert f"error: {refused} has no effect without --norm linf. {fix}" in capsys.readouterr().err
    assert made.parse_args(["--norm", "l2"]).steps == [3, 5]  # the defaults are restored


IGNORED = [
    ("pretrain", "--method pgd --beta 3", "--beta", "--method trades"),
    ("pretrain", "--method pgd --beta 6", "--beta", "--method trades"),
    ("pretrain", "--dataset digits --data DIR", "--data", "a --dataset that is read from files"),
    ("pretrain", "--method standard --use-best", "--use-best", "an adversarial --method"),
    ("transfer", "--weights w --dataset digits --data DIR", "--data", "a --dataset"),
    (
        "transfer",
        "--weights w --dataset cars --selection test --held-out 0.3",
        "--held-out",
        "--se",
    ),
    (
        "transfer",
        "--weights w --dataset cars --protocol paper --held-out 0.2",
        "--held-out",
        "--se",
    ),
    ("robustness-eval", "--weights w --dataset faces --data DIR", "--data", "a --dataset"),
    ("interpret", "--weights w --mode visualize --data DIR", "--data", "--start image"),
    ("study", "table s.yaml --num-gpus 0", "--num-gpus", "the action run, retry or plan"),
    ("study", "run s.yaml --executor ray --jobs 2", "--jobs", "--executor local"),
    ("study", "run s.yaml --address auto", "--address", "--executor ray"),
    ("study", "status s.yaml --attempts 3", "--attempts", "the action run"),
    ("train", "--config c.yaml --restart-schedule", "--restart-schedule", "--resume"),
]


@pytest.mark.parametrize(("command", "words", "option", "needed"), IGNORED)
def test_commands_refuse_options_without_effect(command, words, option, needed, capsys):
    output = ["--output", "o"] if command not in ("study", "train") else []
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(COMMANDS[command][0]).main([*words.split(), *output])
    assert stop.value.code == 2
    assert f"error: {option} has no effect without {needed}" in capsys.readouterr().err


def test_help_shows_defaults_and_choices():
    text = parser().format_help()
    assert "Trains a network.\nA second line stays one." in text
    words = " ".join(text.split())
    assert "--arch NAME network (choose from net0, net1," in words and "(default: net0)" in words
    assert "--norm {l2,linf} norm (required)" in words
    assert "a count (default: 3 5)" in words and "a number (default: 0)" in words
    assert "be quick (default: no)" in words and "a path (default: none)" in words
    assert text.startswith("usage: tool [-h] [--arch NAME] --norm {l2,linf}")


def test_usage_of_many_options_shows_the_required_ones():
    assert parser(extra=9).format_usage() == "usage: tool --norm NORM [options]\n"


def test_the_package_lists_its_commands():
    said = subprocess.run([sys.executable, "-m", "classification"], capture_output=True, text=True)
    listed = {line.split()[3] for line in said.stdout.splitlines() if line.startswith("python")}
    packages = {f.parent.name for f in (ROOT / "classification").glob("*/__main__.py")}
    assert listed == {name.replace("_", "-") for name in packages} | {"make-shards"}


@pytest.mark.parametrize(
    "words, message",
    [
        (["pretrain", "--output", "x", "--steps", "0"], "argument --steps: '0' is not"),
        (["pretrian"], "command 'pretrian' is unknown. Did you mean pretrain?"),
    ],
)
def test_the_package_runs_its_commands(words, message):
    call = [sys.executable, "-m", "classification", *words]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
