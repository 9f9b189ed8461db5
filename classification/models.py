"""Classifiers: RGB in [0, 1] -> logits. the first layer normalises, so that `eps` means pixels."""

import torch
from torch import Tensor, nn

from robust_backbones import checkpoint, weights
from robust_backbones.errors import UserError
from robust_backbones.networks import with_versions
from robust_backbones.zoo import ARCHS, IMAGENET_MEAN, IMAGENET_STD


class Normalize(nn.Module):
    """`(x - mean) / std` per channel.

    Args:
        mean, std: three RGB numbers each, for inputs in [0, 1]; kept as buffers `(3, 1, 1)`, so
            that a checkpoint carries them.
    """

    def __init__(self, mean=IMAGENET_MEAN, std=IMAGENET_STD):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: `(N, 3, H, W)` in [0, 1] -> the same shape, normalised."""
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """A torchvision-style network behind its normalisation.

    The state dict has `normalize.mean`, `normalize.std` and `net.<torchvision name>`.

    Args:
        arch: key of `zoo.ARCHS`.
        num_classes: length of the logits; kept as an attribute.
        mean, std: as for `Normalize`.

    Raises:
        UserError: `arch` is unknown.
    """

    def __init__(self, arch: str, num_classes: int, mean=IMAGENET_MEAN, std=IMAGENET_STD):
        super().__init__()
        self.num_classes = num_classes
        self.normalize = Normalize(mean, std)
        self.net = checkpoint.build_network(arch, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: `(N, 3, H, W)` float RGB in [0, 1] -> logits `(N, classes)`."""
        return self.net(self.normalize(x))


def load_classifier(source) -> Classifier:
    """A classifier from any checkpoint that `robust_backbones.checkpoint.read` takes, in eval mode.

    A file without statistics is taken to expect ImageNet's.

    Args:
        source: a path, a published model's name (`resnet50_l2_eps3`) or a URL; see
            `robust_backbones.weights.resolve`.

    Raises:
        UserError: cannot be had, unreadable, not a known architecture, or without the last layer.
    """
    found = checkpoint.read(weights.resolve(source))
    head = f"{ARCHS[found.arch].head}.weight"
    if head not in found.tensors:
        raise UserError(f"{source} has no last layer ({head}); give a complete classifier.")
    classes = len(found.tensors[head])
    model = Classifier(found.arch, classes, found.mean or IMAGENET_MEAN, found.std or IMAGENET_STD)
    # `read` has accounted for every key; only BatchNorm's counters, which old files lack, are free.
    state = with_versions(model.net.state_dict() | found.tensors, found.arch)
    model.net.load_state_dict(state)
    return model.eval()
