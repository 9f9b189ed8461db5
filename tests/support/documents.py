"""Commands, Python and names in README.md and docs/*.md; and the programs that they are of.

A fenced block without a language, or of `bash`, is commands; every other block says what it is.
"""

import argparse
import contextlib
import functools
import importlib
import itertools
import json
import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from robust_backbones.__main__ import COMMANDS
from robust_backbones.core.extras import EXTRAS
from tests.support import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
SHELL = ("", "bash")


@dataclass(frozen=True)
class Block:
    """A fenced block: the page's name, its first line's number there, its language and text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a document.

    Attributes:
        where: page and line.
        words: the program, and what follows it.
    """

    where: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where} {' '.join(self.words)}"


def blocks(page: Path) -> list[Block]:
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    return [
        Block(name, text[: found.start(2)].count("\n") + 1, found[1], found[2])
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    ]


def prose(page: Path) -> str:
    """A page without its fenced blocks, or what a notebook has of text."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
        return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def commands(block: Block) -> list[Command]:
    """The commands of a shell block. Those in a loop come once for each of its values."""
    found, loops = [], []
    text = re.sub(r"\\\n\s*", " ", block.text)
    text = re.sub(r"\$\([^)]*\)", "substituted", text)
    for number, line in enumerate(text.splitlines()):
        for words in _simple(line):
            if words[0] == "for":
                loops.append((words[1], words[3:]))
            elif words[0] == "done":
                loops.pop()
            elif words := [word for word in words if word != "do"]:
                found += _expanded(f"{block.page}:{block.line + number}", words, loops)
    assert not loops, f"{block}: a loop without done"
    return found


def _simple(line: str) -> list[list[str]]:
    """The simple commands of a line, assignments before them left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts = itertools.groupby(lexer, lambda word: word in ("&&", "||", ";", "|", "&"))
    lists = [list(words) for between, words in parts if not between]
    kept = (list(itertools.dropwhile(re.compile(r"\w+=").match, words)) for words in lists)
    return [words for words in kept if words]


def _expanded(where: str, words: list[str], loops: list) -> list[Command]:
    found = []
    for values in itertools.product(*(values for _, values in loops)):
        table = dict(zip((name for name, _ in loops), values, strict=True))
        found.append(Command(where, tuple(_filled(word, table) for word in words)))
    return found


def _filled(word: str, table: dict[str, str]) -> str:
    """A word with the values of the variables that are known."""
    return re.sub(r"\$\{?(\w+)\}?", lambda m: table.get(m[1], m[0]), word)


class _Parsed(Exception):
    """Carries what a command line was understood as, out of a `main` that would go on."""


def program(command: Command) -> tuple[str, list[str]] | None:
    """A module's name or a script's path, and its arguments; None for programs that are not ours.

    Raises:
        AssertionError: a Python program that is not there.
    """
    name, *rest = command.words
    if name == "srun":  # its own options stand before the program
        starts = [rest.index(word) for word in ("python", "torchrun", "bash") if word in rest]
        if not starts:
            return None
        name, *rest = rest[min(starts) :]
    if name == "bash":  # the shell of a node, which knows the node's number
        name, *rest = shlex.split(rest[-1].replace("$SLURM_NODEID", "0"))
    if name == "robust-backbones":
        name, rest = "python", ["-m", "robust_backbones", *rest]
    if name.endswith(".py"):
        name, rest = "python", [name, *rest]
    if rest[:2] == ["-m", "classification.training.torchrun"]:
        name = "torchrun"
        rest = rest[2:]
    if name == "torchrun":  # its own options stand before -m
        rest = rest[rest.index("-m") :]
    elif name != "python":
        return None
    if rest[:2] == ["-m", "robust_backbones"] and rest[2:]:
        return COMMANDS[rest[2]][0], rest[3:]
    if rest[0] == "-m":
        ours = rest[1].split(".")[0] in ("robust_backbones", "classification", "tests")
        return (rest[1], rest[2:]) if ours else None
    assert (ROOT / rest[0]).is_file(), f"{command}: there is no {rest[0]}"
    return rest[0], rest[1:]


@functools.cache
def functions(name: str) -> dict:
    """What a module or script defines."""
    if name.endswith(".py"):
        path = ROOT / name
        with mock.patch.object(sys, "path", [str(path.parent), *sys.path]):  # as Python has it
            defined = runpy.run_path(str(path), run_name="documented")
        main = defined["main"]  # scripts in tools/ import it from a package
        return vars(sys.modules[main.__module__]) if path.parent.name == "tools" else defined
    package = ROOT.joinpath(*name.split("."), "__main__.py").is_file()
    entry = f"{name}.__main__" if package else name
    return vars(importlib.import_module(entry))


def parse(name: str, arguments: list[str]) -> argparse.Namespace:
    """Arguments as the program itself understands them; nothing is run.

    Raises:
        SystemExit: it refuses them.
    """
    defined = functions(name)
    with mock.patch.object(sys, "argv", [name, *arguments]):
        if "parse" in defined:
            return defined["parse"]()
        with _stopping():
            try:
                defined["main"]()
            except _Parsed as found:
                return found.args[0]
    raise AssertionError(f"{name} does not parse its arguments first")


@contextlib.contextmanager
def _stopping():
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        raise _Parsed(original(self, args, namespace))

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args):
        yield


def programs() -> list[str]:
    """All that can be run: modules with `python -m`, scripts by path."""
    found = []
    scripts = ("tools", "benchmarks", "benchmarks/photographs", "benchmarks/what_transfers")
    for folder in ("robust_backbones", "classification", *scripts):
        for path in sorted((ROOT / folder).glob("[!_]*.py")):
            if '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
                module = folder in ("robust_backbones", "classification")
                found.append(f"{folder}.{path.stem}" if module else f"{folder}/{path.name}")
    packages = sorted((ROOT / "classification").glob("*/__main__.py"))
    found += [f"classification.{path.parent.name}" for path in packages]
    found += [module for module, _ in COMMANDS.values()]
    return [*found, "tests.fuzz.fuzzer", "tests.faults.kills"]


def every_block(*languages: str) -> list[Block]:
    """Of all pages, in these languages."""
    return [b for page in PAGES for b in blocks(page) if b.language in languages]


def every_command() -> list[Command]:
    return [command for block in every_block(*SHELL) for command in commands(block)]


def _make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for word in words:
        assert "=" in word or word in targets, f"make {word}: no such target"


def _pip(words: list[str]) -> None:
    """Extras are those of the clone; the project is on no index."""
    text = " ".join(words)
    assert "robust-backbones[" not in text, "robust-backbones is on no index"
    for extra in re.findall(r"\.\[([\w,]+)\]", text):
        for name in extra.split(","):
            assert name in {*EXTRAS, "dev", "docs"}, f"setup.py: no extra {name}"


def _pytest(words: list[str]) -> None:
    for word in words:
        assert word.startswith("-") or (ROOT / word).exists(), f"pytest: there is no {word}"


def check_other(words) -> None:
    """What can be said of a program that is not ours: targets of make, extras of pip, tests.

    Raises:
        AssertionError: there is none of that name.
    """
    {"make": _make, "pip": _pip, "uv": _pip, "pytest": _pytest}.get(words[0], lambda rest: None)(
        words[1:]
    )
