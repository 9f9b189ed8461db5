"""Convert a checkpoint to another format and save it. `TARGETS` has one entry per format."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from robust_backbones import __version__
from robust_backbones.archs import RESNETS, TIMM
from robust_backbones.checkpoint.architectures import arch_row, with_module_versions
from robust_backbones.checkpoint.io import Checkpoint, read_checkpoint, write_file
from robust_backbones.checkpoint.key_names import DROPPED_HEAD, to_detectron2
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import atomic

AUTHOR = "robust_backbones"  # Detectron2 logs the author of a weight file


@dataclass(frozen=True)
class Target:
    """A format for converted checkpoints. Its file suffixes are in `checkpoint.TARGET_SUFFIXES`.

    Attributes:
        contents: function that converts a checkpoint to the contents of the file.
        write: function that writes the contents to a path.
    """

    contents: Callable[[Checkpoint], dict]
    write: Callable[[dict, Path], None] = write_file


def metadata(source: Checkpoint) -> dict:
    """Return the metadata that is saved with converted weights: origin and expected input."""
    known = {k: source.metadata[k] for k in ("name", "constraint", "eps") if k in source.metadata}
    return known | {
        "arch": source.arch,
        "mean": list(source.statistics.mean),
        "std": list(source.statistics.std),
        "statistics": source.statistics.source,
        "channel_order": "RGB",
        "source_layout": source.layout,
        "source_sha256": source.sha256,
        "source_metadata": source.metadata,
        "converter_version": __version__,
    }


def detectron2_contents(source: Checkpoint) -> dict:
    """Return the contents of a Detectron2 backbone file, as tensors and built-in types.

    The key `matching_heuristics` makes Detectron2 match the tensors under any prefix (`backbone.`,
    `backbone.bottom_up.`).

    Raises:
        UserError: the network is neither a ResNet nor a timm network.
    """
    if source.arch not in RESNETS and not source.arch.startswith(TIMM):
        raise UserError(
            f"{source.arch} cannot be a Detectron2 backbone. Choose a timm network or one of "
            f"{', '.join(RESNETS)}."
        )
    tensors, _ = backbone_tensors(source)
    return {
        "model": {name: tensor.contiguous() for name, tensor in tensors.items()},
        "__author__": AUTHOR,
        "matching_heuristics": True,
        "metadata": metadata(source),
    }


def backbone_tensors(source: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename the tensors of a network for Detectron2; timm networks keep timm's names.

    Returns:
        `({Detectron2 name: tensor}, {dropped name: reason})`.

    Raises:
        UserError: a name does not belong to the network.
    """
    if not source.arch.startswith(TIMM):
        return to_detectron2(source.tensors)
    head = arch_row(source.arch).head + "."
    dropped = {name: DROPPED_HEAD for name in source.tensors if name.startswith(head)}
    return {name: t for name, t in source.tensors.items() if name not in dropped}, dropped


def torchvision_contents(source: Checkpoint) -> dict:
    """Return the state dict of torchvision's or timm's network, without metadata."""
    tensors = {name: tensor.contiguous() for name, tensor in source.tensors.items()}
    return with_module_versions(tensors, source.arch)


# The `robustness` library cannot build these networks by name. Users pass the module with
# `add_custom_forward=True`, which adds a second `model.` prefix to the tensor names.
_UNKNOWN_TO_LIBRARY = ("mnasnet1_0", "mobilenet_v2", "shufflenet_v2_x1_0", "resnext101_64x4d")


def robustness_contents(source: Checkpoint) -> dict:
    """Return the contents of a file for `make_and_restore_model` of the `robustness` library.

    The library loads this file strictly, without missing or unexpected keys.

    Raises:
        UserError: the source has no classifier head.
    """
    source.require_head("the source")
    unknown = source.arch in _UNKNOWN_TO_LIBRARY or source.arch.startswith(TIMM)
    inner = "model.model." if unknown else "model."
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (source.statistics.mean, source.statistics.std)
    )
    model = {f"module.{inner}{name}": tensor for name, tensor in source.tensors.items()}
    model |= {f"module.attacker.{inner}{name}": t for name, t in source.tensors.items()}
    for part in ("normalizer", "attacker.normalize"):
        model |= {f"module.{part}.new_mean": mean, f"module.{part}.new_std": std}
    epoch = source.metadata.get("epoch", source.metadata.get("epochs", 0))  # the library prints it
    return {"model": model, "epoch": epoch, "metadata": metadata(source)}


def safetensors_contents(source: Checkpoint) -> dict:
    """Return the torchvision state dict and the metadata for a safetensors file."""
    return {"model": torchvision_contents(source), "metadata": metadata(source)}


def _write_safetensors(contents: dict, path: Path) -> None:
    # The header of a safetensors file contains only strings, so the metadata is one JSON string.
    header = json.dumps({"metadata": contents["metadata"]})
    # safetensors rejects tensors that share memory.
    tensors = {name: tensor.clone() for name, tensor in contents["model"].items()}
    safetensors.torch.save_file(tensors, path, {"format": "pt", "robust_backbones": header})


TARGETS = {
    "detectron2": Target(detectron2_contents),
    "torchvision": Target(torchvision_contents),
    "robustness": Target(robustness_contents),
    "safetensors": Target(safetensors_contents, _write_safetensors),
}


def save(source: Checkpoint, contents: dict, to: str, path: str | Path) -> None:
    """Write a converted checkpoint atomically, and read it back before it replaces `path`.

    Args:
        source: checkpoint that was converted.
        contents: contents of the new file, from `TARGETS[to].contents`.
        to: format, a key of `TARGETS`.
        path: file to write.

    Raises:
        UserError: the file cannot be written, or does not contain the tensors of the source. No
            file is left then, and an existing file stays unchanged.
    """
    dropped = backbone_tensors(source)[1] if to == "detectron2" else {}
    expected = {name: t for name, t in source.tensors.items() if name not in dropped}
    with atomic(path) as temporary:
        TARGETS[to].write(contents, temporary)
        try:
            found = read_checkpoint(temporary, source.arch).tensors
        except UserError as error:
            raise UserError(f"{path} was not written, because it cannot be read: {error}") from None
        same = found.keys() == expected.keys()
        if not same or any(not found[name].equal(tensor) for name, tensor in expected.items()):
            raise UserError(f"{path} was not written: its tensors differ from the source's.")
