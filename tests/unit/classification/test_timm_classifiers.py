"""timm networks as classifiers: logits, features, head, one step of training, one attack."""

import pytest
import torch

from classification.models import Classifier, backbone_digest
from classification.training.learner import Learner
from robust_backbones import timm_networks
from robust_backbones.attacks import pgd
from robust_backbones.core.errors import UserError
from tests.support.small_models import learning, trained_on

timm = pytest.importorskip("timm", reason="timm is not installed")

# timm networks, small ones of many families. All take 64 pixels, except those with a size.
NETWORKS = {
    **dict.fromkeys(("convnext_atto", "convnextv2_atto", "test_convnext"), 64),
    **dict.fromkeys(("convnext_tiny_cvst", "edgenext_xx_small"), 64),
    **dict.fromkeys(("vit_tiny_patch16_224", "test_vit", "xcit_nano_12_p16_224"), 64),
    **dict.fromkeys(("swin_tiny_patch4_window7_224", "pvt_v2_b0"), 64),
    **dict.fromkeys(("mixer_s32_224",), 224),
    **dict.fromkeys(("resnet10t", "resnet18d", "seresnet18", "resnetblur18"), 64),
    **dict.fromkeys(("regnetx_002", "regnety_002", "test_byobnet", "mobilevit_xxs"), 64),
    **dict.fromkeys(("efficientnet_b0", "tinynet_e", "mnasnet_small", "ghostnet_050"), 64),
    **dict.fromkeys(("mobilenetv3_small_050", "lcnet_035", "test_nfnet"), 64),
    **dict.fromkeys(("mambaout_femto", "hgnetv2_b0", "ese_vovnet19b_slim_dw"), 64),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_timm_is_a_classifier(name, capsys):
    size, labels = NETWORKS[name], torch.arange(3)
    timm_networks.check_size(f"timm:{name}", size)
    torch.manual_seed(0)
    model = Classifier.build(f"timm:{name}", 3).eval()
    x = torch.rand(3, 3, size, size)
    with torch.no_grad():
        features = model.features(x)
        theirs = model.net.forward_features(model.normalize(x))
        torch.testing.assert_close(model(x), model.net.forward_head(theirs), rtol=0, atol=1e-5)
        expected = model.net.forward_head(theirs, pre_logits=True)
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)

    task = model.for_task(5, seed=0)
    with torch.device("meta"):
        expected = timm_networks.build(f"timm:{name}", 5).state_dict()
    found = task.net.state_dict()
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}
    assert backbone_digest(task) == backbone_digest(model)
    task.freeze()
    assert [n for n, p in task.named_parameters() if p.requires_grad] == [
        f"net.{task.last}.weight",
        f"net.{task.last}.bias",
    ]

    tuned = model.for_task(5, seed=0)
    learner = Learner(tuned, learning(eps=0.5, steps=1, step_size=0.5, optimizer="adamw"))
    x_adv = pgd(learner.folded, x, labels, constraint="l2", eps=1.0, steps=1, step_size=1.0)
    assert ((x_adv - x).flatten(1).norm(dim=1) > 0.5).all()
    trained_on(learner, x, labels, 1e-3)
    assert not torch.equal(tuned.head.weight, task.head.weight)
    assert backbone_digest(tuned) != backbone_digest(task)
    assert capsys.readouterr().err == ""  # attacks run on the folded copy, which equals the network


@pytest.mark.parametrize(
    "name, size, message",
    [
        ("vit_tiny_patch16_224", 100, "does not accept images of this size .* own size is 224"),
        ("mixer_s32_224", 64, "does not accept images of this size .* own size is 224"),
    ],
)
def test_sizes_that_a_network_rejects_are_named(name, size, message):
    with pytest.raises(UserError, match=f"--image-size {size}: timm:{name} {message}"):
        timm_networks.check_size(f"timm:{name}", size)


@pytest.mark.parametrize(
    "arch, message",
    [
        ("timm:mixer_s32_224", None),
        ("timm:test_byobnet", None),
        ("timm:convnext_atto", None),
        ("resnet18", "resnet18 has no drop_path_rate. Choose a timm network"),
        ("timm:densenet121", "timm:densenet121 has no drop_path_rate. Omit it"),
    ],
)
def test_drop_path_acts_in_training_or_is_refused(arch, message):
    if message:
        with pytest.raises(UserError, match=message):
            Classifier.build(arch, 3, drop_path=0.5)
        return
    with torch.device("meta"):
        model = Classifier.build(arch, 3, drop_path=0.5)
    assert any(getattr(layer, "drop_prob", 0) == 0.5 for layer in model.modules())


def test_layer_decay_and_weight_decay_of_adamw():
    """The head has the full learning rate. Biases and norms have no weight decay."""
    model = Classifier.build("timm:test_vit", 3)
    settings = learning(method="standard", optimizer="adamw", layer_decay=0.5, weight_decay=0.1)
    learner = Learner(model, settings)
    rates, decays = {}, {}
    names = {id(p): name for name, p in model.named_parameters()}
    learner._begin_update(0.8)
    for group in learner.optimizer.param_groups:
        for p in group["params"]:
            rates[names[id(p)]], decays[names[id(p)]] = group["lr"], group["weight_decay"]
    assert rates.keys() == set(names.values())
    last = len(model.net.blocks) - 1
    assert rates["net.head.weight"] == 0.8
    for block in range(last):
        above, below = (f"net.blocks.{n}.attn.qkv.weight" for n in (block + 1, block))
        assert rates[below] == pytest.approx(rates[above] / 2)
    assert rates["net.patch_embed.proj.weight"] == min(rates.values())
    assert decays["net.blocks.0.attn.qkv.weight"] == 0.1
    assert decays["net.blocks.0.norm1.weight"] == decays["net.head.bias"] == 0
    assert decays["net.pos_embed"] == 0  # timm's rule for this network


@pytest.mark.parametrize(
    "arch, changes, message",
    [
        ("resnet18", dict(optimizer="adamw"), "ResNet does not state the order of its layers"),
        ("timm:test_vit", {}, "--layer-decay 0.5 needs --optimizer adamw"),
    ],
)
def test_layer_decay_is_refused_where_it_has_no_effect(arch, changes, message):
    with pytest.raises(UserError, match=message):
        Learner(Classifier.build(arch, 3), learning(layer_decay=0.5, **changes))
