"""torchvision names -> Detectron2 names, every key accounted for."""

import re

from torch import Tensor

from robust_backbones import __version__
from robust_backbones.checkpoint import Checkpoint
from robust_backbones.errors import UserError
from robust_backbones.zoo import IMAGENET_MEAN, IMAGENET_STD

AUTHOR = "robust_backbones"  # Detectron2 logs who wrote a weight file

# (torchvision pattern, Detectron2 replacement), the first that matches the whole name wins.
_RENAMES = [
    (r"conv1\.(\w+)", r"stem.conv1.\1"),
    (r"bn1\.(\w+)", r"stem.conv1.norm.\1"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.(\w+)", r"res\1.\2.conv\3.\4"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)", r"res\1.\2.conv\3.norm.\4"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.(\w+)", r"res\1.\2.shortcut.\3"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)", r"res\1.\2.shortcut.norm.\3"),
]
_DROPS = [
    (r"fc\.\w+", "classifier head: a backbone has none"),
    (r".*\.num_batches_tracked", "counter of training batches: no effect on the features"),
]


def detectron2_name(name: str) -> tuple[str | None, str]:
    """What becomes of one torchvision key: `(Detectron2 name, "")` or `(None, why it is dropped)`.

    Raises:
        UserError: the key belongs to no ResNet.
    """
    for pattern, reason in _DROPS:
        if re.fullmatch(pattern, name):
            return None, reason
    for pattern, replacement in _RENAMES:
        if re.fullmatch(pattern, name):
            renamed = re.sub(pattern, replacement, name)
            # torchvision counts layer1..4, Detectron2 res2..5
            return re.sub(r"^res(\d)", lambda m: f"res{int(m[1]) + 1}", renamed), ""
    raise UserError(f"'{name}' is no tensor of a torchvision ResNet; only ResNets convert.")


def to_detectron2(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename a torchvision ResNet's tensors; values are untouched.

    Returns:
        `({Detectron2 name: tensor}, {dropped torchvision name: reason})`.

    Raises:
        UserError: a key belongs to no ResNet, or two keys get one name.
    """
    renamed, dropped = {}, {}
    for name, tensor in tensors.items():
        target, reason = detectron2_name(name)
        if target is None:
            dropped[name] = reason
        elif target in renamed:
            raise UserError(f"two tensors of the source would both become '{target}'.")
        else:
            renamed[target] = tensor
    return renamed, dropped


def detectron2_contents(checkpoint: Checkpoint) -> dict:
    """What a converted file holds: plain types and tensors, so that it loads without pickle code.

    `matching_heuristics` lets Detectron2 find the tensors below any prefix (`backbone.`,
    `backbone.bottom_up.`).
    """
    tensors, _ = to_detectron2(checkpoint.tensors)
    return {
        "model": {name: tensor.contiguous() for name, tensor in tensors.items()},
        "__author__": AUTHOR,
        "matching_heuristics": True,
        "metadata": {
            "arch": checkpoint.arch,
            "mean": list(checkpoint.mean or IMAGENET_MEAN),
            "std": list(checkpoint.std or IMAGENET_STD),
            "channel_order": "RGB",
            "source_layout": checkpoint.layout,
            "source_sha256": checkpoint.sha256,
            "source_metadata": checkpoint.metadata,
            "converter_version": __version__,
        },
    }
