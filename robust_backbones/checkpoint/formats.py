"""Extract a network's tensors from the layouts of checkpoint files, under torchvision names.

Every key of a file is either used or dropped with a recorded reason. A prefix is removed only if
all keys share it, and a copy is dropped only if it equals the original.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robust_backbones.checkpoint.key_names import to_torchvision
from robust_backbones.core.errors import UserError

FORMAT = "robust_backbones.classifier"  # marks this project's files; see docs/formats.md
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
    contents: Any, source: object, from_detector: bool = False, assume_rgb: bool = False
) -> Layout:
    """Recognize the layout of a file and extract the network.

    Args:
        contents: loaded contents of the file.
        source: name of the file in error messages.
        from_detector: whether to extract the backbone of a whole Detectron2 detector.
        assume_rgb: whether to assume that a Detectron2 file without metadata expects RGB images
            with ImageNet statistics, and has its strides in the 3x3 convolutions.

    Raises:
        UserError: the contents are not a dictionary of tensors, have a newer format or contradict
            each other; the network expects BGR images; or the file contains a whole detector and
            `from_detector` is False.
    """
    if not isinstance(contents, dict):
        raise UserError(
            f"{source}: the file contains a {type(contents).__name__}, not a dictionary of "
            "tensors. Save a state_dict."
        )
    state, rest = _split_state(contents, source)
    if any(key.endswith("stem.conv1.weight") for key in state):
        layout = _detectron2(state, rest, source, from_detector, assume_rgb)
    elif any("encoder_q." in key for key in state):
        layout = _moco(state, rest)
    else:
        layout = _classifier(state, rest, source)
    others = [k for k, v in rest.items() if isinstance(v, dict) and _contains_tensors(v)]
    layout.dropped |= dict.fromkeys(others, "another set of tensors (averaged weights, optimizer)")
    _check_statistics(layout, source)
    return layout


def _contains_tensors(node: dict) -> bool:
    return any(
        isinstance(v, Tensor) or isinstance(v, dict) and _contains_tensors(v) for v in node.values()
    )


def _split_state(contents: dict, source: object) -> tuple[dict[str, Tensor], dict]:
    """Return the state dict and the other contents of the file."""
    key = next((k for k in ("model", "state_dict") if isinstance(contents.get(k), dict)), None)
    state = contents[key] if key else contents
    bad = [k for k, v in state.items() if not isinstance(v, Tensor)]
    if bad or not state:
        what = f"'{bad[0]}' is a {type(state[bad[0]]).__name__}" if bad else "it is empty"
        raise UserError(f"{source}: not a dictionary of tensors ({what}). Save a state_dict.")
    if not all(isinstance(k, str) for k in state):
        raise UserError(f"{source}: some keys are not strings. Save a state_dict.")
    return state, {k: v for k, v in contents.items() if key and k != key}


# The `robustness` library saves two copies of the network, and the second copy is inside the
# attacker. Each copy has its own normalization. This project saves one network and one
# normalization.
_COPY = "attacker."
_STATISTICS = {
    "mean": ("normalizer.new_mean", "attacker.normalize.new_mean", "normalize.mean"),
    "std": ("normalizer.new_std", "attacker.normalize.new_std", "normalize.std"),
}
_NET_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.")


def _classifier(state: dict[str, Tensor], rest: dict, source: object) -> Layout:
    """Extract a network from a plain, DDP, Lightning, timm, `robustness` or project file."""
    state, prefix = _strip(state, ("module.",))
    net, copies, statistics, dropped = {}, {}, {}, {}
    for key, tensor in state.items():
        part = next((part for part, names in _STATISTICS.items() if key in names), None)
        if part:
            tensor = tensor.float()
            if not torch.equal(statistics.setdefault(part, tensor), tensor):
                raise UserError(f"{source}: '{prefix}{key}' differs from the first normalization.")
            dropped[prefix + key] = "normalization, saved as mean and std"
        elif key.startswith(_COPY):
            copies[key] = tensor
        else:
            net[key] = tensor
    for key, tensor in copies.items():
        original = net.get(key.removeprefix(_COPY))
        if original is None or not torch.equal(original, tensor):
            raise UserError(
                f"{source}: '{prefix}{key}' is not a copy of the network's tensor. Only plain "
                "classifiers of the robustness library are supported."
            )
        dropped[prefix + key] = "identical copy inside the attacker"
    net, _ = _strip(net, _NET_PREFIXES)
    renamed = {_legacy_densenet(key): tensor for key, tensor in net.items()}
    if len(renamed) < len(net):
        raise UserError(f"{source}: a tensor has both its old and its new DenseNet name.")
    ours = rest.get("format") == FORMAT
    if ours and repr(rest.get("version")) != str(FORMAT_VERSION):  # versions can be tensors
        raise UserError(
            f"{source}: format version {rest.get('version')} is not supported, only "
            f"{FORMAT_VERSION}. Install a newer release."
        )
    name = "robust_backbones" if ours else "robustness" if copies or statistics else "torchvision"
    metadata = _metadata(rest) or _plain_values(rest)
    recorded = _recorded_statistics(metadata, source)
    for part in statistics.keys() & recorded.keys():
        one, two = statistics[part].flatten(), recorded[part].flatten()
        if one.shape != two.shape or not torch.allclose(one, two, atol=1e-6):
            raise UserError(
                f"{source}: {part} differs between the normalization layer and the metadata."
            )
    return Layout(name, renamed, dropped, metadata=metadata, **recorded | statistics)


def _metadata(rest: dict) -> dict:
    """Return the metadata of a file written by this project, or an empty dictionary."""
    return rest["metadata"] if isinstance(rest.get("metadata"), dict) else {}


def _recorded_statistics(metadata: dict, source: object) -> dict[str, Tensor]:
    """Return the mean and std in the metadata as tensors."""
    found = {part: metadata[part] for part in _STATISTICS if metadata.get(part) is not None}
    for part, values in found.items():
        numbers = isinstance(values, (list, tuple)) and all(isinstance(v, float) for v in values)
        if not numbers:
            raise UserError(f"{source}: {part} is {values!r}. It must be three numbers in [0, 1].")
    return {part: torch.tensor(values) for part, values in found.items()}


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
    return {k: v for k, v in rest.items() if isinstance(v, (int, float, str, bool))}


def _strip(state: dict, prefixes: tuple[str, ...]) -> tuple[dict, str]:
    """Remove the prefixes that all keys share. Also return the removed string."""
    removed = ""
    while found := next((p for p in prefixes if state and all(k.startswith(p) for k in state)), ""):
        state = {key.removeprefix(found): tensor for key, tensor in state.items()}
        removed += found
    return state, removed


def _legacy_densenet(key: str) -> str:
    """Rename a key of torchvision's DenseNet files for its networks: `norm.1` to `norm1`."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key)


