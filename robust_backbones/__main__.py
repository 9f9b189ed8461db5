"""`python -m robust_backbones` lists the tools, `python -m robust_backbones NAME ...` runs one.

A clone has them in tools/; from a wheel this is how they are reached.
"""

import ast
import os
import sys
from pathlib import Path

from robust_backbones.core import resources as clone
from robust_backbones.core.errors import UserError, user_errors


def main(words: list[str]) -> None:
    """Become the tool that the first word names; without words, list them."""
    files = {file.stem: file for file in sorted((clone.root() / "tools").glob("*.py"))}
    files = {name: file for name, file in files.items() if '__name__ == "__main__"' in _text(file)}
    if not words or words[0] in ("-h", "--help"):
        for name, file in files.items():
            about = (ast.get_docstring(ast.parse(_text(file))) or "").split("\n")[0]
            print(f"python -m robust_backbones {name:18} {about}")
        print("Each explains its options with --help.")
        return
    if words[0] not in files:
        raise UserError(f"tool '{words[0]}' is unknown; one of: {', '.join(files)}.")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(files[words[0]]), *words[1:]])


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
