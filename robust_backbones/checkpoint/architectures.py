"""Architecture names <-> torchvision networks: build one, or recognise one from its tensors."""

from collections import OrderedDict
from functools import cache

import torch
from torch import Tensor, nn

from robust_backbones.core.errors import UserError
from robust_backbones.zoo import ARCHS, ResNetArch

COUNTER = "num_batches_tracked"  # BatchNorm's; files older than PyTorch 0.4.1 have none


def build_network(arch: str, num_classes: int = 1000) -> nn.Module:
    """A torchvision network with random weights, normalised `(N, 3, H, W)` -> `(N, classes)`.

    Raises:
        UserError: `arch` is not a key of `zoo.ARCHS`.
    """
    check_name(arch)
    import torchvision.models  # a second of import that --help does not need
    from torchvision.models import resnet

    row = ARCHS[arch]
    if not isinstance(row, ResNetArch):
        return torchvision.models.get_model(arch, weights=None, num_classes=num_classes)
    block = resnet.Bottleneck if row.bottleneck else resnet.BasicBlock
    return resnet.ResNet(
        block, list(row.blocks), num_classes, groups=row.groups, width_per_group=row.width_per_group
    )


def check_name(arch: str) -> None:
    """Raise a UserError unless `arch` is a key of `zoo.ARCHS`."""
    if arch not in ARCHS:
        raise UserError(f"architecture '{arch}' is unknown; one of: {', '.join(ARCHS)}.")


def recognise(tensors: dict[str, Tensor], believed: str | None, source: object) -> str:
    """The architecture whose names and shapes `tensors` have, all of them.

    The number of classes, a missing head and missing BatchNorm counters are free.

    Args:
        tensors: torchvision names.
        believed: what the user says it is; checked.
        source: what the error calls the tensors.

    Raises:
        UserError: no architecture fits (the nearest one's differences are listed), or another one
            than the believed.
    """
    if believed is not None:
        check_name(believed)
    likely = _likely(tensors)
    differences = _differences(tensors, likely)
    if not differences and believed in (None, likely):
        return likely
    if not differences:
        raise UserError(
            f"{source} is a {likely}, not a {believed}; pass --arch {likely} or leave it out."
        )
    nearest = believed or likely
    lines = _differences(tensors, nearest)
    more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
    raise UserError(
        f"{source} is no supported network; against {nearest}: {'; '.join(lines[:5])}{more}."
    )


def _likely(tensors: dict[str, Tensor]) -> str:
    """The one architecture worth comparing with: by marker, and by size among ResNets."""
    for name, row in ARCHS.items():
        if row.marker in tensors and not isinstance(row, ResNetArch):
            return name

    def distance(name: str) -> tuple[int, int]:
        row = resnets[name]
        blocks = sum(abs(a - b) for a, b in zip(row.blocks, _blocks(tensors), strict=True))
        return blocks + 100 * (row.bottleneck != bottleneck), abs(_inner(row) - inner)

    bottleneck = "layer1.0.conv3.weight" in tensors
    convolution = tensors.get("layer1.0.conv2.weight")
    inner = _size(convolution) if convolution is not None else 0
    resnets = {name: row for name, row in ARCHS.items() if isinstance(row, ResNetArch)}
    return min(resnets, key=distance)


def _blocks(tensors: dict[str, Tensor]) -> list[int]:
    """Residual blocks per stage."""
    stages = [set(), set(), set(), set()]
    for name in tensors:
        parts = name.split(".")
        if parts[0] in ("layer1", "layer2", "layer3", "layer4") and len(parts) > 1:
            stages[int(parts[0][-1]) - 1].add(parts[1])
    return [len(stage) for stage in stages]


def _size(convolution: Tensor) -> int:
    """Width and groups of a convolution in one number: output x input channels of its kernel."""
    return convolution.shape[0] * (convolution.shape[1] if convolution.ndim > 1 else 1)


def _inner(row: ResNetArch) -> int:
    """The same number of `layer1.0.conv2.weight` of an architecture."""
    return row.groups * row.width_per_group**2


def _differences(tensors: dict[str, Tensor], arch: str) -> list[str]:
    """How `tensors` differ from `arch`, in words."""
    expected, head = _shapes(arch), ARCHS[arch].head + "."
    lines = [f"unknown '{name}'" for name in tensors if name not in expected]
    heads = [name for name in tensors if name.startswith(head)]
    if len({len(tensors[name]) for name in heads if tensors[name].ndim}) > 1:
        names = " and ".join(f"'{name}'" for name in heads)
        lines.append(f"{names} have different numbers of classes")
    for name, shape in expected.items():
        if name in tensors:
            found = tuple(tensors[name].shape)
            if name.startswith(head):
                found, shape = found[1:], shape[1:]
            if found != shape:
                lines.append(f"'{name}' has shape {found} instead of {shape}")
        elif not name.endswith(COUNTER) and (heads or not name.startswith(head)):
            lines.append(f"missing '{name}'")
    return lines


def with_versions(tensors: dict[str, Tensor], arch: str) -> OrderedDict:
    """The tensors as `state_dict()` gives them: with the modules' version numbers, without which
    MNASNet refuses to load."""
    with torch.device("meta"):
        versions = vars(build_network(arch).state_dict())  # `_metadata`
    state = OrderedDict(tensors)
    vars(state).update(versions)
    return state


@cache
def _shapes(arch: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {k: tuple(v.shape) for k, v in build_network(arch).state_dict().items()}
