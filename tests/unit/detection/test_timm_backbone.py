"""timm networks under Detectron2: features, training, freezing, recipes and refusals."""

import pytest
import safetensors.torch
import torch
from detectron2.utils.events import EventStorage

from robust_backbones import timm_networks, weights
from robust_backbones.checkpoint import export
from robust_backbones.checkpoint.io import read_checkpoint, save_file
from robust_backbones.core.errors import UserError
from robust_backbones.detection import backbone, config, run_checks, timm_backbone, verify
from robust_backbones.detection.checkpointer import StrictCheckpointer
from robust_backbones.detection.model_weights import arch_of
from robust_backbones.detection.timm_backbone import SimplePyramid, TimmNetwork, feature_maps
from robust_backbones.detection.training.optimizer import build_optimizer
from robust_backbones.detection.training.trainer import Trainer
from tests.support import ROOT
from tests.support.detector_runs import ready_trainer, small
from tests.support.networks import random_network

BUILDER = {"MODEL.BACKBONE.NAME": backbone.TIMM_BUILDER, "MODEL.ROBUST.ARCH": ""}
# Small networks, and the modules of the classifier whose outputs are res2 to res5, or the last map.
NETWORKS = {
    "convnext_atto": "stages.{}",
    "swin_tiny_patch4_window7_224": "layers.{}",
    "resnet18d": "layer{}+1",
    "vit_tiny_patch16_224": "blocks.11",
}
SLOW = {
    "convnextv2_atto": "stages.{}",
    "swinv2_tiny_window8_256": "layers.{}",
    "regnetx_002": "s{}+1",
    "regnety_002": "s{}+1",
    "seresnet18": "layer{}+1",
    "resnetblur18": "layer{}+1",
    "mobilenetv3_small_050": "blocks.0 blocks.1 blocks.3 blocks.5",
    "edgenext_xx_small": "stages.{}",
    "pvt_v2_b0": "stages.{}",
    "focalnet_tiny_srf": "layers.{}",
    "repvgg_a0": "stages.{}",
    "deit3_small_patch16_224": "blocks.11",
    "xcit_nano_12_p16_224": "blocks.11",
}
ALL = [*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def modules(name) -> list[str]:
    pattern = (NETWORKS | SLOW)[name]
    if "{}" not in pattern:
        return pattern.split()
    first = pattern.endswith("+1")
    return [pattern.removesuffix("+1").format(stage + first) for stage in range(4)]


def classifier_file(folder, name):
    """The classifier, and a file with its weights and statistics of its own."""
    network = random_network(f"timm:{name}", 7)
    contents = {"model": network.state_dict(), "arch": name, "mean": [0.4] * 3, "std": [0.3] * 3}
    torch.save(contents, folder / "classifier.pth")
    return network, folder / "classifier.pth"


def converted_file(folder, name):
    """The classifier, and the converted file."""
    network, source = classifier_file(folder, name)
    save_file(export.detectron2_contents(read_checkpoint(source)), folder / "backbone.pth")
    return network, folder / "backbone.pth"


def activations(network, names, images) -> list[torch.Tensor]:
    """Outputs of modules while the classifier predicts, as `(N, C, h, w)`."""
    found = []
    hooks = [
        network.get_submodule(n).register_forward_hook(lambda *args: found.append(args[2]))
        for n in names
    ]
    with torch.no_grad():
        assert network(images).shape[1] == 7
    for hook in hooks:
        hook.remove()
    return found


def as_map(tensor, shape) -> torch.Tensor:
    """Turn tokens, with or without a class token, or channels-last maps into `(N, C, h, w)`."""
    if tensor.ndim == 3:
        tensor = tensor[:, -shape[2] * shape[3] :].transpose(1, 2).reshape(shape)
    return tensor if tensor.shape == shape else tensor.permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", ALL)
def test_a_network_under_mask_rcnn(name, tmp_path):
    """Converted, loaded strictly: the classifier's activations; then inference and one update."""
    network, file = converted_file(tmp_path, name)
    with EventStorage():
        made = ready_trainer(tmp_path / "run", file, **underscored(BUILDER))
        detector = made.model.eval()
        body = detector.backbone.bottom_up
        assert body.arch == f"timm:{name}"
        for height, width in ((70, 90), (123, 41)):
            image = torch.randint(0, 256, (3, height, width)).float()
            padded = detector.preprocess_image([{"image": image}]).tensor
            normal = (image / 255 - 0.4) / 0.3
            torch.testing.assert_close(padded[0, :, :height, :width], normal, atol=1e-4, rtol=0)
            with torch.no_grad():
                maps = body(padded)
                (output,) = detector([{"image": image, "height": height, "width": width}])
            expected = activations(network, modules(name), padded)
            for found, activation in zip(maps.values(), expected, strict=True):
                activation = as_map(activation, found.shape)
                scale = activation.abs().max()
                assert ((found - activation).abs().max() / scale).item() <= 1e-5
            assert output["instances"].has("pred_masks")
        detector.train()
        before = {n: p.clone() for n, p in detector.named_parameters()}
        made.run_step()  # raises on losses that are not finite
        without = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
        assert not without  # distributed training requires all gradients
        moved = [n for n, p in detector.named_parameters() if not torch.equal(p, before[n])]
        assert any(n.startswith("backbone.bottom_up.network.") for n in moved)
        assert set(moved) <= {n for n, p in detector.named_parameters() if p.requires_grad}


def underscored(settings) -> dict:
    return {key.replace(".", "__"): value for key, value in settings.items()}


@pytest.fixture(scope="module")
def atto(tmp_path_factory):
    """A small ConvNeXt as a converted file."""
    return converted_file(tmp_path_factory.mktemp("atto"), "convnext_atto")[1]


@pytest.mark.parametrize("arch", ["convnext_atto", "vit_tiny_patch16_224"])
def test_levels_of_retinanet(arch):
    keys = ["MODEL.BACKBONE.NAME", backbone.TIMM_BUILDER, "MODEL.ROBUST.ARCH", f"timm:{arch}"]
    cfg = config.load_config("own_data_retinanet.yaml", keys)
    with torch.device("meta"):
        if arch.startswith("vit"):
            with pytest.raises(UserError, match=r"p5, p6. Set .* one list of MODEL.ANCHOR_GEN"):
                timm_backbone.build_robust_timm_fpn_backbone(cfg, verify.RGB)
            return
        built = timm_backbone.build_robust_timm_fpn_backbone(cfg, verify.RGB)
    strides = {name: shape.stride for name, shape in built.output_shape().items()}
    assert strides == {f"p{level}": 1 << level for level in range(3, 8)}


def test_only_the_whole_network_is_loaded(atto, tmp_path):
    contents = torch.load(atto, weights_only=True)
    cases = {
        "another": (contents["model"] | {"stem.0.weight": torch.zeros(8, 3, 4, 4)}, True),
        "classifier": (contents["model"], False),
    }
    for name, (tensors, heuristics) in cases.items():
        changed = contents | {"model": tensors, "matching_heuristics": heuristics}
        torch.save(changed, tmp_path / f"{name}.pth")
    made = small(tmp_path, atto, **BUILDER)
    detector = StrictCheckpointer(build(made))
    with pytest.raises(UserError, match="of a timm:convnext_atto do not fit .* 1 tensor .*stem.0"):
        detector.resume_or_load(str(tmp_path / "another.pth"), resume=False)
    with pytest.raises(UserError, match="the weights are a classifier. Convert them: robust-"):
        detector.resume_or_load(str(tmp_path / "classifier.pth"), resume=False)


def build(cfg):
    return Trainer.build_model(cfg)


def test_a_trained_detector_gives_its_backbone_back(atto, tmp_path):
    cfg = small(tmp_path, atto, **BUILDER)
    saved = StrictCheckpointer(build(cfg), str(tmp_path))
    saved.resume_or_load(str(atto), resume=False)
    saved.save("model_final")
    file = tmp_path / "model_final.pth"
    found = read_checkpoint(file, from_detector=True)
    assert (found.arch, found.layout) == ("timm:convnext_atto", "detectron2")
    expected = torch.load(atto, weights_only=True)["model"]
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.items())
    assert found.statistics.mean == pytest.approx((0.4, 0.4, 0.4), abs=1e-5)
    verify.verify_backbone(found, found.tensors)
    assert arch_of(str(file)) == "timm:convnext_atto"
    with pytest.raises(UserError, match="the file is a whole detector"):
        read_checkpoint(file)


