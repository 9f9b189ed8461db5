"""The help of every command: examples, defaults, and one name for each kind of value."""

import importlib
import re
import shlex

import pytest

from robust_backbones.__main__ import COMMANDS
from robust_backbones.core.cli import Parser, by_kind

SUBCOMMANDS = [
    f"{command} {name}"
    for command, names in {
        "zoo": ("list", "show", "fetch", "verify", "table"),
        "datasets": ("list", "check", "fetch"),
    }.items()
    for name in names
]
ALL = [*COMMANDS, *SUBCOMMANDS]
METAVARS = {"N", "X", "EPS", "SECONDS", "POINTS", "NAME", "FILE", "DIR", "PATH", "URL", "DATA"}
METAVARS |= {"WEIGHTS", "OPTION=VALUE", "HOST:PORT"}
OWN = {"--choose-lr": "RUN", "--compare": "[CONFIG=]WEIGHTS", "--rows": "ROW"}
OWN |= {"--attack": "CONSTRAINT:EPS", "--also-test": "NAME=DIR"}
PAIRS = {("MIN", "MAX"), ("R", "G", "B")}


def parser_of(command: str, monkeypatch) -> Parser:
    """Return the parser of a command, which its help uses."""
    found = []

    def keep(self, file=None):
        found.append(self)

    monkeypatch.setattr(Parser, "print_help", keep)
    name, *rest = command.split()
    monkeypatch.setattr("sys.argv", [f"robust-backbones {name}"])
    with pytest.raises(SystemExit):
        importlib.import_module(COMMANDS[name][0]).main([*rest, "--help"])
    return found[0]


@pytest.mark.parametrize("command", ALL)
def test_the_help_begins_with_examples_that_the_command_accepts(command, monkeypatch):
    parser = parser_of(command, monkeypatch)
    text = parser.description.replace("\\\n", " ")
    title, examples = text.split("\n\n")[:2]
    assert re.fullmatch(r"[A-Z].*[.]", title), title
    heading, *lines = examples.strip().split("\n")
    assert heading in ("Examples:", "Example:") and lines
    own = [line for line in map(shlex.split, lines) if line[:1] == ["robust-backbones"]]
    assert own and {line[1] for line in own} == {command.split()[0]}


@pytest.mark.parametrize("command", ALL)
def test_every_option_is_explained_and_has_a_placeholder_of_its_kind(command, monkeypatch):
    parser = parser_of(command, monkeypatch)
    for action in parser._actions:
        if not action.option_strings or action.nargs == 0:
            continue
        assert action.help, action.option_strings
        shown = parser._get_formatter()._metavar_formatter(
            action, parser._get_formatter()._get_default_metavar_for_optional(action)
        )(1)
        name = action.option_strings[0]
        if isinstance(action.metavar, tuple):
            assert action.metavar in PAIRS
        elif not action.choices:
            assert shown[0] in METAVARS | {OWN.get(name)}, (name, shown)


@pytest.mark.parametrize("command", ALL)
def test_defaults_are_values(command, monkeypatch):
    text = " ".join(parser_of(command, monkeypatch).format_help().split())
    assert not re.findall(r"default: the (recipe|dataset|method|protocol)'s", text)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"a": 1, "b": 1}, "1"),
        ({"a": 0.5, "b": True}, "0.5 (a), yes (b)"),
        ({"a": 1, "b": 2, "c": 1}, "1 (a, c), 2 (b)"),
        ({"a": 2, "b": 1, "c": 1, "d": 1, "e": 1}, "2 (a), else 1"),
    ],
)
def test_defaults_by_kind(values, text):
    assert by_kind(values) == text
