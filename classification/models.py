"""Classifiers that map RGB images in [0, 1] to logits.

The first layer normalizes the images, so `eps` is in pixel values. `zoo.ARCHS` lists the
architectures. `Arch.head` is the name of a network's last layer.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_backbones import weights
from robust_backbones.checkpoint.architectures import (
    BATCH_COUNTER,
    build_network,
    with_module_versions,
)
from robust_backbones.checkpoint.formats import FORMAT, FORMAT_VERSION
from robust_backbones.checkpoint.io import Checkpoint, read_checkpoint, save_file
from robust_backbones.zoo import ARCHS, IMAGENET_MEAN, IMAGENET_STD

Statistics = tuple[Sequence[float], Sequence[float]]  # mean and std of the channels, RGB


class Normalize(nn.Module):
    """Normalization layer: `(x - mean) / std` per channel.

    Args:
        mean, std: mean and standard deviation of each RGB channel, for images in [0, 1]. They are
            buffers `(3, 1, 1)`, so checkpoints contain them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize images `(N, 3, H, W)` in [0, 1]."""
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """Torchvision network with a normalization layer in front.

    The state dict has `normalize.mean`, `normalize.std` and `net.<torchvision name>`.

    Attributes:
        frozen: whether everything except the head is fixed, including BatchNorm statistics.

    Args:
        arch: architecture, a key of `zoo.ARCHS`.
        num_classes: number of classes, also an attribute.
        mean, std: statistics of the normalization, same as for `Normalize`.

    Raises:
        UserError: `arch` is unknown.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        super().__init__()
        self.arch, self.num_classes, self.frozen = arch, num_classes, False
        self.normalize = Normalize(mean, std)
        self.net = build_network(arch, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits `(N, classes)` of float RGB images `(N, 3, H, W)` in [0, 1]."""
        return self.net(self.normalize(x))

    @property
    def head(self) -> nn.Linear:
        """Last layer of the network."""
        head = self.net.get_submodule(ARCHS[self.arch].head)
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


def load_classifier(source: str | Path) -> Classifier:
    """Build a classifier in eval mode from any checkpoint that `read_checkpoint` supports.

    If the file has no mean and std, the classifier uses ImageNet's.

    Args:
        source: path, name of a published model (such as `resnet50_l2_eps3`) or URL; see
            `robust_backbones.weights.resolve`.

    Raises:
        UserError: the file could not be fetched or read, its architecture is unknown, or it has no
            last layer.
    """
    found = read_checkpoint(weights.resolve(source))
    found.require_head(source)
    classes = len(found.tensors[f"{ARCHS[found.arch].head}.weight"])
    return _fill(found, found.tensors, classes).eval()


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
    found: Checkpoint, classes: int, seed: int, statistics: Statistics | None = None
) -> Classifier:
    """Build the network of a checkpoint with a new last layer, initialized like any `nn.Linear`.

    Args:
        found: checkpoint, with or without a last layer.
        classes: number of classes of the task.
        seed: seed for the new layer.
        statistics: `(mean, std)` of the RGB channels, instead of the checkpoint's; None: the
            checkpoint's.
    """
    head = ARCHS[found.arch].head + "."
    kept = {name: t for name, t in found.tensors.items() if not name.startswith(head)}
    model = _fill(found, kept, classes, statistics)
    with torch.random.fork_rng(devices=[]):  # layers use the global generator
        torch.manual_seed(seed)
        model.head.reset_parameters()  # torchvision may initialize the head differently
    return model


def _fill(
    found: Checkpoint,
    tensors: dict[str, Tensor],
    classes: int,
    statistics: Statistics | None = None,
) -> Classifier:
    mean, std = statistics or (found.mean or IMAGENET_MEAN, found.std or IMAGENET_STD)
    model = Classifier(found.arch, classes, mean, std)
    # `read_checkpoint` has checked the keys. Old files may lack BatchNorm's counters, nothing else.
    model.net.load_state_dict(with_module_versions(model.net.state_dict() | tensors, found.arch))
    return model


def backbone_digest(model: Classifier) -> str:
    """Compute the SHA-256 (hex) of everything that determines the features.

    The digest covers the names and values of all tensors, including the normalization. It excludes
    the head and BatchNorm's counters.
    """
    digest, head = hashlib.sha256(model.arch.encode()), f"net.{ARCHS[model.arch].head}."
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(head) and not name.endswith(BATCH_COUNTER):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
