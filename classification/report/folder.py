"""Folder of a report: names of its files, and contents of an older report in the folder."""

import json
from pathlib import Path

from robust_backbones.core.errors import UserError

PAGE, MARKDOWN, CONTENTS = "index.html", "report.md", "report.json"
TABLES, FIGURES = "tables", "figures"
KIND = "robust-backbones report"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def check(folder: Path) -> None:
    """Reject a folder that contains files but no report.

    Raises:
        UserError: `folder` is a file, cannot be read, or contains files but no report.
    """
    try:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise UserError(
            f"--output {folder}: cannot read this folder ({error.strerror}). Choose another folder."
        ) from None
    if names - {".lock"} and older_files(folder) is None:
        raise UserError(
            f"--output {folder}: the folder contains files but no report. Choose another folder."
        )


def older_files(folder: Path) -> list[str] | None:
    """List the tables and figures of an older report.

    Returns:
        File paths relative to `folder`; None if the folder has no readable report.
    """
    try:
        contents = _read(folder)
        paths = [Path(name) for name in contents["files"]]
    except _UNREADABLE:
        return None
    # A newer report deletes these files. If the list was edited, other files must not be deleted.
    return [str(p) for p in paths if len(p.parts) == 2 and p.parts[0] in (TABLES, FIGURES)]


def older_looks(folder: Path) -> dict[str, list[str]]:
    """Read the `comparisons.Rules.looks` of earlier reports in this folder; empty if unreadable."""
    try:
        return {str(name): list(map(str, n)) for name, n in _read(folder)["looks"].items()}
    except _UNREADABLE:
        return {}


def _read(folder: Path) -> dict:
    contents = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
    if contents["kind"] != KIND:
        raise ValueError("not a report")
    return contents
