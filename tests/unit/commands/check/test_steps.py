"""Tables of steps: failures stay in their step, and the block for an issue has no private names."""

import json
import sys
import types
from pathlib import Path

import pytest

from robust_backbones.commands.check import command, run, steps
from robust_backbones.commands.check.steps import CheckSettings, Outcome, SkippedStep, Step, execute
from robust_backbones.core.errors import UserError

SETTINGS = CheckSettings("none", None, None, Path("."))


def _raise(error):
    def function(settings, *values):
        raise error

    return function


FUNCTIONS = {
    "one": lambda settings: Outcome("one", 1),
    "two": lambda settings, one: Outcome(f"{one} + 1", one + 1, {"two": 2}),
    "faulty": lambda settings: Outcome("wrong", 5, failed=True),
    "user": _raise(UserError("no disk. Buy one.")),
    "module": _raise(ModuleNotFoundError("No module named 'x'", name="x")),
    "bug": _raise(TypeError("a\nb")),
    "skipped": _raise(SkippedStep("no folder")),
}


@pytest.fixture(autouse=True)
def module(monkeypatch):
    """A module of steps."""
    name = f"{steps.__package__}.made_up"
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**FUNCTIONS))


def table(*names, **needs):
    return tuple(Step(name, f"made_up:{name}", needs.get(name, ())) for name in names)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (table("one", "two", two=("one",)), [("ok", "one"), ("ok", "1 + 1")]),
        (table("faulty", "two", two=("faulty",)), [("FAILED", "wrong"), ("ok", "5 + 1")]),
        (
            table("user", "two", "one", two=("user",)),
            [("FAILED", "no disk. Buy one."), ("skipped", "needs the step user"), ("ok", "one")],
        ),
        (table("module"), [("FAILED", "module x is not installed. Install what the step")]),
        (table("bug"), [("FAILED", "TypeError: a b (test_steps.py, line")]),
        (table("skipped", "two", two=("skipped",)), [("skipped", "no folder"), ("skipped", "nee")]),
    ],
)
def test_each_step_ends_for_itself(rows, expected):
    found = list(execute(rows, SETTINGS))
    assert [r.state for r in found] == [state for state, _ in expected]
    for record, (_, text) in zip(found, expected, strict=True):
        assert record.text.startswith(text)


def test_steps_of_detectors_are_skipped_without_detectron2(monkeypatch):
    monkeypatch.setattr(steps.importlib.util, "find_spec", lambda name: None)
    rows = (Step("one", "made_up:one", detectron2=True), *table("two", two=("one",)))
    found = list(execute(rows, SETTINGS))
    assert [record.state for record in found] == ["skipped", "skipped"]
    assert found[0].text.startswith("needs Detectron2. Run: robust-backbones install-detectron2")


def test_a_missing_module_fails_its_steps_only(monkeypatch):
    monkeypatch.setitem(sys.modules, f"{steps.__package__}.gone", None)
    rows = (Step("gone", "gone:step"), *table("one"))
    assert [record.state for record in execute(rows, SETTINGS)] == ["FAILED", "ok"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot read /home/ada/my data/net.pth: gone", "cannot read ~/net.pth: gone"),
        ("~/x/net.pth and /mnt/ada/val", ".../net.pth and .../val"),
        ("https://me:pw@host.org/a/b.pth?token=1 (x)", "https://host.org/a/b.pth?... (x)"),
        ("hf://OWNER/REPO/f.pth, 4/255, Did you mean 4/255?", None),
        ("files of ada, not of adam", "files of USER, not of adam"),
    ],
)
def test_private_names_are_removed(monkeypatch, text, expected):
    monkeypatch.setenv("HOME", "/home/ada/my data")
    monkeypatch.setattr(run.getpass, "getuser", lambda: "ada")
    assert run.anonymous(text) == (expected or text)


@pytest.mark.parametrize(("names", "status"), [(("one",), 0), (("one", "user", "bug"), 1)])
def test_exit_code_block_and_json(monkeypatch, tmp_path, capsys, names, status):
    monkeypatch.setattr(run, "INSTALLATION", table(*names))
    output = tmp_path / "check.json"
    assert command.main(["--output", str(output)]) == status
    shown = capsys.readouterr().out
    assert ("2 steps failed" in shown, "paste the following block" in shown) == (status > 0,) * 2
    [found] = json.loads(output.read_text())["tables"]
    assert [step["step"] for step in found["steps"]] == list(names)
    assert str(Path.home()) not in output.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--weights x", "--weights has no effect without --online"),
        ("--online --images 9", "--images has no effect without --imagenet"),
        ("--online --imagenet . --images -1", "'-1' is not a whole number of at least 0"),
        ("--online --imagenet nowhere", "--imagenet nowhere is not a folder"),
        ("--online --weights robust://resnet18_l2_eps77", "no published model is named"),
        ("--online --weights nowhere.pth", "no published model is named 'nowhere.pth'"),
        (
            "--online --weights vgg16_bn_l2_eps3",
            "is a vgg16_bn, which has no backbone for Detectron2",
        ),
        ("--output .", "--output . is a folder"),
        ("--rows parity", "--rows has no effect without --device"),
        ("--device cpu --rows none", "invalid choice: 'none'"),
    ],
)
def test_mistakes_are_reported_at_once(capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        command.main(options.split())
    assert stop.value.code == 2 and message in capsys.readouterr().err
