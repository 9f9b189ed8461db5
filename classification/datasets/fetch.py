"""Download a dataset with torchvision, or explain where to find its files."""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import torchvision

from classification.datasets.layouts import OFFICIAL
from classification.datasets.open import open_split
from classification.datasets.specs import STORED_SPLITS, find_dataset, locate
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import locked


def fetch(name: str, root: Path) -> Path:
    """Download a dataset into `root/name`. The folder is created when the download is complete.

    Args:
        name: key of `DATASETS`.
        root: folder with one folder per dataset.

    Returns:
        Path of the dataset. An existing complete dataset is not downloaded again.

    Raises:
        UserError: the dataset is bundled or must be downloaded manually; the download failed; the
            number of images is wrong.
    """
    spec = find_dataset(name)
    if not spec.needs_root:
        raise UserError(f"{name} is part of an installed package and needs no download.")
    root = Path(root)
    target = root / name
    with locked(root / f".{name}.lock"):
        try:
            _check_counts(name, root)
            return Path(locate(name, root) or root)
        except UserError as error:
            if target.exists() and os.listdir(target):
                raise UserError(
                    f"{target} exists but is incomplete: {error} Or remove the folder."
                ) from None
        if not spec.torchvision:
            raise UserError(f"{name} has no automatic download. {manual_instructions(name, root)}")
        partial = root / f".{name}.partial"
        # Download from scratch. torchvision checks only whether a folder exists, so it would treat
        # an interrupted download as complete.
        shutil.rmtree(partial, ignore_errors=True)
        _download(name, spec.torchvision, partial, root)
        _check_counts(name, partial)
        os.replace(partial, target)
    return target


def manual_instructions(name: str, root: str | Path) -> str:
    """Explain where to find the files of a dataset and where to put them."""
    spec, target = find_dataset(name), Path(root) / name
    goal = f"Put them into {target}."
    if name in OFFICIAL:
        paths = OFFICIAL[name].paths(target)
        goal = "Put the files here, or use image folders train/<class>/ and test/<class>/:\n  "
        goal += "\n  ".join(paths)
    return (
        f"Manual download: {spec.manual_download}.\n{goal}\n"
        f"Then run: robust-backbones datasets check {name} --data {root}"
    )


def _check_counts(name: str, root: Path) -> None:
    """Open both splits, which checks their numbers of classes and images."""
    for split in STORED_SPLITS:
        open_split(name, split, root)


def _download(name: str, kind: str, folder: Path, root: Path) -> None:
    try:
        folder.mkdir(parents=True)
        # One call is enough, because each archive contains all splits.
        with _safe_extraction():
            getattr(torchvision.datasets, kind)(str(folder), download=True)
    except Exception as error:  # errors of the network, an archive or torchvision
        raise UserError(
            f"torchvision {torchvision.__version__} could not download {name} ({error}). Try again "
            f"or install a newer torchvision. {manual_instructions(name, root)}"
        ) from None


@contextlib.contextmanager
def _safe_extraction() -> Iterator[None]:
    """Reject archive members and links outside the target folder, which torchvision allows."""
    before = vars(tarfile.TarFile)["extraction_filter"]
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before
