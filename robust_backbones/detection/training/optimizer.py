"""Optimizers of detectors, with layer-wise learning rates for backbones of timm."""

from fnmatch import fnmatch

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import maybe_add_gradient_clipping, reduce_param_groups
from torch import nn

from robust_backbones.core.errors import UserError
from robust_backbones.detection.backbone import body
from robust_backbones.detection.timm_backbone import TimmNetwork

OPTIMIZERS = ("SGD", "AdamW")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of `SOLVER`. SGD is Detectron2's.

    Args:
        cfg: configuration.
        model: detector, whose backbone is its attribute `backbone`.

    Raises:
        UserError: `SOLVER.LAYER_DECAY` is not 1, and the backbone has no known layers.
    """
    solver = cfg.SOLVER
    if solver.OPTIMIZER == "SGD":
        return build_sgd(cfg, model)
    prefix, network = body(model.backbone)
    exempt: list[str] = []
    layers: dict[str, int] = {}
    if isinstance(network, TimmNetwork):
        exempt = network.without_decay()
        layers = network.layers(solver.LAYER_BLOCKS) if solver.LAYER_DECAY != 1 else {}
    elif solver.LAYER_DECAY != 1:
        raise UserError(
            f"SOLVER.LAYER_DECAY is {solver.LAYER_DECAY:g}, but {cfg.MODEL.BACKBONE.NAME} does "
            "not support it. Set it to 1, or choose a timm network."
        )
    after = max(layers.values(), default=0) + 1  # the FPN and the heads
    groups = []
    for name, parameter in model.named_parameters():
        own = name.removeprefix(f"backbone.{prefix}")  # name in the network
        decays = parameter.ndim > 1 and not any(fnmatch(own, pattern) for pattern in exempt)
        if parameter.requires_grad:
            lr = solver.BASE_LR * solver.LAYER_DECAY ** (after - layers.get(own, after))
            decay = solver.WEIGHT_DECAY * decays
            groups.append({"params": [parameter], "lr": lr, "weight_decay": decay})
    kind = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return kind(reduce_param_groups(groups), lr=solver.BASE_LR)
