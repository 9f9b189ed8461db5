"""Rename the tensors of a ResNet between torchvision and Detectron2. Report dropped tensors."""

import re

from torch import Tensor

from robust_backbones.core.errors import UserError

# Each row has the torchvision name and the Detectron2 name of one kind of tensor. {s} is the stage
# in torchvision (layer1 to layer4), and {t} is the stage in Detectron2 (res2 to res5).
_NAMES = [
    ("conv1.{leaf}", "stem.conv1.{leaf}"),
    ("bn1.{leaf}", "stem.conv1.norm.{leaf}"),
    ("layer{s}.{b}.conv{i}.{leaf}", "res{t}.{b}.conv{i}.{leaf}"),
    ("layer{s}.{b}.bn{i}.{leaf}", "res{t}.{b}.conv{i}.norm.{leaf}"),
    ("layer{s}.{b}.downsample.0.{leaf}", "res{t}.{b}.shortcut.{leaf}"),
    ("layer{s}.{b}.downsample.1.{leaf}", "res{t}.{b}.shortcut.norm.{leaf}"),
]
_FIELDS = {"s": r"[1-4]", "t": r"[2-5]", "b": r"\d+", "i": r"[1-3]", "leaf": r"\w+"}
DROPPED_HEAD = "classifier head, not part of a backbone"
_DROPS = [
    (re.compile(r"fc\.\w+"), DROPPED_HEAD),
    (re.compile(r".*\.num_batches_tracked"), "counter of training batches, no effect on features"),
]


def _pattern(template: str) -> re.Pattern:
    escaped = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    return re.compile(escaped.format(**{k: f"(?P<{k}>{v})" for k, v in _FIELDS.items()}))


_FORWARD = [(_pattern(a), b) for a, b in _NAMES]
_BACKWARD = [(_pattern(b), a) for a, b in _NAMES]


def _translate(name: str, rows: list[tuple[re.Pattern, str]]) -> str | None:
    for pattern, target in rows:
        if match := pattern.fullmatch(name):
            fields = match.groupdict()
            if "s" in fields:
                fields["t"] = int(fields["s"]) + 1
            elif "t" in fields:
                fields["s"] = int(fields["t"]) - 1
            return target.format(**fields)
    return None


def detectron2_name(name: str) -> tuple[str | None, str]:
    """Translate a torchvision name to a Detectron2 name.

    Returns:
        `(Detectron2 name, "")`, or `(None, reason)` if the tensor is not part of a backbone.

    Raises:
        UserError: the name does not belong to a torchvision ResNet.
    """
    for pattern, reason in _DROPS:
        if pattern.fullmatch(name):
            return None, reason
    if target := _translate(name, _FORWARD):
        return target, ""
    raise UserError(
        f"'{name}' is not a tensor of a torchvision ResNet. Only ResNets become backbones."
    )


def torchvision_name(name: str) -> str:
    """Translate a Detectron2 name to a torchvision name.

    Args:
        name: Detectron2 name without a prefix, such as `res2.0.conv1.weight`.

    Raises:
        UserError: the name does not belong to a Detectron2 ResNet.
    """
    if target := _translate(name, _BACKWARD):
        return target
    raise UserError(f"'{name}' is not a tensor of a Detectron2 ResNet.")


def to_detectron2(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename the tensors of a torchvision ResNet to Detectron2 names. Values do not change.

    Args:
        tensors: `{torchvision name: tensor}`.

    Returns:
        `({Detectron2 name: tensor}, {dropped torchvision name: reason})`.

    Raises:
        UserError: a name does not belong to a torchvision ResNet.
    """
    renamed, dropped = {}, {}
    for name, tensor in tensors.items():
        target, reason = detectron2_name(name)
        if target is None:
            dropped[name] = reason
        else:
            assert target not in renamed, f"two names become {target}"
            renamed[target] = tensor
    return renamed, dropped


def to_torchvision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a Detectron2 ResNet to torchvision names. Values do not change.

    Args:
        tensors: `{Detectron2 name without a prefix: tensor}`.

    Raises:
        UserError: a name does not belong to a Detectron2 ResNet.
    """
    return {torchvision_name(name): tensor for name, tensor in tensors.items()}