def meta(name, **options) -> TimmNetwork:
    with torch.device("meta"):
        return TimmNetwork(f"timm:{name}", **options)


# Network, frozen parts, and the frozen modules besides those after the last map.
FROZEN = [
    ("convnext_atto", 0, []),
    ("convnext_atto", 2, ["stem", "stages.0"]),
    ("vit_tiny_patch16_224", 2, ["patch_embed", "cls_token", "pos_embed", "blocks.0"]),
    ("resnet18d", 1, ["conv1", "bn1"]),
]


@pytest.mark.parametrize(("name", "parts", "frozen"), FROZEN)
def test_frozen_parts(name, parts, frozen):
    body = meta(name, freeze_at=parts, norm="BN").train()
    for parameter, tensor in body.network.named_parameters():
        expected = parameter in body.used and not parameter.startswith(tuple(frozen))
        assert tensor.requires_grad == expected, parameter
    for part, module in body.network.named_modules():
        if part and list(module.parameters()):
            assert module.training == any(p.requires_grad for p in module.parameters()), part


@pytest.mark.parametrize(
    ("norm", "kind", "training"),
    [("FrozenBN", "BatchNorm2d", False), ("BN", "Batch", True), ("SyncBN", "SyncBatch", True)],
)
def test_batch_norm(norm, kind, training):
    body = meta("resnet18d", norm=norm).train()
    layers = [part for part in body.network.modules() if "BatchNorm" in type(part).__name__]
    assert len(layers) == 22
    for layer in layers:
        assert type(layer).__name__.startswith(kind)
        assert layer.training == layer.weight.requires_grad == training


