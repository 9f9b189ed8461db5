"""The architecture key, the input contract, and every config in configs/."""

import pytest
import torch

from robust_backbones.archs import RESNETS
from robust_backbones.checkpoint.key_names import to_detectron2
from robust_backbones.core.errors import UserError
from robust_backbones.detection import backbone, config, model_weights, verify
from robust_backbones.zoo import find_backbone
from tests.support import ROOT
from tests.support.networks import random_network

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def small(cfg):
    """The same config at a size for one fast forward pass."""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 5
    return cfg


# A config, and the weights that replace its own: every network, with and without masks.
BUILT = [
    ("voc_faster_rcnn_standard", None),
    ("coco_faster_rcnn_robust_eps3_1x", "resnet50_linf_eps4"),
    ("coco_mask_rcnn_robust_eps3", None),
    ("coco_mask_rcnn_standard", "resnet18_l2_eps3"),
    ("coco_mask_rcnn_standard", "wide_resnet50_2_l2_eps3"),
    ("digits_mask_rcnn_robust", None),
]


@pytest.mark.parametrize(("name", "weights"), BUILT)
def test_a_config_builds_and_runs(name, weights):
    from detectron2.modeling import build_model

    overrides = ["MODEL.WEIGHTS", f"robust://{weights}"] if weights else []
    cfg = small(config.load_config(f"{name}.yaml", overrides))
    model = build_model(cfg).eval()
    image = torch.randint(0, 256, (3, 64, 96)).float()
    with torch.no_grad():
        (output,) = model([{"image": image, "height": 64, "width": 96}])
    assert output["instances"].has("pred_masks") == cfg.MODEL.MASK_ON


def expected_configs() -> dict[str, tuple]:
    """`{name: (weights, masks, iterations)}`."""
    expected = {}
    for name, weights in (("standard", "resnet50_l2_eps0"), ("robust_eps3", "resnet50_l2_eps3")):
        expected[f"voc_faster_rcnn_{name}"] = (weights, False, 18000)
        for head in ("faster", "mask"):
            expected[f"coco_{head}_rcnn_{name}"] = (weights, head == "mask", 270000)
            expected[f"coco_{head}_rcnn_{name}_1x"] = (weights, head == "mask", 90000)
    return expected


def test_there_is_one_config_for_each_detector_dataset_and_schedule():
    expected = expected_configs()
    own = {"digits_mask_rcnn_robust", "digits_semantic_fpn_robust"}
    own |= {f"own_data_semantic_fpn{k}" for k in ("", "_timm")}
    own |= {f"ade20k_semantic_fpn_{k}" for k in ("robust_eps3", "standard")}
    own |= {f"own_data_{k}" for k in ("faster_rcnn", "faster_rcnn_timm", "mask_rcnn", "retinanet")}
    for name in ("convnext", "swin", "vit"):  # tested in test_timm_backbone.py
        own |= {f"coco_mask_rcnn_{name}_base_{k}" for k in ("robust_linf_eps4", "standard")}
    assert {path.stem for path in CONFIGS} == {*expected, *own}
    for name, weights in (("robust_eps3", "resnet50_l2_eps3"), ("standard", "resnet50_l2_eps0")):
        cfg = config.load_config(f"ade20k_semantic_fpn_{name}.yaml")
        assert cfg.MODEL.WEIGHTS == f"robust://{weights}"
        assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.SOLVER.MAX_ITER) == (150, 160_000)
    for name, (weights, masks, iterations) in expected.items():
        cfg = config.load_config(f"{name}.yaml")
        assert cfg.MODEL.WEIGHTS == f"robust://{weights}"
        assert (cfg.MODEL.MASK_ON, cfg.SOLVER.MAX_ITER) == (masks, iterations)
        assert cfg.MODEL.ROBUST.ARCH == find_backbone(weights).arch
        assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == (20 if name.startswith("voc") else 80)
        assert cfg.OUTPUT_DIR == f"output/{name}"


@pytest.mark.parametrize("arch", RESNETS)
def test_one_key_chooses_the_architecture(arch):
    """Built from the key alone, the network has torchvision's parameters, shape by shape."""
    with torch.device("meta"):
        built = backbone.build_robust_resnet_backbone(verify.target_config(arch), verify.RGB)
        expected, _ = to_detectron2(random_network(arch).state_dict())
    found = built.state_dict()
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}
    assert type(built).__module__.startswith("detectron2.")


def test_a_builder_of_its_own_refuses_a_name_of_another_architecture():
    """As in a project that never calls our `load_config`."""
    cfg = verify.target_config("resnet18")
    cfg.MODEL.WEIGHTS = "robust://resnet50_l2_eps3"
    with pytest.raises(UserError, match="ARCH is resnet18, but robust://resnet50_l2_eps3 is a res"):
        backbone.build_robust_resnet_backbone(cfg, verify.RGB)


@pytest.fixture
def backbone_file(tmp_path):
    """A converted resnet18 without metadata."""
    tensors, _ = to_detectron2(random_network("resnet18").state_dict())
    torch.save({"model": tensors}, tmp_path / "backbone.pth")
    return tmp_path / "backbone.pth"


def config_without_arch(weights):
    cfg = verify.target_config("")
    cfg.MODEL.WEIGHTS = str(weights)
    return cfg


