"""A checkpoint -> the file of a target format; one row per format."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from robust_backbones import __version__
from robust_backbones.checkpoint.architectures import with_versions
from robust_backbones.checkpoint.io import Checkpoint, save_file
from robust_backbones.checkpoint.key_names import to_detectron2
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic
from robust_backbones.zoo import ARCHS, IMAGENET_MEAN, IMAGENET_STD, RESNETS

AUTHOR = "robust_backbones"  # Detectron2 logs who wrote a weight file


@dataclass(frozen=True)
class Target:
    """A format that checkpoints are converted to.

    Attributes:
        contents: checkpoint -> what the file holds.
        write: `(contents, path)`, atomically.
    """

    contents: Callable[[Checkpoint], dict]
    write: Callable[[dict, str | Path], None] = save_file


def metadata(source: Checkpoint) -> dict:
    """What travels with converted weights: where they come from and what they must be fed with."""
    known = {k: source.metadata[k] for k in ("name", "constraint", "eps") if k in source.metadata}
    return known | {
        "arch": source.arch,
        "mean": list(source.mean or IMAGENET_MEAN),
        "std": list(source.std or IMAGENET_STD),
        "statistics": "from the file" if source.mean else "assumed",
        "channel_order": "RGB",
        "source_layout": source.layout,
        "source_sha256": source.sha256,
        "source_metadata": source.metadata,
        "converter_version": __version__,
    }


def detectron2_contents(source: Checkpoint) -> dict:
    """Plain types and tensors, so that it loads without pickle code.

    `matching_heuristics` lets Detectron2 find the tensors below any prefix (`backbone.`,
    `backbone.bottom_up.`).

    Raises:
        UserError: the network is no ResNet.
    """
    if source.arch not in RESNETS:
        raise UserError(
            f"{source.arch} cannot be a Detectron2 backbone; those that can: {', '.join(RESNETS)}."
        )
    tensors, _ = to_detectron2(source.tensors)
    return {
        "model": {name: tensor.contiguous() for name, tensor in tensors.items()},
        "__author__": AUTHOR,
        "matching_heuristics": True,
        "metadata": metadata(source),
    }


def torchvision_contents(source: Checkpoint) -> dict:
    """A bare state dict, as `load_state_dict` takes it. It has no place for metadata."""
    tensors = {name: tensor.contiguous() for name, tensor in source.tensors.items()}
    return with_versions(tensors, source.arch)


# Networks that the library does not have by name: users hand it the network with
# `add_custom_forward=True`, which puts one more level into the names.
_WRAPPED_THERE = ("mnasnet1_0", "mobilenet_v2", "shufflenet_v2_x1_0", "resnext101_64x4d")


def robustness_contents(source: Checkpoint) -> dict:
    """What the `robustness` library's `make_and_restore_model` loads, strictly.

    Raises:
        UserError: the source has no head.
    """
    if f"{ARCHS[source.arch].head}.weight" not in source.tensors:
        raise UserError("the source has no classifier head, which the robustness library needs.")
    inner = "model.model." if source.arch in _WRAPPED_THERE else "model."
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (source.mean or IMAGENET_MEAN, source.std or IMAGENET_STD)
    )
    model = {f"module.{inner}{name}": tensor for name, tensor in source.tensors.items()}
    model |= {f"module.attacker.{inner}{name}": t for name, t in source.tensors.items()}
    for part in ("normalizer", "attacker.normalize"):
        model |= {f"module.{part}.new_mean": mean, f"module.{part}.new_std": std}
    epoch = source.metadata.get("epoch", source.metadata.get("epochs", 0))  # the library prints it
    return {"model": model, "epoch": epoch, "metadata": metadata(source)}


def safetensors_contents(source: Checkpoint) -> dict:
    """torchvision's names; the metadata is for the file's header."""
    return {"model": torchvision_contents(source), "metadata": metadata(source)}


def _write_safetensors(contents: dict, path: str | Path) -> None:
    from safetensors.torch import save_file

    # In the header, under one key: safetensors holds texts only.
    header = json.dumps({"metadata": contents["metadata"]})
    with atomic(path) as temporary:
        tensors = {k: v.clone() for k, v in contents["model"].items()}  # none may share memory
        save_file(tensors, temporary, {"format": "pt", "robust_backbones": header})


TARGETS = {
    "detectron2": Target(detectron2_contents),
    "torchvision": Target(torchvision_contents),
    "robustness": Target(robustness_contents),
    "safetensors": Target(safetensors_contents, _write_safetensors),
}
