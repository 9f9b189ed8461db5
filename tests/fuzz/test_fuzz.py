"""Fuzz every reader briefly, and test that the fuzzer detects faults."""

import os
import subprocess
import sys

import pytest

import robust_backbones.detection  # noqa: F401  (before Detectron2)
from robust_backbones.core.errors import UserError
from tests.fuzz import fuzzer
from tests.fuzz.cases import Seed, Target
from tests.fuzz.targets import TARGETS
from tests.support import ROOT

CASES = 100


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Target -> accepted, refused, findings. In a process of its own: its workers are forked, and
    the threads of a process that has scored something do not come along."""
    folder = tmp_path_factory.mktemp("fuzz")
    command = [sys.executable, "-m", "tests.fuzz.fuzzer", "--cases", str(CASES)]
    said = subprocess.run(
        [*command, "--output", str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    cells = [line.strip("| ").split(" | ") for line in said.stdout.splitlines()[2:]]
    found = "\n".join(path.read_text() for path in sorted(folder.glob("*.txt")))
    return {name: [*map(int, rest[1:4]), found] for name, *rest in cells if len(rest) == 6}


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_read_or_refused(rows, name):
    accepted, refused, findings, told = rows[name]
    assert not findings, told
    assert accepted + refused == CASES and refused


def _act(what):
    """A reader that follows instructions in the file."""
    return Target(lambda folder: [Seed("a", b"x" * 50)], lambda folder, path: what(folder))


def _refuse(text):
    def read(folder):
        raise UserError(text.format(folder=folder))

    return read


def _hold(folder):
    return bytearray(3 * fuzzer.MEMORY)


def _hang(folder):
    while True:
        pass


FOUND = {
    "another exception": (lambda folder: {}["a"], "KeyError"),
    "a program": (lambda folder: os.system("true"), "Forbidden"),
    "a file elsewhere": (lambda folder: open("/etc/fuzz-canary", "w"), "Forbidden"),
    "memory": (_hold, "MemoryError"),
    "a crash": (lambda folder: os.abort(), "Fatal Python error"),
    "time": (_hang, "Timeout"),
    "no name": (_refuse("it is wrong"), "a message that does not name the file"),
    "a traceback": (_refuse("{folder} Traceback (most recent call last)"), "a traceback"),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_fuzzer_notices(tmp_path, monkeypatch, case):
    monkeypatch.setattr(fuzzer, "SECONDS", 1.0)
    act, kind = FOUND[case]
    told = fuzzer.run("x", _act(act), range(2), 0, tmp_path)
    (cause,) = told["found"]
    assert cause.startswith(kind) and told["found"][cause] == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir())[:2] == ["x-0-a", "x-0.txt"]


def test_a_case_is_a_function_of_its_number(tmp_path):
    target = _act(lambda folder: None)
    seeds = target.seeds(tmp_path)
    inputs = [fuzzer.input_of(target, seeds, 0, "x", case) for case in (1, 2, 1)]
    assert inputs[0] == inputs[2] != inputs[1]
    assert fuzzer.run("x", target, range(5), 0, tmp_path)["outcomes"] == {"accepted": 5}
