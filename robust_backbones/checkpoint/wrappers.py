"""Remove everything that training programs add to a network: prefixes, copies, losses, heads.

Every key is used, dropped with a reason, or named in an error. A key outside the network is dropped
only if the table `_EXTRAS` has its name. A copy is dropped only if it is equal or an average.
"""

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robust_backbones.archs import ARCHS, FAMILIES, Arch
from robust_backbones.checkpoint.clip import image_tower
from robust_backbones.core.errors import UserError


@dataclass
class Unwrapped:
    """A network whose wrappers are removed.

    Attributes:
        tensors: `{torchvision name: tensor}`. Names that no network has are included.
        statistics: mean and std of a normalization layer, `(3,)` each; empty without such a layer.
        dropped: `{key: reason why the key is not in tensors}`.
        kind: `"robustness"`, `"moco"`, `"clip"` or `"torchvision"`.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    kind: str = "torchvision"


# Names of a normalization layer's buffers. Each buffer has three numbers.
_STATISTICS = {
    "mean": re.compile(r"(.*\.)?_?((new|image|img|pixel|norm|input)_)?(means?|mu)"),
    "std": re.compile(r"(.*\.)?_?((new|image|img|pixel|norm|input)_)?(stds?|sds?|sigma)"),
}
# The `robustness` library saves two copies of the network, and the second copy is inside the
# attacker. Each copy has its own normalization.
_COPY = re.compile(r"(^|.*\.)attacker\.")
NOT_LINEAR = "classifier head that is not one linear layer"
OUTSIDE = "head outside the network"
CONTRASTIVE = "contrastive head, not a classifier"
# Parts outside the network, by name prefix below the shared wrappers.
_EXTRAS = [
    (re.compile(rf"({pattern})(\.|$)"), reason)
    for pattern, reason in (
        (r"n_averaged", "counter of averaged models"),
        (r"(\w+_)?(criterions?|loss|losses|loss_(fn|func|function))\d*", "part of the loss"),
        (r"(\w+_)?(metrics?|accuracy|acc\d?|auroc|f1)", "metric of the training run"),
        (r"encoder_k|key_encoder|momentum_\w+", "momentum encoder, not the trained network"),
        (r"(\w+_)?(ema|swa)(_\w+)?|(avg|averaged)_model", "averaged copy of the network"),
        (r"proj|project\w*|predict\w*|prototypes?|queue\w*", "layer of contrastive training"),
        (r"heads?|(?!conv_)\w+_head|linear\w*", OUTSIDE),
    )
]
_HEAD_BESIDE = re.compile(r"(fc|classifier)\.")  # inside a network, these are its own head
_FEWEST_KEYS = 50  # smallest number of keys of a supported network; smaller parts are heads


def unwrap_network(
    state: dict[str, Tensor], source: object, expected: Arch | None = None
) -> Unwrapped:
    """Extract a network from the state dict of any training program.

    Args:
        state: `{key: tensor}`.
        source: name of the file in error messages.
        expected: architecture that the user expects; None: any of `archs`.

    Raises:
        UserError: keys are neither in the network nor in a known part around it, the file contains
            several networks, or copies differ.
    """
    if clip := image_tower(state, source):
        return Unwrapped(clip[0], dropped=clip[1], kind="clip")
    renamed = {_legacy_densenet(key): tensor for key, tensor in state.items()}
    if len(renamed) < len(state):
        raise UserError(f"{source}: a tensor has both its old and its new DenseNet name.")
    state, networks = renamed, find_networks(renamed, expected)
    prefix = _main_network(networks) if networks else _shared_wrappers(state)
    head = networks.get(prefix)
    found, odd = Unwrapped(), []
    for key, tensor in state.items():
        if part := _statistic(key, tensor):
            _add_statistic(found, part, key, tensor, source)
        elif _COPY.match(key):
            original = state.get(_COPY.sub(r"\1", key))
            if original is None or not torch.equal(original, tensor):
                raise UserError(
                    f"{source}: '{key}' is not a copy of the network's tensor. Only plain "
                    "classifiers of the robustness library are supported."
                )
            found.dropped[key], found.kind = "identical copy inside the attacker", "robustness"
        elif key.startswith(prefix):
            name = key.removeprefix(prefix)
            own = head and name.partition(".")[0] == head.partition(".")[0]
            if not own and (reason := _extra(name)):
                found.dropped[key] = reason
            else:
                found.tensors[name] = tensor
        else:
            name = _below_wrappers(key, prefix)
            if head == "fc" and prefix.endswith("backbone.") and _MMPRETRAIN_HEAD.fullmatch(name):
                found.tensors[name.removeprefix("head.")] = tensor
            elif reason := _extra(name) or (_HEAD_BESIDE.match(name) and OUTSIDE):
                found.dropped[key] = reason
            else:
                odd.append(key)
    if odd:
        raise UserError(f"{source}: {_in_the_way(odd, prefix, networks)}")
    if head:
        _drop_head(found, f"{head}.", prefix)
    return found


_STAGE = re.compile(r"(^|\.)(layers|stages)\.\d+\.$")  # of a Swin; it has the marker of a ViT


def find_networks(state: dict[str, Tensor], expected: Arch | None = None) -> dict[str, str]:
    """Find the supported networks in a state dict.

    Args:
        state: `{key: tensor}`.
        expected: further architecture to search for; None: only the tables of `archs`.

    Returns:
        `{prefix of the network's keys: name of its head}`, the largest network first.
    """
    markers: dict[str, tuple[str, ...]] = {row.marker: (row.head,) for row in ARCHS.values()}
    markers |= {marker: row.heads for row in FAMILIES.values() for marker in row.markers}
    if expected:
        markers[expected.marker] = (expected.head,)
    found = {}
    for key in state:
        for marker, heads in markers.items():
            prefix = key.removesuffix(marker)
            if prefix != key and prefix[-1:] in ("", ".") and not _STAGE.search(prefix):
                there = [head for head in heads if f"{prefix}{head}.weight" in state]
                found[prefix] = (there or heads)[0]
    sizes = dict.fromkeys(found, 0)
    for key in state:
        if fitting := [prefix for prefix in found if key.startswith(prefix)]:
            sizes[max(fitting, key=len)] += 1
    large = [prefix for prefix in found if sizes[prefix] >= _FEWEST_KEYS]
    return {prefix: found[prefix] for prefix in sorted(large, key=lambda p: -sizes[p])}


def _main_network(networks: dict[str, str]) -> str:
    """Return the prefix of the largest network that is not a copy."""

    def is_copy(prefix: str) -> bool:
        names = [prefix[match.end() :] for match in re.finditer(r"^|\.", prefix)]
        return bool(_COPY.match(prefix)) or any(map(_extra, names))

    return next((prefix for prefix in networks if not is_copy(prefix)), next(iter(networks)))


def _shared_wrappers(state: dict) -> str:
    """Return the prefix of common wrappers that all keys share, if no network is recognized."""
    wrappers = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.")
    prefix = ""
    while found := next((w for w in wrappers if all(k.startswith(prefix + w) for k in state)), ""):
        prefix += found
    return prefix


def _below_wrappers(key: str, prefix: str) -> str:
    """Remove the leading names that a key outside the network shares with the network's prefix."""
    for part in prefix.split("."):
        if not key.startswith(f"{part}."):
            break
        key = key.removeprefix(f"{part}.")
    return key


