"""How checkpoints wrap a network: contents of a file -> its tensors under torchvision's names.

Each wrapping is taken off by rules that account for every key: a prefix goes only where all keys
have it, a copy only if it is equal, a part only with a reason that is kept.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robust_backbones.checkpoint.key_names import to_torchvision
from robust_backbones.core.errors import UserError

FORMAT = "robust_backbones.classifier"  # marks our own files; see docs/formats.md
FORMAT_VERSION = 1


@dataclass
class Layout:
    """What a file holds.

    Attributes:
        name: which wrapping it was.
        tensors: the network's, under torchvision's names.
        dropped: `{key in the file: why it is not among the tensors}`.
        mean, std: the normaliser's statistics, RGB for inputs in [0, 1], if the file has one.
        metadata: what the file says of itself, plain types.
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
    """Recognise the wrapping and take it off.

    Args:
        contents: what the file held.
        source: what errors call it.
        from_detector: take the backbone out of a whole Detectron2 detector.
        assume_rgb: a Detectron2 file that says nothing of its input takes RGB images with
            ImageNet's statistics, and its strides are torchvision's.

    Raises:
        UserError: not a dictionary of tensors, a newer format, parts that contradict each other, a
            BGR network, or a whole detector without `from_detector`.
    """
    if not isinstance(contents, dict):
        kind = type(contents).__name__
        raise UserError(f"{source} holds a {kind}, not a dictionary of tensors; save a state_dict.")
    state, rest = _state(contents, source)
    if any(key.endswith("stem.conv1.weight") for key in state):
        layout = _detectron2(state, rest, source, from_detector, assume_rgb)
    elif any("encoder_q." in key for key in state):
        layout = _moco(state, rest)
    else:
        layout = _classifier(state, rest, source)
    others = [k for k, v in rest.items() if isinstance(v, dict) and _holds_tensors(v)]
    layout.dropped |= dict.fromkeys(others, "another set of tensors (averaged weights, optimizer)")
    _check_statistics(layout, source)
    return layout


def _holds_tensors(node: dict) -> bool:
    return any(
        isinstance(v, Tensor) or isinstance(v, dict) and _holds_tensors(v) for v in node.values()
    )


def _state(contents: dict, source: object) -> tuple[dict[str, Tensor], dict]:
    """The state dict, and the rest of the file."""
    key = next((k for k in ("model", "state_dict") if isinstance(contents.get(k), dict)), None)
    state = contents[key] if key else contents
    bad = [k for k, v in state.items() if not isinstance(v, Tensor)]
    if bad or not state:
        what = f"'{bad[0]}' is a {type(state[bad[0]]).__name__}" if bad else "it is empty"
        raise UserError(f"{source} is not a dictionary of tensors: {what}; save a state_dict.")
    if not all(isinstance(k, str) for k in state):
        raise UserError(f"{source} has keys that are not names; save a state_dict.")
    return state, {k: v for k, v in contents.items() if key and k != key}


# The `robustness` library keeps the network twice, once inside the attacker, and two normalisers;
# our own files have one of each.
_COPY = "attacker."
_STATISTICS = {
    "mean": ("normalizer.new_mean", "attacker.normalize.new_mean", "normalize.mean"),
    "std": ("normalizer.new_std", "attacker.normalize.new_std", "normalize.std"),
}
_NET_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.")


def _classifier(state: dict[str, Tensor], rest: dict, source: object) -> Layout:
    """torchvision, timm, Lightning, DDP, `robustness` and our own files."""
    state, prefix = _strip(state, ("module.",))
    net, copies, statistics, dropped = {}, {}, {}, {}
    for key, tensor in state.items():
        part = next((part for part, names in _STATISTICS.items() if key in names), None)
        if part:
            tensor = tensor.float()
            same = torch.equal(statistics.setdefault(part, tensor), tensor)
            if not same:
                raise UserError(f"{source}: '{prefix}{key}' differs from the other normaliser's.")
            dropped[prefix + key] = "normalisation, kept as mean and std"
        elif key.startswith(_COPY):
            copies[key] = tensor
        else:
            net[key] = tensor
    for key, tensor in copies.items():
        twin = net.get(key.removeprefix(_COPY))
        if twin is None or not torch.equal(twin, tensor):
            raise UserError(
                f"{source}: '{prefix}{key}' is not a copy of the network's own tensor; the file is "
                "not a plain robust classifier."
            )
        dropped[prefix + key] = "equal copy held by the attacker"
    net, _ = _strip(net, _NET_PREFIXES)
    renamed = {_legacy_densenet(key): tensor for key, tensor in net.items()}
    if len(renamed) < len(net):
        raise UserError(f"{source} holds a tensor under its old and its new DenseNet name.")
    own = rest.get("format") == FORMAT
    if own and repr(rest.get("version")) != str(FORMAT_VERSION):  # it may be a tensor
        raise UserError(
            f"{source} has format version {rest.get('version')}; this release reads "
            f"{FORMAT_VERSION}; install a newer one."
        )
    name = "robust_backbones" if own else "robustness" if copies or statistics else "torchvision"
    metadata = _metadata(rest) or _simple(rest)
    recorded = _recorded(metadata, source)
    for part in statistics.keys() & recorded.keys():
        one, two = statistics[part].flatten(), recorded[part].flatten()
        if one.shape != two.shape or not torch.allclose(one, two, atol=1e-6):
            raise UserError(f"{source}: the normaliser's {part} and the recorded one differ.")
    return Layout(name, renamed, dropped, metadata=metadata, **recorded | statistics)


