"""What an unfinished run has found so far: a file that grows by whole lines and survives a kill."""

import errno
import json
import os
from pathlib import Path

from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic
from robust_backbones.core.results import differences


class Journal:
    """Records on disk, one JSON line each, behind a first line with the run's settings.

    Args:
        path: the file; made if it is not there.
        settings: what a run must share to go on from the file, in plain JSON types.

    Attributes:
        records: those found in the file and those added since, in their order.

    Raises:
        UserError: the file is of a run with other settings, or is no journal, or the place cannot
            be written to.
    """

    def __init__(self, path: str | Path, settings: dict):
        self.path = Path(path)
        if not self.path.exists():
            with atomic(self.path) as temporary:
                temporary.write_text(_line({"settings": settings}), encoding="utf-8")
        head, *self.records = self._read()
        if different := differences(head["settings"], settings):
            raise UserError(
                f"{self.path.parent} holds an unfinished run with other settings: {different}; "
                "give the same ones, or choose another --output."
            )

    def _read(self) -> list[dict]:
        text = self.path.read_bytes()
        whole = text.rfind(b"\n") + 1
        try:
            lines = [json.loads(line) for line in text[:whole].splitlines()]
            lines[0]["settings"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise UserError(
                f"{self.path} is not the record of an unfinished run; choose another --output."
            ) from None
        if whole < len(text):  # the line that was being written when the process died
            os.truncate(self.path, whole)
        return lines

    def add(self, record: dict) -> None:
        """Append one record; it is on the disk when this returns.

        Raises:
            UserError: the file cannot be written to.
        """
        line = _line(record).encode()
        try:
            # One write in append mode: a line never gets mixed with another process's.
            with open(self.path, "ab", buffering=0) as file:
                before = file.tell()
                if file.write(line) < len(line):  # the disk took a part of it
                    file.truncate(before)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; make room.") from None
        self.records.append(record)


def _line(record: dict) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
