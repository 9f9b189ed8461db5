"""Build torchvision networks by name, and recognize an architecture from its tensors."""

import re
from collections import OrderedDict
from functools import cache

import torch
from torch import Tensor, nn
from torchvision.models import get_model, resnet

from robust_backbones.archs import ARCHS, ResNetArch
from robust_backbones.core.errors import UserError, choose_from

BATCH_COUNTER = "num_batches_tracked"  # BatchNorm buffer that PyTorch before 0.4.1 did not save


def build_network(arch: str, num_classes: int = 1000) -> nn.Module:
    """Build a torchvision network with random weights.

    Args:
        arch: key of `archs.ARCHS`.
        num_classes: number of outputs of the last layer.

    Returns:
        Network that maps normalized images `(N, 3, H, W)` to logits `(N, num_classes)`.

    Raises:
        UserError: `arch` is unknown.
    """
    check_arch(arch)
    row = ARCHS[arch]
    if not isinstance(row, ResNetArch):
        return get_model(arch, weights=None, num_classes=num_classes)
    block = resnet.Bottleneck if row.bottleneck else resnet.BasicBlock
    return resnet.ResNet(
        block, list(row.blocks), num_classes, groups=row.groups, width_per_group=row.width_per_group
    )


def check_arch(arch: str) -> None:
    """Raise a UserError if `arch` is not a key of `archs.ARCHS`."""
    if arch not in ARCHS:
        raise UserError(f"architecture '{arch}' is unknown. {choose_from(arch, ARCHS)}")


def recognize(tensors: dict[str, Tensor], expected: str | None, source: object) -> str:
    """Find the architecture whose tensor names and shapes match exactly.

    Any number of classes is allowed. The head and BatchNorm's batch counters may be missing.

    Args:
        tensors: `{torchvision name: tensor}`.
        expected: architecture that the user expects; None accepts any.
        source: file or name of the tensors, for error messages.

    Returns:
        Key of `archs.ARCHS`.

    Raises:
        UserError: the matching architecture is not `expected`, or no architecture matches. The
            message then lists differences from the expected or most similar architecture.
    """
    if expected is not None:
        check_arch(expected)
    likely = _most_similar(tensors)
    differences = _differences(tensors, likely)
    if not differences and expected in (None, likely):
        return likely
    if not differences:
        raise UserError(
            f"{source}: the network is a {likely}, not a {expected}. Pass --arch {likely} or omit "
            "--arch."
        )
    if description := _unsupported(tensors, likely):
        raise UserError(
            f"{source}: the network is not supported. {description}. Supported are "
            f"{', '.join(ARCHS)}."
        )
    nearest = expected or likely
    lines = _differences(tensors, nearest)
    more = f", and {len(lines) - 5} more" if len(lines) > 5 else ""
    raise UserError(
        f"{source}: the network is not supported. Differences from {nearest}: "
        f"{', '.join(lines[:5])}{more}."
    )


# Patterns of keys in torchvision, timm and the authors' code, and the networks that have them. No
# supported network has such keys.
_FAMILIES = [
    (re.compile(rf"(^|\.)({pattern})"), family)
    for pattern, family in (
        (r"relative_position_bias_table|cpb_mlp\.", "a Swin transformer"),
        (r"(layers?|\w*blocks)\.\w*\d+\.(attn|attention|self_attention)\.", "a ViT"),
        (r"stages\.\d\.(blocks\.)?\d+\.(conv_dw|dwconv)\.|layer_scale$", "a ConvNeXt"),
        (r"_?conv_stem\.|features\.\d+(\.\d+)?\.block\.", "an EfficientNet or MobileNetV3"),
        (r"trunk_output\.|s1\.b1\.", "a RegNet"),
        (r"Mixed_5b\.|inception3a\.", "an Inception"),
        (r"features\.\d+\.squeeze\.", "a SqueezeNet"),
        (r"features\.0\.weight$", "a VGG or AlexNet"),
        (r"stages\.\d\.blocks\.\d+\.conv1\.|block1\.unit01\.", "a ResNetV2"),
        (
            r"layer1\.0\.(se|se_module|conv[12]\.(attn|paths))\.",
            "a ResNet with attention (SE, ECA, SK)",
        ),
        (r"conv1\.0\.weight$", "a ResNet with a deep stem (ResNet-C, -D, -S)"),
        (r"layer\d\.\d\.shortcut\.|block1\.layer\.0\.", "a ResNet for CIFAR"),
    )
]


