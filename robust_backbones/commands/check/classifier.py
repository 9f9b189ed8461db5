"""The step that saves and reads a classifier; it needs no Detectron2."""

import torch

from robust_backbones.checkpoint.architectures import build_network
from robust_backbones.checkpoint.io import read_checkpoint, save_file
from robust_backbones.commands.check.steps import CheckSettings, Outcome
from robust_backbones.core.input_statistics import IMAGENET

ARCH = "resnet18"


def random_classifier(settings: CheckSettings) -> Outcome:
    """Save a random classifier as users of torchvision do, and read it."""
    torch.manual_seed(0)
    network = build_network(ARCH, 10)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # new statistics would hide errors
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    path = settings.folder / "classifier.pth"
    save_file(network.state_dict(), path)
    found = read_checkpoint(path, ARCH, statistics=IMAGENET)
    return Outcome(f"random {ARCH}, {len(found.tensors)} tensors saved and read", found)
