"""Networks of a comparison without files."""

from pathlib import Path

from classification.compare.networks import Network
from robust_backbones.checkpoint.io import Checkpoint
from robust_backbones.core.input_statistics import IMAGENET


def network(weights: str, label: str = "", eps: float = 0.0, **changes) -> Network:
    """A network with the recorded facts of a ResNet-18, but without tensors."""
    facts = {
        "weights": weights,
        "label": label,
        "path": Path(weights),
        "sha256": weights.ljust(64, "0"),
        "arch": "resnet18",
        "constraint": "l2",
        "eps": eps,
        "pretrained_on": "cifar10",
        "image_size": 32,
        "source": {"arch": "resnet18", "dataset": "cifar10", "eps": eps, "epochs": 12},
        "assumed_standard": False,
        "checkpoint": Checkpoint({}, "resnet18", "robust_backbones", IMAGENET, weights),
    }
    return Network(**facts | changes)
