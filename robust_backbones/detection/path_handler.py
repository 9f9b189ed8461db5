"""Let Detectron2 open names of weights, such as `robust://` paths: download and convert them."""

import re
from pathlib import Path
from typing import IO, Any

import torch
from detectron2.utils.file_io import PathHandler, PathManager

from robust_backbones import __version__, weights
from robust_backbones.checkpoint import export
from robust_backbones.checkpoint.read import read_weights
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import cache_dir, locked
from robust_backbones.detection.model_weights import SCHEMES, named
from robust_backbones.detection.verify import verify_backbone
from robust_backbones.zoo import SCHEME, find_backbone


def converted(name: str) -> Path:
    """Return the backbone of a published model, or of weights of a library or of the Hub.

    The file is in Detectron2's format. The first call converts and verifies the model. The
    converted file is cached in `cache_dir()/detectron2`. Its name contains the digest of the
    source's file and the version of this package. If several processes call this function, only one
    of them converts the model.

    Args:
        name: `robust://NAME`, `timm://NAME.TAG`, `torchvision://NAME.TAG` or `hf://REPO[/FILE]`.

    Raises:
        UserError: the name is unknown, the model cannot be a backbone or could not be downloaded,
            or its file contains another architecture.
    """
    named(name)  # rejects unknown names before the download
    if name.startswith(SCHEME):
        name = SCHEME + find_backbone(name).name
    digest = weights.digest(name)
    if digest and (target := _target(name, digest)).is_file():
        return target
    source = weights.fetch_weights(name)
    digest = weights.digest(name)
    assert digest is not None  # known after the download
    target = _target(name, digest)
    with locked(target.with_suffix(".lock"), patience=60):
        if not target.is_file():
            _convert(name, source, target)
    return target


def _target(name: str, digest: str) -> Path:
    short = re.sub(r"[^\w.-]", "_", name.partition("://")[2])
    return cache_dir() / "detectron2" / f"{short}-{digest[:16]}-v{__version__}.pth"


def _convert(name: str, source: Path, target: Path) -> None:
    found = read_weights(name, path=source)
    contents = export.detectron2_contents(found)
    with torch.random.fork_rng(devices=[]):  # keeps the global random state
        verify_backbone(found, contents["model"])
    export.save(found, contents, "detectron2", target)


class RobustPathHandler(PathHandler):
    """Open names of weights as converted files, read-only.

    A path exists if it is a valid name, whether or not the file is downloaded.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return list(SCHEMES)

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(converted(path))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        if set(mode) & set("wax+"):
            raise UserError(f"{path} is a published model and cannot be written.")
        return open(converted(path), mode, buffering)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        try:
            named(path)
            weights.digest(path)
        except UserError:
            return False
        return True

    _exists = _isfile


PathManager.register_handler(RobustPathHandler(), allow_override=True)
