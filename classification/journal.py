"""Store the records of an unfinished run in a file, so that a killed run can resume."""

import errno
import json
import os
from pathlib import Path

from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic
from robust_backbones.core.results import differences


class Journal:
    """JSON Lines file whose first line has the run's settings. Each further line is a record.

    Args:
        path: path of the file. The file is created if it does not exist.
        settings: settings of the run in plain JSON types. A run with records resumes only with
            equal settings.

    Attributes:
        records: all records in the file, in their order, including records from `add`.

    Raises:
        UserError: the file has different settings, is not a journal or cannot be written.
    """

    def __init__(self, path: str | Path, settings: dict):
        self.path = Path(path)
        if not self.path.exists():
            self._start(settings)
        head, *self.records = self._read()
        if different := differences(head["settings"], settings):
            if not self.records:  # the run stopped at its first image, so nothing is lost
                self._start(settings)
                return
            raise UserError(
                f"{self.path.parent} has an unfinished run with different settings: {different}. "
                "Use the same settings, or choose another --output."
            )

    def _start(self, settings: dict) -> None:
        with atomic(self.path) as temporary:
            temporary.write_text(_line({"settings": settings}), encoding="utf-8")

    def _read(self) -> list[dict]:
        text = self.path.read_bytes()
        end = text.rfind(b"\n") + 1
        try:
            lines = [json.loads(line) for line in text[:end].splitlines()]
            lines[0]["settings"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise UserError(
                f"{self.path}: not the record of an unfinished run. Choose another --output."
            ) from None
        if end < len(text):  # the process died while it wrote the last line, so remove this line
            os.truncate(self.path, end)
        return lines

    def add(self, record: dict) -> None:
        """Append one record, and wait until the record is on the disk.

        Raises:
            UserError: the file cannot be written.
        """
        line = _line(record).encode()
        try:
            # A single write in append mode does not interleave with another process's line.
            with open(self.path, "ab", buffering=0) as file:
                before = file.tell()
                if file.write(line) < len(line):  # an incomplete write, for example on a full disk
                    file.truncate(before)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}. Free disk space and rerun."
            ) from None
        self.records.append(record)


def _line(record: dict) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
