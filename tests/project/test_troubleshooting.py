"""The page about errors quotes messages that the code prints."""

import ast
import functools
import re

import pytest

from tests.support import ROOT

PAGE = ROOT / "docs/guides/troubleshooting.md"
# Messages of pip, the shell, Python and Detectron2.
FOREIGN = {
    "No matching distribution found for robust-backbones",
    "robust-backbones: command not found",
    "No module named 'pkg_resources'",
    "No module named 'fcntl'",
    "module 'PIL.Image' has no attribute 'LINEAR'",
    "cannot import name '_C' from 'detectron2'",
}
GAP = "\0"  # a value that is inserted into a message


def quoted() -> list[str]:
    """Return the messages in the first column of the tables."""
    return re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.M)


@functools.cache
def literals() -> str:
    """Return all strings of the code, one per line."""
    found = []
    for package in ("robust_backbones", "classification"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [getattr(part, "value", GAP) for part in node.values]
                    found.append("".join(p if isinstance(p, str) else GAP for p in parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(text.replace("\n", " ") for text in found)


def is_printed(message: str) -> bool:
    """Return whether one string of the code contains the message, with any values for `…`."""
    pattern = ".*".join(re.escape(part) for part in message.strip("… ").split("…"))
    return re.search(pattern, literals()) is not None


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_printed_by_the_code(message):
    assert message in FOREIGN or is_printed(message)


def test_the_page_quotes_messages_and_an_invented_one_is_found():
    assert len(quoted()) > 30 and set(quoted()) >= FOREIGN
    assert not is_printed("dataset '…' is a teapot.")
