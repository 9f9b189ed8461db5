"""Folding changes how FrozenBN is computed, not what."""

import copy

import pytest
import torch

from robust_backbones.detection import backbone, folding, verify
from tests.support.networks import random_network


def pair(arch="resnet18", freeze=2):
    """Detectron2's network and the folded one, with the same weights."""
    from detectron2.modeling.backbone import build_resnet_backbone

    from robust_backbones.checkpoint.key_names import to_detectron2

    cfg = verify.target_config(arch)
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze
    tensors, _ = to_detectron2(random_network(arch).state_dict())
    backbone.set_architecture(cfg)
    plain = build_resnet_backbone(cfg, verify.RGB)
    folded = backbone.build_robust_resnet_backbone(cfg, verify.RGB)
    for network in (plain, folded):
        network.load_state_dict(tensors)
    return plain, folded


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def close(a, b):
    for name in a:
        assert (a[name] - b[name]).abs().max() <= 1e-5 * a[name].abs().max(), name


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("freeze", [0, 2, 5])
def test_outputs_and_gradients_are_the_same(arch, freeze):
    plain, folded = pair(arch, freeze)
    assert plain.state_dict().keys() == folded.state_dict().keys()
    count = sum(isinstance(module, folding.FoldedConv2d) for module in folded.modules())
    assert count == {"resnet18": 20, "resnet50": 53}[arch]
    gradients, outputs = [], []
    for network in (plain, folded):
        x = IMAGES.clone().requires_grad_()
        found = network(x)
        sum(value.square().mean() for value in found.values()).backward()
        outputs.append(found)
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.requires_grad})
        gradients[-1]["image"] = x.grad
    close(*outputs)
    assert gradients[0].keys() == gradients[1].keys()
    close(*gradients)
    with torch.no_grad():
        close(plain(IMAGES), folded(IMAGES))


def test_weights_that_were_folded_in_inference_mode_train_afterwards():
    plain, folded = pair()
    with torch.inference_mode():
        folded(IMAGES)
    gradients = []
    for network in (plain, folded):
        x = IMAGES.clone().requires_grad_()
        network(x)["res5"].square().mean().backward()
        gradients.append({"image": x.grad})
    close(*gradients)


@pytest.mark.parametrize("change", ["weight", "norm.running_var", "norm.bias"])
def test_changed_tensors_are_noticed(change):
    plain, folded = pair()
    with torch.no_grad():
        before = folded(IMAGES)["res5"]
        for network in (plain, folded):
            network.state_dict()[f"stem.conv1.{change}"].mul_(1.5)
        after = folded(IMAGES)["res5"]
        assert not torch.allclose(before, after)
        close({"res5": plain(IMAGES)["res5"]}, {"res5": after})
        twin = copy.deepcopy(folded)
        twin.stem.conv1.weight.mul_(2)
        assert torch.equal(folded(IMAGES)["res5"], after)
        assert not torch.allclose(twin(IMAGES)["res5"], after)
