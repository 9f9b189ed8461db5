"""Classifiers that map RGB images in [0, 1] to logits.

The first layer normalizes the images, so `eps` is in pixel values.
"""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_backbones import sources, weights
from robust_backbones.checkpoint.architectures import (
    BATCH_COUNTER,
    arch_row,
    build_network,
    with_module_versions,
)
from robust_backbones.checkpoint.formats import FORMAT, FORMAT_VERSION
from robust_backbones.checkpoint.io import Checkpoint, read_checkpoint, save_file
from robust_backbones.core.input_statistics import ASSUMED, IMAGENET, InputStatistics, assumption


class Normalize(nn.Module):
    """Normalization layer: `(x - mean) / std` per channel.

    Args:
        mean, std: mean and standard deviation of each RGB channel, for images in [0, 1]. They are
            buffers `(3, 1, 1)`, so checkpoints contain them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET.mean, std: Sequence[float] = IMAGENET.std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize images `(N, 3, H, W)` in [0, 1]."""
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """Network of torchvision, timm or the user with a normalization layer in front.

    The state dict has `normalize.mean`, `normalize.std` and `net.<name in the network>`.

    Attributes:
        last: name of the network's last layer, whose input are the features.
        frozen: whether everything except the head is fixed, including BatchNorm statistics.

    Args:
        arch: architecture, as for `build_network`, also an attribute.
        num_classes: number of classes, also an attribute.
        statistics: input statistics.

    Raises:
        UserError: `arch` is unknown.
    """

    def __init__(self, arch: str, num_classes: int, statistics: InputStatistics = IMAGENET):
        super().__init__()
        self.arch, self.num_classes, self.frozen = arch, num_classes, False
        self.normalize = Normalize(statistics.mean, statistics.std)
        self.net = build_network(arch, num_classes)
        self.last = arch_row(arch).head

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits `(N, classes)` of float RGB images `(N, 3, H, W)` in [0, 1]."""
        return self.net(self.normalize(x))

    @property
    def head(self) -> nn.Linear:
        """Last layer of the network."""
        head = self.net.get_submodule(self.last)
        assert isinstance(head, nn.Linear)
        return head

    def freeze(self, statistics: bool = True) -> None:
        """Freeze everything except the head.

        Args:
            statistics: whether to freeze BatchNorm statistics as well, and to turn dropout off.
                Otherwise the statistics adapt to the training images, as in the paper's code.
        """
        self.requires_grad_(False)
        self.head.requires_grad_(True)
        self.frozen = statistics
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        """Set training or eval mode. Frozen networks stay in eval mode."""
        return super().train(mode and not self.frozen)

    def features(self, x: Tensor) -> Tensor:
        """Compute the head's input `(N, feature_dim)` for images `(N, 3, H, W)` in [0, 1]."""
        kept = []
        hook = self.head.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
        try:
            self(x)
        finally:
            hook.remove()
        return kept[0]


def load_classifier(source: str | Path, statistics: InputStatistics | None = None) -> Classifier:
    """Build a classifier in eval mode from any checkpoint that `read_checkpoint` supports.

    If neither the file nor `statistics` states the mean and std, ImageNet's are assumed, with a
    warning.

    Args:
        source: path, name of a published model (such as `resnet50_l2_eps3`) or URL; see
            `robust_backbones.weights.resolve`.
        statistics: input statistics, if the file does not contain them.

    Raises:
        UserError: the file could not be fetched or read, it states other statistics, its
            architecture is unknown, or it has no last layer.
    """
    found = read_weights(str(source), weights.resolve(source), statistics)
    if found.statistics.source == ASSUMED:
        fix = "Pass statistics=InputStatistics(mean, std)."
        warnings.warn(assumption(found.statistics, source, fix), stacklevel=2)
    return complete_classifier(found, source)


def read_weights(name: str, path: Path, given: InputStatistics | None = None) -> Checkpoint:
    """Read a checkpoint, with input statistics from the user or from the published model.

    Args:
        name: path, URL or name of a published model, as the user gave it.
        path: local file.
        given: input statistics from the user; None: those that the source states, or else the
            file's.

    Raises:
        UserError: the file cannot be read, or it states other statistics.
    """
    stated = sources.stated(name, path)
    found = read_checkpoint(path, stated.arch, statistics=given or stated.statistics)
    return replace(found, metadata=stated.facts | found.metadata)


def complete_classifier(found: Checkpoint, name: str | Path) -> Classifier:
    """Build the classifier of a checkpoint, with its last layer, in eval mode.

    Args:
        found: checkpoint.
        name: name of the checkpoint in the error message.

    Raises:
        UserError: the checkpoint has no last layer.
    """
    found.require_head(name)
    classes = len(found.tensors[f"{arch_row(found.arch).head}.weight"])
    return _fill(found, found.tensors, classes, found.statistics).eval()


def save_classifier(path: Path, state: dict, metadata: dict, **more: Any) -> None:
    """Save a checkpoint in the format that docs/formats.md describes.

    Args:
        path: file to write.
        state: state dict of the `Classifier`.
        metadata: description of the weights, in plain JSON types.
        more: further entries, such as the optimizer's state.
    """
    contents = {"format": FORMAT, "version": FORMAT_VERSION, "metadata": metadata, "model": state}
    save_file(contents | more, path)


def for_task(
    found: Checkpoint, classes: int, seed: int, statistics: InputStatistics | None = None
) -> Classifier:
    """Build the network of a checkpoint with a new last layer, initialized like any `nn.Linear`.

    Args:
        found: checkpoint, with or without a last layer.
        classes: number of classes of the task.
        seed: seed for the new layer.
        statistics: input statistics to use instead of the checkpoint's; None: the checkpoint's.
    """
    head = arch_row(found.arch).head + "."
    kept = {name: t for name, t in found.tensors.items() if not name.startswith(head)}
    model = _fill(found, kept, classes, statistics or found.statistics)
    with torch.random.fork_rng(devices=[]):  # layers use the global generator
        torch.manual_seed(seed)
        model.head.reset_parameters()  # torchvision may initialize the head differently
    return model


def _fill(
    found: Checkpoint, tensors: dict[str, Tensor], classes: int, statistics: InputStatistics
) -> Classifier:
    model = Classifier(found.arch, classes, statistics)
    # `read_checkpoint` has checked the keys. Old files may lack BatchNorm's counters, nothing else.
    model.net.load_state_dict(with_module_versions(model.net.state_dict() | tensors, found.arch))
    return model


def backbone_digest(model: Classifier) -> str:
    """Compute the SHA-256 (hex) of everything that determines the features.

    The digest covers the names and values of all tensors, including the normalization. It excludes
    the head and BatchNorm's counters.
    """
    digest, head = hashlib.sha256(model.arch.encode()), f"net.{model.last}."
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(head) and not name.endswith(BATCH_COUNTER):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
