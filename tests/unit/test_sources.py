"""Test what sources of weights say about their networks, against the libraries' own tables."""

import json
from pathlib import Path

import pytest
from torchvision.models import ResNet50_Weights

from robust_backbones import sources, weights
from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import PRESETS


def test_weights_of_torchvision_are_those_of_its_table():
    expected = ResNet50_Weights.IMAGENET1K_V2
    found = sources.of_library("torchvision://resnet50.IMAGENET1K_V2")
    assert found.url == expected.url and found.digest in expected.url and len(found.digest) == 8
    assert found.stated.arch == "resnet50"
    assert list(found.stated.statistics.mean) == expected.transforms().mean
    assert found.stated.facts["input_size"] == 224
    assert found.stated.facts["dataset"] == "imagenet"


@pytest.mark.parametrize(
    ("tag", "dataset"),
    [
        ("fb_in1k", "imagenet"),
        ("IMAGENET1K_V2", "imagenet"),
        ("ms_in22k", "imagenet22k"),
        ("augreg_in21k_ft_in1k", "imagenet21k+imagenet"),
        ("laion2b_ft_in12k_in1k", "laion2b+imagenet12k+imagenet"),
        ("clip_laion2b_augreg", "laion2b"),
        ("mae_in1k_ft_in1k", "imagenet"),
        ("ns_jft_in1k", "jft+imagenet"),
        ("seer_ft_in1k", None),  # the tag does not say what SEER is pretrained on
        ("fb", None),
    ],
)
def test_tags_state_the_pretraining_data(tag, dataset):
    assert sources.training(tag).get("dataset") == dataset
    assert sources.training(tag)["method"] == "standard"
    assert sources.training("ap_in1k")["method"] == "adversarial" and not sources.training("")


@pytest.mark.parametrize(
    ("name", "arch", "preset", "size"),
    [
        ("convnext_tiny.fb_in1k", "timm:convnext_tiny", "imagenet", 224),
        ("vit_small_patch16_384.augreg_in1k", "timm:vit_small_patch16_384", "half", 384),
        ("vit_base_patch16_clip_224.openai", "timm:vit_base_patch16_clip_224", "clip", 224),
        ("resnet50.a1_in1k", "resnet50", "imagenet", 224),
    ],
)
def test_weights_of_timm_are_those_of_its_table(name, arch, preset, size):
    pytest.importorskip("timm", reason="timm is not installed")
    found = sources.of_library(f"timm://{name}")
    assert found.hub == (f"timm/{name}", "model.safetensors")
    assert found.stated.arch == arch and found.stated.statistics.equal(PRESETS[preset])
    assert found.stated.facts["input_size"] == size
    assert sources.training(sources.tag(f"timm://{name}")).items() <= found.stated.facts.items()
    hub = sources.stated(f"hf://timm/{name}/model.safetensors", Path("model.safetensors"))
    assert hub == found.stated


def test_a_hub_repository_says_what_its_config_says(tmp_path):
    config = {"architecture": "swin_tiny_patch4_window7_224"}
    config["pretrained_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 256, 256]}
    config["pretrained_cfg"]["tag"] = "ms_in22k_ft_in1k"
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = sources.stated("hf://someone/model", tmp_path / "model.safetensors")
    assert found.arch == "timm:swin_tiny_patch4_window7_224" and found.facts["input_size"] == 256
    assert found.statistics.equal(PRESETS["half"])
    assert found.facts["dataset"] == "imagenet22k+imagenet"
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is not JSON"):
        sources.stated("hf://someone/model", tmp_path / "model.safetensors")
    for empty in ("{}", "[]"):
        (tmp_path / "config.json").write_text(empty)
        found = sources.stated("hf://someone/model", tmp_path / "model.safetensors")
        assert found == sources.Stated()
    assert sources.stated("hf://someone/model", tmp_path / "model.safetensors") == sources.Stated()
    assert sources.stated("a.pth", tmp_path / "a.pth") == sources.Stated()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm://convnext_tiny.fb_in2k", "no weights 'convnext_tiny.fb_in2k'. Did you mean"),
        ("timm://nonsense", "timm .* has no weights 'nonsense'"),
        ("torchvision://resnet50.V3", "Choose from torchvision://resnet50.IMAGENET1K_V1, "),
        ("torchvision://vit_b_16.IMAGENET1K_V1", "Choose from resnet18"),
        ("timm:resnet50", "For timm weights, use timm://resnet50"),
        ("resnet50", "torchvision://resnet50.IMAGENET1K_V2"),
    ],
)
def test_wrong_names_are_explained(source, message):
    pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(UserError, match=message):
        weights.fetch_weights(source)
