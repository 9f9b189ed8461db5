"""Classifiers: RGB in [0, 1] -> logits. The first layer normalises, so that `eps` means pixels.

Heads and features are those of `zoo.ARCHS`: `Arch.head` names the last layer of each network.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_backbones import weights
from robust_backbones.checkpoint.architectures import (
    BATCH_COUNTER,
    build_network,
    with_module_versions,
)
from robust_backbones.checkpoint.io import Checkpoint, read_checkpoint
from robust_backbones.core.errors import UserError
from robust_backbones.zoo import ARCHS, IMAGENET_MEAN, IMAGENET_STD

Statistics = tuple[Sequence[float], Sequence[float]]  # mean and std of the channels, RGB


class Normalize(nn.Module):
    """`(x - mean) / std` per channel.

    Args:
        mean, std: three RGB numbers each, for inputs in [0, 1]; kept as buffers `(3, 1, 1)`, so
            that a checkpoint carries them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: `(N, 3, H, W)` in [0, 1] -> the same shape, normalised."""
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """A torchvision-style network behind its normalisation.

    The state dict has `normalize.mean`, `normalize.std` and `net.<torchvision name>`.

    Attributes:
        frozen: whether everything but the head stays as it is, BatchNorm statistics included.

    Args:
        arch: key of `zoo.ARCHS`.
        num_classes: length of the logits; kept as an attribute.
        mean, std: as for `Normalize`.

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
        """x: `(N, 3, H, W)` float RGB in [0, 1] -> logits `(N, classes)`."""
        return self.net(self.normalize(x))

    @property
    def head(self) -> nn.Linear:
        """The last layer."""
        head = self.net.get_submodule(ARCHS[self.arch].head)
        assert isinstance(head, nn.Linear)
        return head

    def freeze(self, statistics: bool = True) -> None:
        """Train the head alone from now on.

        Args:
            statistics: keep BatchNorm statistics as well, and dropout off. Without,
                they adapt to what the network is shown, as in the paper's own code.
        """
        self.requires_grad_(False)
        self.head.requires_grad_(True)
        self.frozen = statistics
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        """As of every module; frozen networks stay in eval mode (a linear head has none)."""
        return super().train(mode and not self.frozen)

    def features(self, x: Tensor) -> Tensor:
        """What the head is fed with: `(N, 3, H, W)` in [0, 1] -> `(N, feature_dim)`."""
        kept = []
        hook = self.head.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
        try:
            self(x)
        finally:
            hook.remove()
        return kept[0]


def load_classifier(source: str | Path) -> Classifier:
    """Build a classifier in eval mode from any checkpoint that `read_checkpoint` supports.

    A file without statistics is taken to expect ImageNet's.

    Args:
        source: a path, a published model's name (`resnet50_l2_eps3`) or a URL; see
            `robust_backbones.weights.resolve`.

    Raises:
        UserError: cannot be had, unreadable, not a known architecture, or without the last layer.
    """
    found = read_checkpoint(weights.resolve(source))
    head = f"{ARCHS[found.arch].head}.weight"
    if head not in found.tensors:
        raise UserError(f"{source} has no last layer ({head}); give a complete classifier.")
    return _fill(found, found.tensors, len(found.tensors[head])).eval()


def for_task(
    found: Checkpoint, classes: int, seed: int, statistics: Statistics | None = None
) -> Classifier:
    """The network of a checkpoint with a new last layer, `nn.Linear` as torch initialises it.

    Args:
        found: what `read_checkpoint` returned, with or without a last layer.
        classes: of the task.
        seed: of the new layer.
        statistics: `(mean, std)`, RGB, to normalise with instead of the checkpoint's own.
    """
    head = ARCHS[found.arch].head + "."
    kept = {name: t for name, t in found.tensors.items() if not name.startswith(head)}
    model = _fill(found, kept, classes, statistics)
    with torch.random.fork_rng(devices=[]):  # layers are initialised from the global generator
        torch.manual_seed(seed)
        model.head.reset_parameters()  # some of torchvision's networks begin otherwise
    return model


def _fill(
    found: Checkpoint,
    tensors: dict[str, Tensor],
    classes: int,
    statistics: Statistics | None = None,
) -> Classifier:
    mean, std = statistics or (found.mean or IMAGENET_MEAN, found.std or IMAGENET_STD)
    model = Classifier(found.arch, classes, mean, std)
    # `read` has accounted for every key; only BatchNorm's counters, which old files lack, are free.
    model.net.load_state_dict(with_module_versions(model.net.state_dict() | tensors, found.arch))
    return model


def backbone_digest(model: Classifier) -> str:
    """SHA-256 (hex) of all that decides the features: names and values below the head, and the
    statistics of the normalisation."""
    digest, head = hashlib.sha256(model.arch.encode()), f"net.{ARCHS[model.arch].head}."
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(head) and not name.endswith(BATCH_COUNTER):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
