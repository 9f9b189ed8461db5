"""Build networks by name, and recognize an architecture from its tensors."""

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor, nn
from torchvision.models import get_model, resnet

from robust_backbones import timm_networks
from robust_backbones.archs import ARCHS, TIMM, Arch, Family, ResNetArch, check_name
from robust_backbones.core.errors import UserError
from robust_backbones.core.extras import install_command
from robust_backbones.core.input_statistics import IMAGENET, InputStatistics
from robust_backbones.meta_device import meta_device

# Command that writes a timm network to a file that states its name.
_WITH_NAME = f"robust-backbones convert FILE TARGET --to safetensors --arch {TIMM}"
# Keys of torchvision's networks without a row in `ARCHS`, for which timm has different keys.
_OF_TORCHVISION = re.compile(r"features\.\d+\.\d+\.|encoder\.layers\.encoder_layer_\d")
BATCH_COUNTER = "num_batches_tracked"  # BatchNorm buffer that PyTorch before 0.4.1 did not save


@dataclass(frozen=True)
class Recognized:
    """A network that was recognized from its tensors.

    Attributes:
        arch: name of the architecture, as for `build_network`.
        tensors: `{name in the network: tensor}`.
        dropped: `{name in the file: reason why it is not in tensors}`.
    """

    arch: str
    tensors: dict[str, Tensor]
    dropped: dict[str, str] = field(default_factory=dict)


def build_network(arch: str, num_classes: int = 1000, **options: Any) -> nn.Module:
    """Build a network with random weights.

    Args:
        arch: key of `archs.ARCHS`, or `timm:NAME`.
        num_classes: number of outputs of the last layer.
        options: arguments of a timm network, such as `drop_path_rate`.

    Returns:
        Network that maps normalized images `(N, 3, H, W)` to logits `(N, num_classes)`.

    Raises:
        UserError: `arch` is unknown or has no such option, or timm is not installed.
    """
    if arch.startswith(TIMM):
        return timm_networks.build(arch, num_classes, **options)
    check_arch(arch)
    if options:
        raise UserError(f"{arch} has no {', '.join(options)}. Choose a timm network.")
    row = ARCHS[arch]
    if not isinstance(row, ResNetArch):
        return get_model(arch, weights=None, num_classes=num_classes)
    block = resnet.Bottleneck if row.bottleneck else resnet.BasicBlock
    return resnet.ResNet(
        block, list(row.blocks), num_classes, groups=row.groups, width_per_group=row.width_per_group
    )


def check_arch(arch: str) -> None:
    """Check the name of an architecture.

    Raises:
        UserError: `arch` is neither a key of `archs.ARCHS` nor `timm:NAME`, or timm is not
            installed.
    """
    if arch.startswith(TIMM):
        timm_networks.check_name(arch)
    else:
        check_name(arch)


def arch_row(arch: str) -> Arch:
    """Return the last layer and the feature dimension of an architecture.

    Raises:
        UserError: `arch` is unknown, or its last layer is not one linear layer.
    """
    check_arch(arch)
    return timm_networks.row(arch) if arch.startswith(TIMM) else ARCHS[arch]


def usual_statistics(arch: str) -> InputStatistics:
    """Return the input statistics of most networks of an architecture."""
    return timm_networks.statistics(arch) if arch.startswith(TIMM) else IMAGENET