def _moco(state: dict[str, Tensor], rest: dict) -> Layout:
    """Extract the query encoder of MoCo and similar methods, without its contrastive head."""
    state, prefix = _strip(state, ("module.", "model."))
    net, dropped = {}, {}
    for key, tensor in state.items():
        name = key.removeprefix("encoder_q.")
        if name == key:
            dropped[prefix + key] = "not part of the query encoder (key encoder, queue)"
        elif name.startswith("fc."):
            dropped[prefix + key] = "contrastive head, not a classifier"
        else:
            net[name] = tensor
    return Layout("moco", net, dropped, metadata=_plain_values(rest))


def _detectron2(
    state: dict[str, Tensor], rest: dict, source: object, from_detector: bool, assume_rgb: bool
) -> Layout:
    """Extract the backbone from a converted file or from a whole detector."""
    stem = min((key for key in state if key.endswith("stem.conv1.weight")), key=len)
    prefix = stem.removesuffix("stem.conv1.weight")
    metadata = _metadata(rest)
    order = metadata.get("channel_order")
    if order not in (None, "RGB"):
        raise UserError(f"{source}: the network expects {order} images. Only RGB is supported.")
    if order is None and not assume_rgb:
        raise UserError(
            f"{source}: the channel order is not recorded. Detectron2's own models expect BGR and "
            "have STRIDE_IN_1X1 True. If this model expects RGB and has STRIDE_IN_1X1 False, pass "
            "--assume-rgb."
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
            f"{source}: the file is a whole detector ({len(outside)} tensors outside the "
            f"backbone, such as '{outside[0]}'). To extract its backbone, pass --from-detector."
        )
    dropped = dict.fromkeys(outside, "part of the detector, outside the backbone")
    statistics |= _recorded_statistics(metadata, source)
    try:
        tensors = to_torchvision(inside)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return Layout("detectron2", tensors, dropped, **statistics, metadata=metadata)
