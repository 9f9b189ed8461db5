"""Let Detectron2 open `robust://` paths: download and convert published models."""

import dataclasses
from pathlib import Path
from typing import IO, Any

import torch
from detectron2.utils.file_io import PathHandler, PathManager

from robust_backbones import __version__, weights
from robust_backbones.checkpoint import export
from robust_backbones.checkpoint.io import read_checkpoint
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import cache_dir, locked
from robust_backbones.detection.verify import verify_backbone
from robust_backbones.zoo import SCHEME, Model, find_backbone


def converted(name: str) -> Path:
    """Return the backbone of a published model in Detectron2's format.

    The first call converts and verifies the model. The converted file is cached in
    `cache_dir()/detectron2`. Its name contains the digest of the published file and the version of
    this package. If several processes call this function, only one of them converts the model.

    Raises:
        UserError: the name is unknown, the model is not a ResNet or could not be downloaded, or its
            file contains another architecture.
    """
    model = find_backbone(name)
    digest = weights.digest(SCHEME + model.name)
    if digest and (target := _target(model, digest)).is_file():
        return target
    source = weights.resolve(SCHEME + model.name)
    digest = weights.digest(SCHEME + model.name)
    assert digest is not None  # known after `resolve`
    target = _target(model, digest)
    with locked(target.with_suffix(".lock"), patience=60):
        if not target.is_file():
            _convert(model, source, target)
    return target


def _target(model: Model, digest: str) -> Path:
    return cache_dir() / "detectron2" / f"{model.name}-{digest[:16]}-v{__version__}.pth"


def _convert(model: Model, source: Path, target: Path) -> None:
    found = read_checkpoint(source, model.arch, statistics=model.statistics)
    found = dataclasses.replace(found, metadata=found.metadata | model.facts)
    contents = export.detectron2_contents(found)
    with torch.random.fork_rng(devices=[]):  # keeps the global random state
        verify_backbone(found, contents["model"])
    export.save(found, contents, "detectron2", target)


class RobustPathHandler(PathHandler):
    """Open `robust://` paths as converted files, read-only.

    A path exists if it is the name of a published model, whether or not the file is downloaded.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [SCHEME]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(converted(path))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        if set(mode) & set("wax+"):
            raise UserError(f"{path} is a published model and cannot be written.")
        return open(converted(path), mode, buffering)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        try:
            find_backbone(path)
        except UserError:
            return False
        return True

    _exists = _isfile


PathManager.register_handler(RobustPathHandler(), allow_override=True)
