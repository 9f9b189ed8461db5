"""Get a dataset: torchvision downloads what still can be; of the others, where the files are."""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from classification import datasets
from classification.datasets.layouts import Official
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import locked


def fetch(name: str, root: Path) -> Path:
    """Download into `root/name`, which appears only when it is whole.

    Args:
        name: a key of `DATASETS`.
        root: the folder that has a folder for each dataset.

    Returns:
        where the dataset lies; whatever was there and is whole stays.

    Raises:
        UserError: nothing to fetch, only by hand, the download failed, or its counts are wrong.
    """
    row = datasets.find(name)
    if not row.needs_root:
        raise UserError(f"{name} is in the installed packages: there is nothing to fetch.")
    root = Path(root)
    target = root / name
    with locked(root / f".{name}.lock"):
        try:
            _open(name, root)
            return Path(datasets.place(name, root) or root)
        except UserError as error:
            if target.exists() and os.listdir(target):
                raise UserError(f"{target} is there and not whole: {error} Or remove it.") from None
        if not row.torchvision:
            raise UserError(f"{name} cannot be downloaded by a program. {instructions(name, root)}")
        partial = root / f".{name}.partial"
        # What a stopped download left cannot be told from a whole one: torchvision looks for a
        # folder only, and of some archives knows no digest.
        shutil.rmtree(partial, ignore_errors=True)
        _download(name, row.torchvision, partial, root)
        _open(name, partial)
        os.replace(partial, target)
    return target


def instructions(name: str, root: str | Path) -> str:
    """Where people find the files, and where they go."""
    row, target = datasets.find(name), Path(root) / name
    reader = datasets.reader(row)
    if isinstance(reader, Official):
        goal = "\n  ".join(
            [
                "Put them so, or as image folders train/<class>/ and test/<class>/:",
                *reader.places(target),
            ]
        )
    else:
        goal = f"Put them into {target}."
    return (
        f"By hand: {row.by_hand.rstrip('.')}.\n{goal}\n"
        f"Then: python -m classification.datasets check {name} --root {root}"
    )


def _open(name: str, root: Path) -> None:
    """Compare classes and counts with the row."""
    for split in ("train", "test"):
        datasets.open_split(name, split, root)


def _download(name: str, kind: str, folder: Path, root: Path) -> None:
    import torchvision

    try:
        folder.mkdir(parents=True)
        # One call is enough: each archive has all splits.
        with _inside():
            getattr(torchvision.datasets, kind)(str(folder), download=True)
    except Exception as error:  # a network, an archive and another library: it can be anything
        raise UserError(
            f"torchvision {torchvision.__version__} could not fetch {name} ({error}). Try again, "
            f"or with a newer torchvision. {instructions(name, root)}"
        ) from None


@contextlib.contextmanager
def _inside() -> Iterator[None]:
    """torchvision unpacks what an archive says, wherever that lies; here nothing of it may lie, or
    link, outside the folder that it is unpacked to."""
    before = vars(tarfile.TarFile)["extraction_filter"]
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before
