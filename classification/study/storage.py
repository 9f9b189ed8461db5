"""Keep results in object storage. Machines work in local folders, and the store has all files.

The `output` of a study may be any URL that fsspec supports, such as `s3://bucket/study` (with s3fs)
or `gs://bucket/study` (with gcsfs).
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from robust_backbones.core.errors import DISK_FULL, UserError
from robust_backbones.core.files import cache_dir

SMALL = ("result.json", "run.json", "attempts.jsonl")  # files that `table` and `status` read
LARGE = (".pt", ".pth", ".npy", ".npz")  # weights and features, which a report does not read


def is_url(output: str) -> bool:
    """Return whether a study's output is in object storage."""
    return "://" in output


@dataclass(frozen=True)
class Store:
    """A folder in object storage and its local copy.

    Attributes:
        url: URL of the study's output.
    """

    url: str

    @property
    def folder(self) -> Path:
        """Local copy in the cache folder. All machines need the same `ROBUST_BACKBONES_CACHE`."""
        digest = hashlib.sha256(self.url.rstrip("/").encode()).hexdigest()[:12]
        return cache_dir() / "studies" / digest

    def fetch(self, folder: Path) -> None:
        """Download all files of a run that are missing locally or have a different local size."""
        self._download(folder, lambda name: True)

    def fetch_small(self) -> None:
        """Download the files that `table` and `status` need for all runs. List the store once.

        Raises:
            UserError: the storage cannot be accessed.
        """
        with self._named_errors():
            self._download(self.folder, lambda name: name.rpartition("/")[2] in SMALL)

    def fetch_results(self) -> None:
        """Download the files that `classification.report` reads: all but weights and features.

        Raises:
            UserError: the folder has no files, or the storage cannot be accessed.
        """
        with self._named_errors():
            if not self._sizes(self._url(self.folder)):
                raise UserError(f"{self.url} has no files. Give the URL of a folder with results.")
            self._download(self.folder, lambda name: not name.endswith(LARGE))

    def _download(self, folder: Path, wanted: Callable[[str], bool]) -> None:
        files, base = self._file_system(), self._url(folder)
        for name, size in self._sizes(base).items():
            if ".." in name.split("/"):
                raise UserError(f"{base}: the file '{name}' is outside this folder. Remove it.")
            target = folder / name
            known = target.exists() and target.stat().st_size == size
            if wanted(name) and not known:
                target.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(f"{base}/{name}", str(target))

    def send(self, folder: Path) -> None:
        """Upload a run's files. The result comes last because it marks the run as finished."""
        files, base = self._file_system(), self._url(folder)
        paths = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
        for path in sorted(paths, key=lambda path: path.name == "result.json"):
            files.put_file(str(path), f"{base}/{path.relative_to(folder).as_posix()}")

    def _url(self, folder: Path) -> str:
        inner = folder.relative_to(self.folder).as_posix()
        return self._file_system()._strip_protocol(f"{self.url.rstrip('/')}/{inner}").rstrip("/.")

    def _sizes(self, base: str) -> dict[str, int]:
        """Return the size in bytes of every file below `base`, by its relative name."""
        try:
            found = self._file_system().find(base, detail=True)
        except FileNotFoundError:
            return {}
        return {name[len(base) :].lstrip("/"): row["size"] for name, row in found.items()}

    def _file_system(self) -> Any:
        try:
            local = {"auto_mkdir": True} if self.url.startswith("file:") else {}
            return fsspec.core.url_to_fs(self.url, **local)[0]
        except (ImportError, ValueError) as error:
            raise UserError(f"{self.url} cannot be accessed ({error}). Check the URL.") from None

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Convert storage errors, whose types differ between file systems, to UserError."""
        try:
            yield
        except Exception as error:
            if isinstance(error, UserError) or getattr(error, "errno", None) in DISK_FULL:
                raise
            reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            raise UserError(
                f"{self.url} cannot be accessed ({reason}). Check the URL and your credentials."
            ) from None
