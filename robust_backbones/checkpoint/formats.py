"""Extract a network's tensors from the layouts of checkpoint files, under torchvision names.

Every key of a file is used, dropped with a recorded reason, or named in an error.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_backbones.archs import Arch
from robust_backbones.checkpoint.architectures import arch_row, stated_arch
from robust_backbones.checkpoint.containers import find_state
from robust_backbones.checkpoint.key_names import to_torchvision
from robust_backbones.checkpoint.wrappers import statistic_name, unwrap_network
from robust_backbones.core.errors import UserError, counted

FORMAT = "robust_backbones.classifier"  # marks this project's files; see docs/reference/formats.md
FORMAT_VERSION = 1


@dataclass
class Layout:
    """Network and metadata that were extracted from a file.

    Attributes:
        name: name of the layout, such as `"torchvision"`.
        tensors: `{torchvision name: tensor}`.
        dropped: `{key in the file: reason why the key is not in tensors}`.
        mean, std: RGB mean and standard deviation for inputs in [0, 1]; None if not in the file.
        metadata: training metadata of the file, as built-in types.
    """

    name: str
    tensors: dict[str, Tensor]
    dropped: dict[str, str] = field(default_factory=dict)
    mean: Tensor | None = None
    std: Tensor | None = None
    metadata: dict = field(default_factory=dict)


def unwrap(
    contents: Any,
    source: object,
    from_detector: bool = False,
    assume_rgb: bool = False,
    key: str | None = None,
    expected: Arch | None = None,
) -> Layout:
    """Recognize the layout of a file and extract the network.

    Args:
        contents: loaded contents of the file.
        source: name of the file in error messages.
        from_detector: whether to extract the backbone of a whole Detectron2 detector.
        assume_rgb: whether to assume that a Detectron2 file without metadata expects RGB images
            with ImageNet statistics, and has its strides in the 3x3 convolutions.
        key: name of the network in the file, as in `containers.find_state`; None if the file has
            only one network.
        expected: architecture that the user expects; None: any of `archs`.

    Raises:
        UserError: the contents are not a dictionary of tensors, have a newer format or contradict
            each other; the file contains several networks and `key` is None; the network expects
            BGR images; or the file contains a whole detector and `from_detector` is False.
    """
    state, rest, dropped = find_state(contents, source, key)
    stems = [k.removesuffix(_STEM) for k in state if k.endswith(_STEM)]
    stems = [stem for stem in stems if f"{stem}res2.0.conv1.weight" in state]
    stems += [k.partition(TIMM_BODY)[0] + TIMM_BODY for k in state if TIMM_BODY in k]
    if stems:
        layout = _detectron2(state, min(stems, key=len), rest, source, from_detector, assume_rgb)
    else:
        layout = _classifier(state, rest, source, expected)
    layout.dropped |= dropped
    _scale_pixel_units(layout)
    _check_statistics(layout, source)
    return layout


def _classifier(
    state: dict[str, Tensor], rest: dict, source: object, expected: Arch | None
) -> Layout:
    """Extract a network from a file of any training program, or of this project."""
    metadata = _metadata(rest, source)
    described = metadata or _plain_values(rest)
    if not expected and (arch := stated_arch(described)):
        expected = arch_row(arch)
    found = unwrap_network(state, source, expected)
    ours = rest.get("format") == FORMAT
    if ours and repr(rest.get("version")) != str(FORMAT_VERSION):  # versions can be tensors
        raise UserError(
            f"{source}: format version {rest.get('version')} is not supported, only "
            f"{FORMAT_VERSION}. Install a newer release."
        )
    recorded = _recorded_statistics(metadata, source)
    if not (recorded or found.statistics):
        recorded = _foreign_statistics(rest)
    for part in found.statistics.keys() & recorded.keys():
        one, two = found.statistics[part], recorded[part].flatten()
        if one.shape != two.shape or not torch.allclose(one, two, atol=1e-6):
            raise UserError(
                f"{source}: {part} differs between the normalization layer and the metadata."
            )
    statistics = recorded | found.statistics
    kind = "robust_backbones" if ours else found.kind
    described = described | _unfinished(metadata, rest)
    return Layout(kind, found.tensors, found.dropped, metadata=described, **statistics)


def _unfinished(metadata: dict, rest: dict) -> dict:
    """Return the number of finished epochs of a run of `pretrain` that has more to train."""
    finished, epochs = rest.get("epoch"), metadata.get("epochs")
    if not (isinstance(finished, int) and isinstance(epochs, int) and finished < epochs):
        return {}
    # A run that was rolled back after a collapse of its robustness has ended.
    history = rest.get("history")
    records = history if isinstance(history, list) else []
    ended = any("rolled_back" in record for record in records if isinstance(record, dict))
    return {} if ended else {"finished_epochs": finished}


def _metadata(rest: dict, source: object) -> dict:
    """Return the metadata of a file written by this project, or an empty dictionary."""
    metadata = rest.get("metadata")
    return _to_python(metadata, source, itertools.count()) if isinstance(metadata, dict) else {}


_MOST_ENTRIES, _DEEPEST = 100_000, 20


def _to_python(value: Any, source: object, entries: Iterator[int], depth: int = 0) -> Any:
    """Convert NumPy scalars in containers to Python numbers, because readers refuse them.

    Args:
        value: container or value to convert.
        source: name of the file in error messages.
        entries: counter of the converted values.
        depth: number of containers around the value.

    Raises:
        UserError: the containers have too many entries. A file of a few bytes can contain a
            container many times, or inside itself.
    """
    if next(entries) > _MOST_ENTRIES or depth > _DEEPEST:
        raise UserError(
            f"{source}: the metadata have more than {_MOST_ENTRIES} entries or {_DEEPEST} levels."
        )
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {k: _to_python(v, source, entries, depth + 1) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_to_python(v, source, entries, depth + 1) for v in value)
    return value


def _recorded_statistics(metadata: dict, source: object) -> dict[str, Tensor]:
    """Return the mean and std in the metadata as tensors."""
    found = {part: metadata[part] for part in ("mean", "std") if metadata.get(part) is not None}
    for part, values in found.items():
        numbers = isinstance(values, (list, tuple)) and all(
            type(v) in (int, float) and 0 <= v <= 1 for v in values
        )
        if not numbers:
            raise UserError(f"{source}: {part} is {values!r}. It must be three numbers in [0, 1].")
    return {part: torch.tensor(values, dtype=torch.float32) for part, values in found.items()}


def _foreign_statistics(rest: dict) -> dict[str, Tensor]:
    """Return the mean and std that another program saved next to the network, as tensors.

    They are entries of the file such as `mean` and `std`, or entries of a dictionary in it, such as
    `config`. Dictionaries that contradict each other are ignored.
    """
    own = _pair(rest)
    if own:
        return own
    inner = [pair for value in rest.values() if isinstance(value, dict) and (pair := _pair(value))]
    equal = all(
        torch.equal(pair[part], inner[0][part]) for pair in inner for part in ("mean", "std")
    )
    return inner[0] if inner and equal else {}


def _pair(entries: dict) -> dict[str, Tensor]:
    """Return `mean` and `std` if a dictionary has both, each with three numbers, else nothing."""
    found = {}
    for name, value in entries.items():
        part = statistic_name(name) if isinstance(name, str) else None
        if isinstance(value, (list, tuple)) and all(type(v) in (int, float) for v in value):
            value = torch.tensor(value, dtype=torch.float32)
        if part and isinstance(value, Tensor) and value.numel() == 3:
            found.setdefault(part, value.float().flatten())
    if len(found) < 2 or not all(((t >= 0) & (t <= 255)).all() for t in found.values()):
        return {}
    return found if (found["std"] > 0).all() else {}


def _scale_pixel_units(layout: Layout) -> None:
    """Convert statistics of pixels in [0, 255] to images in [0, 1]."""
    mean, std = layout.mean, layout.std
    if mean is None or std is None or not mean.numel() == std.numel() == 3:
        return
    if 1 < mean.max() <= 255 and 1 <= std.min() <= std.max() <= 255:
        layout.mean, layout.std = mean / 255, std / 255


_BGR_MEAN = torch.tensor([0.406, 0.456, 0.485])  # ImageNet's mean in BGR order


def _check_statistics(layout: Layout, source: object) -> None:
    """Require mean and std together, and reject BGR statistics."""
    if (layout.mean is None) != (layout.std is None):
        raise UserError(f"{source}: the file has only one of mean and std. Both are required.")
    mean = layout.mean
    if mean is not None and mean.numel() == 3 and (mean.flatten() - _BGR_MEAN).abs().max() < 0.01:
        raise UserError(f"{source}: the network expects BGR images. Only RGB is supported.")


def _plain_values(rest: dict) -> dict:
    """Return the numbers, strings and booleans of a file, such as its epoch and accuracy."""
    values = {k: v.item() if isinstance(v, np.generic) else v for k, v in rest.items()}
    return {k: v for k, v in values.items() if isinstance(v, (int, float, str, bool))}


_PLAIN = (int, float, str, bool, np.generic)
_STEM = "stem.conv1.weight"
TIMM_BODY = "bottom_up.network."  # prefix of a timm network in detectors


def _detectron2(
    state: dict[str, Tensor],
    prefix: str,
    rest: dict,
    source: object,
    from_detector: bool,
    assume_rgb: bool,
) -> Layout:
    """Extract the backbone under `prefix` from a converted file or from a whole detector."""
    metadata = _metadata(rest, source)
    order = metadata.get("channel_order")
    if order not in (None, "RGB"):
        raise UserError(f"{source}: the network expects {order} images. Only RGB is supported.")
    if order is None and not assume_rgb:
        raise UserError(
            f"{source}: the channel order is not recorded. Detectron2's own models expect BGR and "
            "have STRIDE_IN_1X1 True. If this model expects RGB and has STRIDE_IN_1X1 False, "
            "run: robust-backbones convert FILE TARGET --assume-rgb"
        )
    if metadata.get("stride_in_1x1"):
        raise UserError(
            f"{source}: STRIDE_IN_1X1 is True. Only False, as in torchvision, is supported."
        )
    pixels = {"mean": state.get("pixel_mean"), "std": state.get("pixel_std")}
    statistics = {part: t.flatten() / 255 for part, t in pixels.items() if t is not None}
    outside = [key for key in state if not key.startswith(prefix)]
    inside = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
    if outside and not from_detector:
        raise UserError(
            f"{source}: the file is a whole detector ({counted(len(outside), 'tensor', 'tensors')} "
            f"outside the backbone, such as '{outside[0]}'). To extract its backbone: "
            "robust-backbones convert FILE TARGET --from-detector"
        )
    dropped = dict.fromkeys(outside, "part of the detector, outside the backbone")
    statistics |= _recorded_statistics(metadata, source)
    try:
        tensors = inside if prefix.endswith(TIMM_BODY) else to_torchvision(inside)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return Layout("detectron2", tensors, dropped, **statistics, metadata=metadata)