def recognize(
    tensors: dict[str, Tensor], expected: str | None, source: object, stated: str | None = None
) -> Recognized:
    """Find the architecture whose tensor names and shapes match exactly.

    Any number of classes is allowed. The head and BatchNorm's batch counters may be missing.

    Args:
        tensors: `{name: tensor}`, under the names of torchvision, of timm or of the network's
            authors.
        expected: architecture that the user expects; None accepts any.
        source: file or name of the tensors, for error messages.
        stated: architecture that the file states; it is used if the tensors match it.

    Raises:
        UserError: the matching architecture is not `expected`, no architecture matches, or several
            match. The message then lists differences from the expected or most similar
            architecture, or names the matching ones.
    """
    if expected is not None:
        check_arch(expected)
    for arch in filter(None, (expected, stated)):
        if arch.startswith(TIMM) and (found := _matching(tensors, arch)):
            return found
    likely = _most_similar(tensors)
    differences = _differences(tensors, likely)
    if not differences and expected in (None, likely):
        return Recognized(likely, tensors)
    if not differences:
        raise UserError(
            f"{source}: the network is a {likely}, not a {expected}. Pass --arch {likely} or omit "
            "--arch."
        )
    description = "" if expected else _unsupported(tensors, likely)
    if description:
        similar = timm_networks.families(tensors) if timm_networks.installed() else []
        if similar and (found := _of_timm(tensors, similar, source)):
            return found
        fix = f"If timm has it, give its name: {_WITH_NAME}NAME. "
        if not timm_networks.installed():
            fix = f"If timm has it, run: {install_command('timm')}. "
        if any(map(_OF_TORCHVISION.match, tensors)):
            fix = "Use timm's weights for the same network, timm://NAME.TAG. "
        raise UserError(
            f"{source}: the network is not supported. {description}. {fix}Supported torchvision "
            f"networks: {', '.join(ARCHS)}."
        )
    nearest = expected or likely
    lines = _differences(tensors, nearest)
    more = f", and {len(lines) - 5} more" if len(lines) > 5 else ""
    raise UserError(
        f"{source}: the network is not supported. The most similar one is {nearest}. Differences: "
        f"{', '.join(lines[:5])}{more}. Save all tensors, or name the network with --arch."
    )


def _matching(tensors: dict[str, Tensor], arch: str) -> Recognized | None:
    """Return the timm network if the tensors match it, as they are or renamed by timm."""
    if not _differences(tensors, arch):
        return Recognized(arch, tensors)
    renamed = timm_networks.renamed(arch, tensors)
    if renamed is None or _differences(renamed[0], arch):
        return None
    reason = "not part of the network in timm, which computes it"
    return Recognized(arch, renamed[0], dict.fromkeys(renamed[1], reason))


def _of_timm(
    tensors: dict[str, Tensor], families: list[Family], source: object
) -> Recognized | None:
    """Return the network of timm's families that matches the tensors, or None.

    Raises:
        UserError: the tensors match several networks.
    """
    for family in families:
        marker = next(tensors[name].shape for name in family.markers if name in tensors)
        for names in family.networks:
            if _shapes(TIMM + names[0]).get(family.markers[0]) != marker:
                continue
            if found := _matching(tensors, TIMM + names[0]):
                if names[1:]:
                    raise UserError(
                        f"{source}: the tensors fit several networks, whose features differ. Give "
                        f"the name of the right one: {_WITH_NAME}{f' or {TIMM}'.join(names)}."
                    )
                return found
    return None


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


def check_operations(metadata: dict, arch: str, source: object) -> None:
    """Reject a network whose recorded name implies operations that its tensors do not show.

    Args:
        metadata: metadata of the file, such as timm's `arch`.
        arch: architecture that was recognized from the tensors.
        source: name of the file in error messages.

    Raises:
        UserError: the name belongs to an anti-aliased, leaky, dilated or similar network.
    """
    if arch.startswith(TIMM):  # its name was used to recognize it
        return
    for key in _NAME_KEYS:
        name = str(metadata.get(key, ""))
        for pattern, what in _OTHER_OPERATIONS.items():
            if pattern.search(name.lower()):
                raise UserError(
                    f"{source}: {key} '{name[:100]}' has {what}, which is not supported. Its "
                    "tensors fit a supported network, but the features would be wrong."
                )


_NAME_KEYS = ("arch", "architecture", "model_name")


def stated_arch(metadata: dict) -> str | None:
    """Return the timm network that a file's metadata name, or None."""
    for key in _NAME_KEYS:
        name = str(metadata.get(key, ""))
        if name.startswith(TIMM):
            return name
        plain = name.removeprefix("timm/").split(".")[0]
        if plain and plain not in ARCHS and timm_networks.has(plain):
            return TIMM + plain
    return None


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
    expected, head = _shapes(arch), arch_row(arch).head + "."
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
    with meta_device():
        versions = vars(build_network(arch).state_dict())  # the attribute `_metadata`
    state = OrderedDict(tensors)
    vars(state).update(versions)
    return state


@cache
def _shapes(arch: str) -> dict[str, tuple[int, ...]]:
    with meta_device():
        return {k: tuple(v.shape) for k, v in build_network(arch).state_dict().items()}