def test_drop_path_and_checkpointing_do_not_change_features():
    torch.manual_seed(0)
    plain = TimmNetwork("timm:vit_tiny_patch16_224").eval()
    other = TimmNetwork("timm:vit_tiny_patch16_224", drop_path=0.5, checkpointing=True)
    other.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 64, 96)
    assert torch.equal(plain(image)["res4"], other.eval()(image)["res4"])
    assert not torch.equal(plain(image)["res4"], other.train()(image)["res4"])
    other.eval()(image)["res4"].sum().backward()
    plain(image)["res4"].sum().backward()
    for ours, theirs in zip(plain.parameters(), other.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_layers_are_the_published_ones():
    """ConvNeXt-B has 12 layers of up to 3 blocks, and ViT-B 12 of one block, besides the stem."""
    convnext = meta("convnext_base").layers(blocks=3)
    assert max(convnext.values()) == 12
    expected = {"stem.0.weight": 0, "stages.0.blocks.2.gamma": 1, "stages.1.downsample.1.bias": 2}
    expected |= {f"stages.2.blocks.{block}.gamma": 3 + block // 3 for block in range(27)}
    expected |= {"stages.3.downsample.0.bias": 12, "stages.3.blocks.2.mlp.fc2.bias": 12}
    assert expected.items() <= convnext.items()
    vit = meta("vit_base_patch16_224").layers(blocks=1)
    assert max(vit.values()) == 12
    assert {"pos_embed": 0, "blocks.0.norm1.bias": 1, "blocks.11.mlp.fc2.bias": 12}.items() <= (
        vit.items()
    )


def test_adamw_has_layer_wise_rates_and_decays_matrices_only(tmp_path):
    keys = {"SOLVER.OPTIMIZER": "AdamW", "SOLVER.LAYER_DECAY": "0.5", "SOLVER.BASE_LR": "0.1"}
    keys |= {"SOLVER.WEIGHT_DECAY": "0.2", "MODEL.ROBUST.ARCH": "timm:vit_tiny_patch16_224"}
    cfg = small(tmp_path, "", **(BUILDER | keys))
    model = build(cfg)
    found = {
        id(p): (group["lr"], group["weight_decay"])
        for group in build_optimizer(cfg, model).param_groups
        for p in group["params"]
    }
    expected = {
        "backbone.bottom_up.network.patch_embed.proj.weight": (0.1 * 0.5**13, 0.2),
        "backbone.bottom_up.network.pos_embed": (0.1 * 0.5**13, 0),
        "backbone.bottom_up.network.blocks.11.attn.qkv.weight": (0.05, 0.2),
        "backbone.bottom_up.network.blocks.11.attn.qkv.bias": (0.05, 0),
        "backbone.simfp_2.0.weight": (0.1, 0.2),
        "roi_heads.box_predictor.cls_score.bias": (0.1, 0),
    }
    named = dict(model.named_parameters())
    assert {name: found[id(named[name])] for name in expected} == expected
    assert len(found) == sum(p.requires_grad for p in model.parameters())

    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROBUST.ARCH = backbone.BUILDERS[1], "resnet18"
    with pytest.raises(UserError, match="LAYER_DECAY is 0.5, but build_robust_resnet_fpn_backbone"):
        build_optimizer(cfg, build(cfg))


def test_the_pyramid_of_a_plain_transformer():
    for patch, level in ((8, "res3"), (16, "res4"), (32, "res5")):
        body = meta(f"vit_small_patch{patch}_224")
        assert list(body.output_shape()) == [level]
        with torch.device("meta"):
            pyramid = SimplePyramid(body, 8)
            maps = pyramid(torch.empty(2, 3, 96, 160))
        assert {name: tuple(m.shape) for name, m in maps.items()} == {
            f"p{level}": (2, 8, -(-96 // 2**level), -(-160 // 2**level)) for level in range(2, 7)
        }
        assert {name: shape.stride for name, shape in pyramid.output_shape().items()} == {
            f"p{level}": 2**level for level in range(2, 7)
        }


UNSUITABLE = [
    ("mixer_s16_224", "cannot process images of 256x320 pixels, .*: Input height"),
    ("vit_small_patch14_dinov2", "divisible by patch size .14.. Choose another network"),
    ("convnext_none", "has no network 'convnext_none'. Did you mean"),
    ("resnet18d.ra2_in1k", "has no network 'resnet18d.ra2_in1k'. Did you mean"),
]


@pytest.mark.parametrize(("name", "message"), UNSUITABLE)
def test_networks_without_maps_for_a_pyramid(name, message):
    with pytest.raises(UserError, match=message):
        feature_maps(f"timm:{name}")


CONTRADICTIONS = [
    (
        ["MODEL.BACKBONE.NAME", backbone.BUILDERS[1]],
        "NAME is build_robust_resnet_fpn_backbone, but",
    ),
    (["MODEL.ROBUST.ARCH", "resnet18"], "but resnet18 needs build_robust_resnet_fpn_backbone"),
    (["MODEL.RESNETS.NORM", "nnSyncBN"], "NORM is 'nnSyncBN', which timm networks do not supp"),
    (["MODEL.FPN.IN_FEATURES", "['res3', 'res6']"], "has no map res6. Choose from res2, res3"),
    (
        ["MODEL.ROBUST.ARCH", "timm:vgg11"],
        "DROP_PATH is 0.1, but timm:vgg11 does not support drop path",
    ),
    (
        ["MODEL.ROBUST.ARCH", "timm:poolformer_s12", "MODEL.BACKBONE.FREEZE_AT", "1"],
        "timm does not divide timm:poolformer_s12 into stages. Set MODEL.BACKBONE.FREEZE_AT to 0",
    ),
]


@pytest.mark.parametrize(("changes", "message"), CONTRADICTIONS)
def test_settings_that_a_network_does_not_support(changes, message, tmp_path):
    keys = {"MODEL.ROBUST.ARCH": "timm:convnext_atto", "MODEL.ROBUST.DROP_PATH": "0.1"}
    changed = dict(zip(changes[::2], changes[1::2], strict=True))
    with pytest.raises(UserError, match=message):
        build(small(tmp_path, "", **(BUILDER | keys | changed)))


def test_timm_is_an_extra(monkeypatch):
    monkeypatch.setattr(timm_networks, "installed", lambda: False)
    timm_backbone._probe.cache_clear()
    with pytest.raises(UserError, match='Run: pip install "timm>=1.0"'):
        feature_maps("timm:convnext_atto")


PAIRS = {  # names of the packaged configs -> architecture of both
    "convnext_base": "timm:convnext_base",
    "swin_base": "timm:swin_base_patch4_window7_224",
    "vit_base": "timm:vit_base_patch16_224",
}


@pytest.mark.parametrize(("name", "arch"), PAIRS.items())
def test_pairs_differ_only_in_their_weights(name, arch):
    robust, standard = (
        config.load_config(ROOT / f"configs/coco_mask_rcnn_{name}_{kind}.yaml")
        for kind in ("robust_linf_eps4", "standard")
    )
    assert robust.MODEL.ROBUST.ARCH == standard.MODEL.ROBUST.ARCH == arch
    assert robust.MODEL.WEIGHTS.startswith("robust://")
    assert standard.MODEL.WEIGHTS.startswith("timm://")
    standard.OUTPUT_DIR, standard.MODEL.WEIGHTS = robust.OUTPUT_DIR, robust.MODEL.WEIGHTS
    assert robust.dump() == standard.dump()
    with torch.device("meta"):
        built = build_optimizer(robust, build(meta_config(robust)))
    assert type(built).__name__ == "AdamW"


def meta_config(cfg):
    cfg.MODEL.DEVICE = "meta"
    return cfg


def test_weights_of_timm_by_name(tmp_path, monkeypatch):
    """`timm://` names architecture and statistics; the file is converted at its first use."""
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(weights.MIRROR, str(tmp_path))
    file = tmp_path / "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k/model.safetensors"
    file.parent.mkdir(parents=True)
    network = random_network("timm:vit_tiny_patch16_224", 1000)
    safetensors.torch.save_file(network.state_dict(), file)
    name = "timm://vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    cfg = small(tmp_path, name, **(BUILDER | {"MODEL.ROBUST.ARCH": ""}))
    assert cfg.MODEL.ROBUST.ARCH == "timm:vit_tiny_patch16_224"
    cfg.DATASETS.TEST = ()
    run_checks.check_inputs(cfg, train=False)
    assert cfg.MODEL.PIXEL_MEAN == [127.5] * 3
    model = build(cfg)
    StrictCheckpointer(model).resume_or_load(name, resume=False)
    loaded = model.backbone.bottom_up.network.state_dict()
    assert all(torch.equal(loaded[key], network.state_dict()[key]) for key in loaded)
    contents = torch.load(next((tmp_path / "cache/detectron2").glob("*.pth")), weights_only=True)
    assert contents["metadata"]["source_metadata"]["input_size"] == 224
    with pytest.raises(UserError, match="timm .* has no weights 'vit_tiny_patch16_224.none'"):
        small(tmp_path, "timm://vit_tiny_patch16_224.none", **BUILDER)
    with pytest.raises(UserError, match="is a vgg16_bn, which is not supported as a backbone"):
        small(tmp_path, "torchvision://vgg16_bn.IMAGENET1K_V1", **BUILDER)
