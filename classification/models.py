"""Classifiers that map RGB images in [0, 1] to logits.

The first layer normalizes the images, so `eps` is in pixel values.
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_backbones.archs import OWN
from robust_backbones.checkpoint.architectures import (
    BATCH_COUNTER,
    arch_row,
    build_network,
    with_module_versions,
)
from robust_backbones.checkpoint.formats import FORMAT, FORMAT_VERSION
from robust_backbones.checkpoint.io import Checkpoint, save_file
from robust_backbones.checkpoint.read import read_weights
from robust_backbones.core.errors import UserError, choose_from
from robust_backbones.core.input_statistics import (
    GIVEN,
    IMAGENET,
    Channels,
    InputStatistics,
    warn_if_assumed,
)


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
        frozen: whether everything except the head is fixed, including BatchNorm statistics.

    Args:
        net: network that maps normalized images `(N, 3, H, W)` to logits `(N, classes)`.
        last: name of the network's last layer, whose input are the features; None: unknown. Then
            the classifier can be attacked and evaluated only.
        statistics: input statistics.
        arch: architecture, such as `resnet50` or `timm:convnext_base`, or `own:` and a class of the
            user.

    Raises:
        UserError: `last` is not the name of a linear layer of the network.
    """

    def __init__(
        self, net: nn.Module, last: str | None, statistics: InputStatistics = IMAGENET, *, arch: str
    ):
        super().__init__()
        self.arch, self.last, self.frozen = arch, last, False
        self.normalize = Normalize(statistics.mean, statistics.std)
        self.net = net
        linear = (name for name, layer in net.named_modules() if isinstance(layer, nn.Linear))
        names = [*filter(None, linear)][::-1]  # the last layer is usually among the last ones
        if last is not None and last not in names:
            raise UserError(
                f"features={last!r}: {arch} has no linear layer of this name. "
                f"{choose_from(last, names, 'Networks without one: features=None.')}"
            )

    @classmethod
    def build(
        cls, arch: str, classes: int, statistics: InputStatistics = IMAGENET, drop_path: float = 0.0
    ) -> "Classifier":
        """Build a classifier with random weights.

        Args:
            arch: architecture, such as `resnet50` or `timm:convnext_base`.
            classes: number of classes.
            statistics: input statistics.
            drop_path: probability of skipping the last residual block in training.

        Raises:
            UserError: `arch` is unknown, its last layer is not linear, or it has no drop path.
        """
        options = {"drop_path_rate": drop_path} if drop_path else {}
        last = arch_row(arch).head
        return cls(build_network(arch, classes, **options), last, statistics, arch=arch)

    @classmethod
    def wrap(
        cls, module: nn.Module, *, mean: Channels, std: Channels, features: str | None = None
    ) -> "Classifier":
        """Make a classifier of a module, which is not copied.

        Args:
            module: network that maps normalized images `(N, 3, H, W)` to logits `(N, classes)`.
            mean: mean of the RGB channels that the module expects, for images in [0, 1].
            std: their standard deviation.
            features: name of the module's last linear layer, whose input are the features; None:
                attacks and evaluation only.

        Raises:
            UserError: `features` is not the name of a linear layer of the module.
        """
        arch = OWN + type(module).__name__
        return cls(module, features, InputStatistics(mean, std), arch=arch)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits `(N, classes)` of float RGB images `(N, 3, H, W)` in [0, 1]."""
        return self.net(self.normalize(x))

    @property
    def head(self) -> nn.Linear:
        """Last layer of the network.

        Raises:
            UserError: the last layer is unknown.
        """
        if self.last is None:
            raise UserError(
                f"{self.arch} has no features. Name its last linear layer, such as 'fc', in the "
                "argument features of Classifier.wrap."
            )
        head = self.net.get_submodule(self.last)
        assert isinstance(head, nn.Linear)
        return head

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.head.out_features

    def for_task(
        self, classes: int, seed: int, statistics: InputStatistics | None = None
    ) -> "Classifier":
        """Copy the classifier with a new last layer, initialized like any `nn.Linear`.

        Args:
            classes: number of classes of the task.
            seed: seed for the new layer.
            statistics: input statistics to use instead of the classifier's; None: the same.

        Raises:
            UserError: the last layer is unknown.
        """
        model, head = copy.deepcopy(self), self.head
        if statistics:
            model.normalize = Normalize(statistics.mean, statistics.std)
        with torch.random.fork_rng(devices=[]):  # layers use the global generator
            torch.manual_seed(seed)
            new = nn.Linear(head.in_features, classes)
        model.net.set_submodule(str(self.last), new.to(head.weight))
        return model

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


@dataclass(frozen=True)
class Pretrained:
    """A classifier in eval mode, and what is known about it.

    Attributes:
        model: classifier.
        file: checkpoint that it was loaded from, without the tensors.
        name: path, URL or name of its weights, as the user gave it.
    """

    model: Classifier
    file: Checkpoint
    name: str


def described(model: Classifier) -> Pretrained:
    """Describe a classifier in memory, such as one of `Classifier.wrap`, like a weight file."""
    mean, std = (tuple(t.flatten().tolist()) for t in (model.normalize.mean, model.normalize.std))
    digest = digest_of(model, model.state_dict())
    file = Checkpoint({}, model.arch, "memory", InputStatistics(mean, std, GIVEN), digest)
    return Pretrained(model.eval(), file, model.arch)


def load_classifier(source: str | Path, statistics: InputStatistics | None = None) -> Classifier:
    """Load a classifier in eval mode from a published name, a path or a URL.

    If neither the source nor `statistics` states the mean and std, ImageNet's are assumed, with a
    warning.

    Args:
        source: name such as `robust://resnet50_l2_eps3`, path or URL, as for
            `robust_backbones.fetch_weights`. Files of torchvision, timm, RobustBench, the
            robustness library and others are recognized.
        statistics: input statistics, if the source does not state them.

    Raises:
        UserError: the file could not be fetched or read, it states other statistics, its
            architecture is unknown, or it has no last layer.
    """
    found = read_weights(source, statistics=statistics)
    warn_if_assumed(found.statistics, source)
    return complete_classifier(found, source)


def load_pretrained(name: str, path: Path, given: InputStatistics | None = None) -> Pretrained:
    """Read a complete classifier, and keep what is known about it.

    Args:
        name: path, URL or name of a published model, as the user gave it.
        path: local file.
        given: input statistics from the user; None: those that the source states, or else the
            file's.

    Raises:
        UserError: as for `read_weights`, or the checkpoint has no last layer.
    """
    found = read_weights(name, path=path, statistics=given)
    return Pretrained(complete_classifier(found, name), replace(found, tensors={}), name)


def complete_classifier(found: Checkpoint, name: str | Path) -> Classifier:
    """Build the classifier of a checkpoint, with its last layer, in eval mode.

    Args:
        found: checkpoint.
        name: name of the checkpoint in the error message.

    Raises:
        UserError: the checkpoint has no last layer.
    """
    found.require_head(name)
    return fill(found)


def fill(found: Checkpoint, drop_path: float = 0.0) -> Classifier:
    """Build the classifier of a checkpoint in eval mode. A missing last layer has one class.

    Args:
        found: checkpoint.
        drop_path: as for `Classifier.build`.
    """
    head = found.tensors.get(f"{arch_row(found.arch).head}.weight")
    classes = 1 if head is None else len(head)
    model = Classifier.build(found.arch, classes, found.statistics, drop_path)
    # `read_checkpoint` has checked the keys. Old files may lack BatchNorm's counters, nothing else.
    tensors = model.net.state_dict() | found.tensors
    model.net.load_state_dict(with_module_versions(tensors, found.arch))
    return model.eval()


def save_classifier(path: Path, state: dict, metadata: dict, **more: Any) -> None:
    """Save a checkpoint in the format that docs/reference/formats.md describes.

    Args:
        path: file to write.
        state: state dict of the `Classifier`.
        metadata: description of the weights, in plain JSON types.
        more: further entries, such as the optimizer's state.
    """
    contents = {"format": FORMAT, "version": FORMAT_VERSION, "metadata": metadata, "model": state}
    save_file(contents | more, path)


def backbone_digest(model: Classifier) -> str:
    """Compute the SHA-256 (hex) of everything that determines the features.

    The digest covers the names and values of all tensors, including the normalization. It excludes
    the head and BatchNorm's counters.
    """
    head = f"net.{model.last}."
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(head)}
    return digest_of(model, state)


def digest_of(model: Classifier, state: dict[str, Tensor]) -> str:
    """Compute the SHA-256 (hex) of an architecture and of tensors, except BatchNorm's counters."""
    digest = hashlib.sha256(model.arch.encode())
    for name, tensor in sorted(state.items()):
        if not name.endswith(BATCH_COUNTER):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