def test_an_empty_arch_is_taken_from_the_weights(backbone_file, tmp_path):
    cfg = config_without_arch("robust://wide_resnet50_2_l2_eps3")
    backbone.set_architecture(cfg)  # not downloaded
    assert cfg.MODEL.ROBUST.ARCH == "wide_resnet50_2"
    assert cfg.MODEL.RESNETS.WIDTH_PER_GROUP == 128

    cfg = config_without_arch(backbone_file)
    backbone.set_architecture(cfg)
    assert cfg.MODEL.ROBUST.ARCH == "resnet18"

    contents = torch.load(backbone_file)
    torch.save(contents | {"metadata": {"arch": "resnet34"}}, tmp_path / "named.pth")
    assert model_weights.arch_of(str(tmp_path / "named.pth")) == "resnet34"
    detector = {f"backbone.bottom_up.{k}": v for k, v in contents["model"].items()}
    torch.save({"model": detector | {"head.weight": torch.zeros(1)}}, tmp_path / "detector.pth")
    assert model_weights.arch_of(str(tmp_path / "detector.pth")) == "resnet18"


def test_an_arch_that_the_weights_do_not_give(tmp_path):
    with pytest.raises(UserError, match="ARCH and MODEL.WEIGHTS are both empty. Set MODEL.ROBUST"):
        backbone.set_architecture(config_without_arch(""))
    with pytest.raises(UserError, match="'none.pth' does not exist. Give the checkpoint of a"):
        backbone.set_architecture(config_without_arch("none.pth"))
    with pytest.raises(UserError, match="' is a folder. Give the checkpoint of a"):
        backbone.set_architecture(config_without_arch(tmp_path))
    torch.save({"model": {"stem.conv1.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="ARCH is empty, and MODEL.WEIGHTS has no known arch.* Set"):
        backbone.set_architecture(config_without_arch(tmp_path / "other.pth"))


def test_the_pyramid_has_detectron2s_outputs():
    cfg = config.load_config(ROOT / "configs/digits_mask_rcnn_robust.yaml")
    built = backbone.build_robust_resnet_fpn_backbone(cfg, verify.RGB)
    assert list(built.output_shape()) == ["p2", "p3", "p4", "p5", "p6"]
    assert backbone.body(built) == ("bottom_up.", built.bottom_up)


CONTRADICTIONS = [
    (["MODEL.ROBUST.ARCH", "resnet9"], "ARCH 'resnet9' is unknown. .*Did you mean resnet18"),
    (["MODEL.RESNETS.DEPTH", "101"], "MODEL.RESNETS.DEPTH is 101, but resnet18 weights require 18"),
    (["MODEL.RESNETS.WIDTH_PER_GROUP", "128"], "WIDTH_PER_GROUP is 128, .* Set .* to 64"),
    (["MODEL.RESNETS.NUM_GROUPS", "32"], "NUM_GROUPS is 32, .* require 1"),
    (["INPUT.FORMAT", "BGR"], "INPUT.FORMAT is BGR, but weights trained on RGB .* require RGB"),
    (
        ["MODEL.PIXEL_MEAN", "[103.53, 116.28, 123.675]"],
        r"PIXEL_MEAN is \[103.53, .* require \[123.675",
    ),
    (["MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"], r"PIXEL_STD is \[1.0, .* require \[58.395"),
    (["MODEL.WEIGHTS", "detectron2://ImageNetPretrained/MSRA/R-50.pkl"], "requires BGR images"),
    (
        ["MODEL.ROBUST.ARHC", "resnet50"],
        "MODEL.ROBUST.ARHC is not a configuration key. Did you mean MODEL.ROBUST.ARCH",
    ),
    (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER is many. It must be an integer"),
    (["solver.max_iter", "3"], "solver.max_iter is not a .* Did you mean SOLVER.MAX_ITER"),
    (["DATASETS.OWN", "3"], "DATASETS.OWN is not a .* key. DATASETS has TRAIN, .*CUSTOM"),
    (["SOLVER.MAX_ITER"], "'SOLVER.MAX_ITER' has no value"),
    (["SOLVER.MAX_ITER=3"], "'SOLVER.MAX_ITER=3' has no value. Did you mean SOLVER.MAX_ITER 3"),
    (["MODEL.WEIGHTS", "None"], 'MODEL.WEIGHTS has no value. Give one, or "" for none.'),
    (["SEED", "-1"], "SEED is -1. It must be 0 or more"),
    (["MODEL.RESNETS.NORM", "GN"], "NORM is 'GN', but the weights have BatchNorm"),
    (["MODEL.RESNETS.NORM", ""], "NORM is '', but the weights have BatchNorm"),
]


@pytest.mark.parametrize(("overrides", "message"), CONTRADICTIONS, ids=lambda v: str(v)[:40])
def test_contradictions_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        config.load_config(ROOT / "configs/digits_mask_rcnn_robust.yaml", overrides)


def test_a_missing_or_broken_config_is_named(tmp_path):
    with pytest.raises(UserError, match="config file '.*none.yaml' does not exist"):
        config.load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("MODEL: [")
    with pytest.raises(UserError, match="config file '.*' is a folder"):
        config.load_config(tmp_path)
    with pytest.raises(UserError, match="bad.yaml: "):
        config.load_config(tmp_path / "bad.yaml")


def test_a_second_call_resets_nothing():
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.SEED = 3
    config.add_robust_config(cfg)
    assert cfg.SEED == 3 and cfg.MODEL.ROBUST.ARCH == ""
    cfg.MODEL.ROBUST.ARCH = "resnet18"
    config.add_robust_config(cfg)
    assert cfg.MODEL.ROBUST.ARCH == "resnet18"
