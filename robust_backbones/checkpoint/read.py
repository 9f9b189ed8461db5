"""Read weights from any source: a published name, weights of a library, a path or a URL."""

import dataclasses
from pathlib import Path

from robust_backbones import sources
from robust_backbones.checkpoint.io import Checkpoint, read_checkpoint
from robust_backbones.core.input_statistics import InputStatistics
from robust_backbones.weights import fetch_weights


def read_weights(
    source: str | Path,
    *,
    path: Path | None = None,
    statistics: InputStatistics | None = None,
    arch: str | None = None,
    key: str | None = None,
    allow_pickle: bool = False,
    from_detector: bool = False,
    assume_rgb: bool = False,
) -> Checkpoint:
    """Read a network's weights and everything that is known about them.

    The network is recognized from its tensors. The weights are downloaded if necessary.

    Args:
        source: name, path or URL, as for `fetch_weights`.
        path: local file of the source; None: fetch it.
        statistics: input statistics from the user; None: those that the source states, or else the
            file's. The result's `statistics.source` is `"assumed"` if neither does.
        arch: expected architecture, a key of `robust_backbones.archs.ARCHS` or `timm:NAME`; None:
            any.
        key: name of the network in a file with several networks, such as `"state_dict_ema"`; None:
            the file has one.
        allow_pickle: whether to execute code in the file. Use True only for trusted files.
        from_detector: whether to extract the backbone of a whole Detectron2 detector.
        assume_rgb: whether to assume RGB images, ImageNet statistics and strides in the 3x3
            convolutions for a Detectron2 file that does not state them.

    Raises:
        UserError: the source cannot be fetched or read, its network is not supported, or it
            contradicts `arch` or `statistics`.
    """
    path = path or fetch_weights(source)
    stated = sources.stated(str(source), path)
    found = read_checkpoint(
        path,
        arch or stated.arch,
        allow_pickle,
        from_detector,
        assume_rgb,
        key,
        statistics or stated.statistics,
    )
    return dataclasses.replace(found, metadata=found.metadata | stated.facts)