def _unsupported(tensors: dict[str, Tensor], likely: str) -> str:
    """Describe a network unlike all supported ones. Return "" if it resembles one of them."""
    row = ARCHS[likely]
    if row.marker in tensors and not isinstance(row, ResNetArch):
        return ""
    for pattern, family in _FAMILIES:
        if key := next(filter(pattern.search, tensors), None):
            return f"Its keys, such as '{key}', look like {family}"
    if row.marker in tensors or any(_blocks(tensors)):
        return ""
    return f"Its keys, such as '{next(iter(tensors), '')}', match no supported network"


# Names of networks with the same tensors as a supported network, but different operations.
_OTHER_OPERATIONS = {
    re.compile(pattern): what
    for pattern, what in (
        (r"blur|resne[xts]*taa\d", "anti-aliased pooling"),
        (r"leaky|silu|swish|gelu|mish|softplus|(?<!r)elu", "an activation other than ReLU"),
        (r"dilat", "dilated convolutions"),
        (r"caffe", "strides in the 1x1 convolutions"),
    )
}


def check_operations(metadata: dict, source: object) -> None:
    """Reject a network whose recorded name implies operations that its tensors do not show.

    Args:
        metadata: metadata of the file, such as timm's `arch`.
        source: name of the file in error messages.

    Raises:
        UserError: the name belongs to an anti-aliased, leaky, dilated or similar network.
    """
    for key in ("arch", "architecture", "model_name"):
        name = str(metadata.get(key, ""))
        for pattern, what in _OTHER_OPERATIONS.items():
            if pattern.search(name.lower()):
                raise UserError(
                    f"{source}: {key} '{name[:100]}' has {what}, which is not supported. Its "
                    "tensors fit a supported network, but the features would be wrong."
                )


def _most_similar(tensors: dict[str, Tensor]) -> str:
    """Return the architecture that is most similar to the tensors.

    Networks other than ResNets have a marker tensor. ResNets differ in their blocks and widths.
    """
    for name, row in ARCHS.items():
        if row.marker in tensors and not isinstance(row, ResNetArch):
            return name

    def distance(name: str) -> tuple[int, int]:
        row = resnets[name]
        blocks = sum(abs(a - b) for a, b in zip(row.blocks, _blocks(tensors), strict=True))
        inner = row.groups * row.width_per_group**2  # as `_inner_size` for this architecture
        return blocks + 100 * (row.bottleneck != bottleneck), abs(inner - found_inner)

    bottleneck = "layer1.0.conv3.weight" in tensors
    found_inner = _inner_size(tensors)
    resnets = {name: row for name, row in ARCHS.items() if isinstance(row, ResNetArch)}
    return min(resnets, key=distance)


def _blocks(tensors: dict[str, Tensor]) -> list[int]:
    """Count the residual blocks in each stage of a ResNet."""
    stages = [set(), set(), set(), set()]
    for name in tensors:
        parts = name.split(".")
        if parts[0] in ("layer1", "layer2", "layer3", "layer4") and len(parts) > 1:
            stages[int(parts[0][-1]) - 1].add(parts[1])
    return [len(stage) for stage in stages]


def _inner_size(tensors: dict[str, Tensor]) -> int:
    """Return output x input channels of `layer1.0.conv2`, which depend on width and groups."""
    kernel = tensors.get("layer1.0.conv2.weight")
    if kernel is None:
        return 0
    return kernel.shape[0] * (kernel.shape[1] if kernel.ndim > 1 else 1)


def _differences(tensors: dict[str, Tensor], arch: str) -> list[str]:
    """Return one description per difference between the tensors and the architecture `arch`."""
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
        elif not name.endswith(BATCH_COUNTER) and (heads or not name.startswith(head)):
            lines.append(f"missing '{name}'")
    return lines


def with_module_versions(tensors: dict[str, Tensor], arch: str) -> OrderedDict:
    """Convert tensors to a state dict with module versions, which MNASNet needs for loading."""
    with torch.device("meta"):
        versions = vars(build_network(arch).state_dict())  # the attribute `_metadata`
    state = OrderedDict(tensors)
    vars(state).update(versions)
    return state


@cache
def _shapes(arch: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {k: tuple(v.shape) for k, v in build_network(arch).state_dict().items()}
