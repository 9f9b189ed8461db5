"""Find the local file of `MODEL.WEIGHTS`, and the architecture of the network in this file."""

from pathlib import Path

from detectron2.utils.file_io import PathManager

from robust_backbones import sources
from robust_backbones.archs import RESNETS, TIMM
from robust_backbones.checkpoint.architectures import recognize
from robust_backbones.checkpoint.architectures import stated_arch as timm_arch
from robust_backbones.checkpoint.formats import unwrap
from robust_backbones.checkpoint.io import load_file, stated_statistics
from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import InputStatistics
from robust_backbones.zoo import SCHEME, find_backbone

SCHEMES = (SCHEME, "hf://", *(f"{library}://" for library in sources.SCHEMES))


def named(weights: str) -> sources.Stated | None:
    """Return what the name of published weights, or of weights of a library, says about them.

    Args:
        weights: value of `MODEL.WEIGHTS`.

    Returns:
        Architecture and input statistics, or None for a path, a URL or a repository on the Hub.

    Raises:
        UserError: no weights have this name, or their network cannot be a backbone.
    """
    if weights.startswith(SCHEME):
        model = find_backbone(weights)
        return sources.Stated(model.arch, model.statistics, model.facts)
    if not weights.startswith(SCHEMES[2:]):
        return None
    found = sources.of_library(weights).stated
    _require_backbone(weights, found.arch or "")
    return found


def _require_backbone(weights: str, arch: str) -> None:
    if arch not in RESNETS and not arch.startswith(TIMM):
        raise UserError(
            f"MODEL.WEIGHTS '{weights}' is a {arch}, which is not supported as a backbone. "
            f"Choose a timm network or one of {', '.join(RESNETS)}."
        )


def local_weights(weights: str) -> Path:
    """Return the local file of `MODEL.WEIGHTS`. Download the file first if necessary.

    Raises:
        UserError: the file does not exist or could not be downloaded.
    """
    try:
        path = Path(PathManager.get_local_path(weights))
    except UserError:
        raise
    except (OSError, ValueError, AssertionError) as error:  # raised by Detectron2's handlers
        reason = " ".join(str(error).split())
        raise UserError(f"MODEL.WEIGHTS '{weights}' could not be fetched: {reason}") from None
    if path.is_file():
        return path
    if weights.startswith("output/demo/"):
        raise UserError(
            f"MODEL.WEIGHTS '{weights}' does not exist. Create it with: robust-backbones demo"
        )
    fault = "is a folder" if path.is_dir() else "does not exist"
    raise UserError(
        f"MODEL.WEIGHTS '{weights}' {fault}. Give the checkpoint of a detector, a backbone "
        f"from robust-backbones convert, a published model such as {SCHEME}resnet50_l2_eps3, or "
        '"" for random weights.'
    )


def stated_arch(path: Path) -> str | None:
    """Return the architecture that the metadata of a weight file state, or None."""
    return _stated_arch(load_file(path))


def _stated_arch(contents: object) -> str | None:
    metadata = contents.get("metadata") if isinstance(contents, dict) else None
    arch = metadata.get("arch") if isinstance(metadata, dict) else None
    known = isinstance(arch, str) and (arch in RESNETS or arch.startswith(TIMM))
    return arch if known else None


def arch_of(weights: str) -> str:
    """Find the architecture of the backbone in `MODEL.WEIGHTS`.

    The name of a published model determines its architecture. Other weights are downloaded if
    necessary, and their architecture is read from the file.

    Args:
        weights: value of `MODEL.WEIGHTS`.

    Returns:
        The name of the architecture, an element of `archs.RESNETS` or `timm:NAME`.

    Raises:
        UserError: `weights` is empty, or the file contains no known backbone.
    """
    fix = f"Set MODEL.ROBUST.ARCH; choose from {', '.join(RESNETS)} and {TIMM}NAME."
    if not weights:
        raise UserError(f"MODEL.ROBUST.ARCH and MODEL.WEIGHTS are both empty. {fix}")
    if stated := named(weights):
        return stated.arch or ""
    path = local_weights(weights)
    contents = load_file(path)
    if arch := _stated_arch(contents):
        return arch
    try:
        layout = unwrap(contents, path, from_detector=True, assume_rgb=True)
        arch = recognize(layout.tensors, None, path, timm_arch(layout.metadata)).arch
    except UserError as error:
        reason = f"MODEL.ROBUST.ARCH is empty, and MODEL.WEIGHTS has no known architecture: {error}"
        raise UserError(f"{reason} {fix}") from None
    _require_backbone(weights, arch)
    return arch


def statistics_of(weights: str) -> InputStatistics | None:
    """Find the input statistics of the backbone in `MODEL.WEIGHTS`.

    The name of a published model determines its statistics. Other weights must be a local file.

    Args:
        weights: published name or path.

    Returns:
        The statistics, or None if the file does not state any.

    Raises:
        UserError: the file cannot be read.
    """
    if stated := named(weights):
        return stated.statistics
    contents = load_file(weights)
    try:
        layout = unwrap(contents, weights, from_detector=True, assume_rgb=True)
    except UserError:
        return None  # strict loading explains why these weights cannot be used
    return stated_statistics(layout, weights)