_MMPRETRAIN_HEAD = re.compile(r"head\.fc\.(weight|bias)")  # next to its `backbone.`


def _extra(name: str) -> str:
    """Return the reason to drop a part around the network, or an empty string."""
    return next((reason for pattern, reason in _EXTRAS if pattern.match(name)), "")


def _statistic(key: str, tensor: Tensor) -> str | None:
    """Return whether a tensor is a mean or std that `_STATISTICS` lists."""
    return statistic_name(key) if tensor.numel() == 3 else None


def statistic_name(key: str) -> str | None:
    """Return `mean` or `std` if a key has the name of one that `_STATISTICS` lists, else None."""
    return next((part for part, names in _STATISTICS.items() if names.fullmatch(key)), None)


def _add_statistic(found: Unwrapped, part: str, key: str, tensor: Tensor, source: object) -> None:
    tensor = tensor.float().flatten()
    if not torch.equal(found.statistics.setdefault(part, tensor), tensor):
        raise UserError(f"{source}: '{key}' differs from the first normalization.")
    found.dropped[key] = "normalization, saved as mean and std"
    if key.endswith(f"new_{part}"):  # the name of the `robustness` library
        found.kind = "robustness"


def _in_the_way(odd: list[str], prefix: str, networks: dict[str, str]) -> str:
    """Return the message for keys that belong neither to the network nor to a known part."""
    convert = "robust-backbones convert FILE TARGET --key"
    if others := [p for p in networks if p != prefix and any(key.startswith(p) for key in odd)]:
        names = " and ".join(p.rstrip(".") or "(no prefix)" for p in (prefix, *others))
        return f"the file contains several networks: {names}. Choose one: {convert} NAME"
    count = f" and {len(odd) - 1} more keys are" if odd[1:] else " is"
    return (
        f"'{odd[0]}'{count} outside the network, whose keys begin with '{prefix}'. To read the "
        f"network alone: {convert} {prefix.rstrip('.')}"
    )


def _drop_head(found: Unwrapped, head: str, prefix: str) -> None:
    """Move the head to `dropped` if it is not one linear layer, or not a classifier."""
    names = [name for name in found.tensors if name.startswith(head)]
    moco = prefix.endswith("encoder_q.")
    found.kind = "moco" if moco else found.kind
    if moco or not {f"{head}weight", f"{head}bias"}.issuperset(names):
        for name in names:
            del found.tensors[name]
            found.dropped[prefix + name] = CONTRASTIVE if moco else NOT_LINEAR


def _legacy_densenet(key: str) -> str:
    """Rename a key of torchvision's DenseNet files for its networks: `norm.1` to `norm1`."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key)