def _metadata(rest: dict) -> dict:
    """What a file of ours says of itself."""
    return rest["metadata"] if isinstance(rest.get("metadata"), dict) else {}


def _recorded(metadata: dict, source: object) -> dict[str, Tensor]:
    """The normaliser's statistics in the metadata."""
    found = {part: metadata[part] for part in _STATISTICS if metadata.get(part) is not None}
    for part, values in found.items():
        numbers = isinstance(values, (list, tuple)) and all(isinstance(v, float) for v in values)
        if not numbers:
            raise UserError(
                f"{source}: its {part} is {values!r}; three numbers in [0, 1] are needed."
            )
    return {part: torch.tensor(values) for part, values in found.items()}


_BGR_MEAN = torch.tensor([0.406, 0.456, 0.485])  # ImageNet's, backwards


def _check_statistics(layout: Layout, source: object) -> None:
    """Both or none, and not of a BGR network."""
    if (layout.mean is None) != (layout.std is None):
        raise UserError(f"{source} has a mean or a standard deviation, but not both.")
    mean = layout.mean
    if mean is not None and mean.numel() == 3 and (mean.flatten() - _BGR_MEAN).abs().max() < 0.01:
        raise UserError(f"{source} takes BGR images; only RGB networks are supported.")


def _simple(rest: dict) -> dict:
    """Plain values of a foreign file, such as epoch and accuracy."""
    return {k: v for k, v in rest.items() if isinstance(v, (int, float, str, bool))}


def _strip(state: dict, prefixes: tuple[str, ...]) -> tuple[dict, str]:
    """Remove leading prefixes as long as all keys share one; also say what was removed."""
    removed = ""
    while found := next((p for p in prefixes if state and all(k.startswith(p) for k in state)), ""):
        state = {key.removeprefix(found): tensor for key, tensor in state.items()}
        removed += found
    return state, removed


def _legacy_densenet(key: str) -> str:
    """torchvision's DenseNet files still say `norm.1` where the network says `norm1`."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key)


def _moco(state: dict[str, Tensor], rest: dict) -> Layout:
    """MoCo and its like: the query encoder, whose head is no classifier."""
    state, prefix = _strip(state, ("module.", "model."))
    net, dropped = {}, {}
    for key, tensor in state.items():
        name = key.removeprefix("encoder_q.")
        if name == key:
            dropped[prefix + key] = "not the query encoder (key encoder, queue)"
        elif name.startswith("fc."):
            dropped[prefix + key] = "contrastive head: no classifier"
        else:
            net[name] = tensor
    return Layout("moco", net, dropped, metadata=_simple(rest))


def _detectron2(
    state: dict[str, Tensor], rest: dict, source: object, from_detector: bool, assume_rgb: bool
) -> Layout:
    """A converted backbone, or the backbone of a whole detector."""
    stem = min((key for key in state if key.endswith("stem.conv1.weight")), key=len)
    prefix = stem.removesuffix("stem.conv1.weight")
    metadata = _metadata(rest)
    order = metadata.get("channel_order")
    if order not in (None, "RGB"):
        raise UserError(f"{source} takes {order} images; only RGB networks are supported.")
    if order is None and not assume_rgb:
        raise UserError(
            f"{source} does not say what images it takes; Detectron2's own models take BGR and "
            "have STRIDE_IN_1X1 True. If this one takes RGB, with False, pass --assume-rgb."
        )
    if metadata.get("stride_in_1x1"):
        raise UserError(f"{source} has STRIDE_IN_1X1 True; torchvision has no such network.")
    pixels = {"mean": state.get("pixel_mean"), "std": state.get("pixel_std")}
    statistics = {part: t.flatten() / 255 for part, t in pixels.items() if t is not None}
    outside = [key for key in state if not key.startswith(prefix)]
    inside = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
    if outside and not from_detector:
        raise UserError(
            f"{source} is a whole detector ({len(outside)} tensors besides the backbone, such as "
            f"'{outside[0]}'); pass --from-detector to take its backbone out."
        )
    dropped = dict.fromkeys(outside, "part of the detector, not of its backbone")
    statistics |= _recorded(metadata, source)
    try:
        tensors = to_torchvision(inside)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return Layout("detectron2", tensors, dropped, **statistics, metadata=metadata)
