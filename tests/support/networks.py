"""Random networks, and containers for their weights."""

import torch

from robust_backbones.checkpoint.architectures import build_network


def random_network(arch: str, num_classes: int = 10) -> torch.nn.Module:
    """A network in eval mode with nontrivial BatchNorm, whose defaults would hide errors."""
    torch.manual_seed(0)
    network = build_network(arch, num_classes).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    return network


def robustness_contents(state: dict) -> dict:
    """A state dict wrapped as the `robustness` library saves it: prefixes, copy, normalization.

    The copy shares its memory with the original, as in the library.
    """
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    model = {f"module.model.{key}": value for key, value in state.items()}
    model |= {f"module.attacker.model.{key}": value for key, value in state.items()}
    for part in ("normalizer", "attacker.normalize"):
        model |= {f"module.{part}.new_mean": mean, f"module.{part}.new_std": std}
    return {"model": model, "optimizer": {"state": {}}, "epoch": 90, "nat_prec1": 62.83}
