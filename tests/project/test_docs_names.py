"""Names in the documents are there: in Python, and what the text has in `code`."""

import ast
import contextlib
import functools
import importlib
import io
import re
import shlex

import pytest

from robust_backbones import zoo
from robust_backbones.core.errors import UserError
from tests.support import documents
from tests.support.documents import NOTEBOOKS, PAGES, ROOT


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("block", documents.every_block("python"), ids=str)
def test_names_in_python_are_there(block):
    """Imports, and attributes of what is imported."""
    tree, names = ast.parse(block.text), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = resolve(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = resolve(alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in names:
                assert hasattr(names[node.value.id], node.attr), ast.unparse(node)


def resolve(dotted: str):
    """A module, or what one defines.

    Raises:
        AssertionError: there is no such thing.
    """
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found = importlib.import_module(".".join(parts[:end]))
            for part in parts[end:]:
                assert hasattr(found, part), f"{dotted}: {found.__name__} has no {part}"
                found = getattr(found, part)
            return found
    raise AssertionError(f"there is no {dotted}")


@functools.cache
def helps() -> str:
    """All `--help` texts."""
    found = []
    for name in documents.programs():
        for first in ([], *([c] for c in SUBCOMMANDS.get(name, ()))):
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
                documents.parse(name, [*first, "--help"])
            found.append(said.getvalue())
    return "\n".join(found)


SUBCOMMANDS = {
    "robust_backbones.commands.zoo": ("list", "show", "fetch", "verify", "table"),
    "classification.datasets": ("list", "check", "fetch"),
}
# Options of other programs that the text names.
FOREIGN_OPTIONS = {
    "--nnodes",
    "--node-rank",
    "--rdzv-endpoint",
    "--standalone",
    "--signal",
    "--kill-on-bad-exit",
    "--shm-size",
    "--ipc",
    "--subset",
    "--no-deps",
    "--require-hashes",
    "--disable-pip",
}


@pytest.fixture(scope="module")
def keys():
    """The configuration with all keys."""
    from detectron2.config import get_cfg

    from robust_backbones.detection import add_robust_config

    cfg = get_cfg()
    add_robust_config(cfg)
    return cfg


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.name)
def test_names_in_the_text_are_there(page, keys):
    for code in re.findall(r"`([^`\n]+)`", documents.prose(page)):
        check_code(code, keys)


PACKAGES = "(?:robust_backbones|classification)"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
DOTTED = re.compile(rf"(?<![\w/.-])({PACKAGES}(?:\.\w+)+)(?!\w*/)")
FILE = re.compile(rf"({PACKAGES}|tools|tests|configs|benchmarks|docs)/[\w./]+")
KEY = re.compile(r"\b(?:MODEL|SOLVER|DATASETS|INPUT|TEST|DATALOADER)(?:\.[A-Z_0-9]+)+")
MODEL = re.compile(r"robust://(?!NAME)(\w[\w.]*)")


def check_code(code: str, keys) -> None:
    """Options, modules, files, keys, published models, targets and extras in `code`.

    Raises:
        AssertionError: one is not there.
    """
    for option in OPTION.findall(code):
        known = re.search(rf"{option}(?![\w-])", helps()) or option in FOREIGN_OPTIONS
        assert known, f"`{code}`: no program has {option}"
    for name in DOTTED.findall(code):
        if not name.endswith((".py", ".yaml", ".classifier")):
            resolve(name)
    if FILE.fullmatch(code):
        assert (ROOT / code).exists(), f"there is no {code}"
    for key in KEY.findall(code):
        node = keys
        for part in key.split("."):
            assert part in node, f"`{code}`: no key {key}"
            node = node[part]
    if code.startswith(("make ", "pip ")):
        documents.check_other(shlex.split(code))
    for name in MODEL.findall(code):
        assert zoo.known(name), f"no model {name}"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("--epsilon 3", "no program has --epsilon"),
        ("--dry", "no program has --dry"),  # the beginning of an option is none
        ("python -m classification.nothing", "classification has no nothing"),
        ("robust_backbones.detection.attack.fgsm(model)", "no fgsm"),
        ("tools/nothing.py", "no tools/nothing.py"),
        ("SOLVER.ADVERSARIAL.RADIUS 4", "no key SOLVER.ADVERSARIAL.RADIUS"),
        ("robust://resnet50_l2_eps4", "resnet50_l2_eps4"),
        ("make tea", "no such target"),
        ('pip install ".[tea]"', "no extra tea"),
    ],
)
def test_a_name_that_is_wrong_is_found(code, message, keys):
    with pytest.raises((AssertionError, UserError), match=re.escape(message)):
        check_code(code, keys)
