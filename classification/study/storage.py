"""Results in object storage: each machine works in a folder of its own, the store has them all.

Any file system that fsspec knows by its URL: `s3://bucket/study` (with s3fs), `gs://...` (gcsfs).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_backbones.core.errors import UserError
from robust_backbones.core.files import cache_dir

SMALL = ("result.json", "run.json", "attempts.jsonl")  # what tables and states are read from


def is_url(output: str) -> bool:
    return "://" in output


@dataclass(frozen=True)
class Store:
    """A place in object storage, and the folder that stands for it on each machine.

    Attributes:
        url: of the study's output.
    """

    url: str

    @property
    def folder(self) -> Path:
        """Below the cache, so set `ROBUST_BACKBONES_CACHE` alike on all machines."""
        digest = hashlib.sha256(self.url.encode()).hexdigest()[:12]
        return cache_dir() / "studies" / digest

    def fetch(self, folder: Path) -> None:
        """Bring what the store has of a run and this machine has not, or in another size."""
        self._bring(folder, lambda name: True)

    def fetch_small(self) -> None:
        """Bring what `table` and `status` need, of all runs; one listing."""
        self._bring(self.folder, lambda name: name.rpartition("/")[2] in SMALL)

    def _bring(self, folder: Path, wanted: Callable[[str], bool]) -> None:
        files, base = self._system(), self._url(folder)
        for name, size in self._sizes(base).items():
            if ".." in name.split("/"):
                raise UserError(f"{base} has '{name}', which leads out of its folder; remove it.")
            target = folder / name
            known = target.exists() and target.stat().st_size == size
            if wanted(name) and not known:
                target.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(f"{base}/{name}", str(target))

    def send(self, folder: Path) -> None:
        """Keep a run's files, the result last: it marks the run as finished."""
        files, base = self._system(), self._url(folder)
        names = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
        for path in sorted(names, key=lambda path: path.name == "result.json"):
            files.put_file(str(path), f"{base}/{path.relative_to(folder).as_posix()}")

    def _url(self, folder: Path) -> str:
        inner = folder.relative_to(self.folder).as_posix()
        return self._system()._strip_protocol(f"{self.url.rstrip('/')}/{inner}").rstrip("/.")

    def _sizes(self, base: str) -> dict[str, int]:
        """Names below `base` -> bytes; nothing where it does not exist."""
        try:
            found = self._system().find(base, detail=True)
        except FileNotFoundError:
            return {}
        return {name[len(base) :].lstrip("/"): row["size"] for name, row in found.items()}

    def _system(self) -> Any:
        import fsspec

        try:
            local = {"auto_mkdir": True} if self.url.startswith("file:") else {}
            return fsspec.core.url_to_fs(self.url, **local)[0]
        except (ImportError, ValueError) as error:
            raise UserError(f"output {self.url} cannot be reached: {error}.") from None
