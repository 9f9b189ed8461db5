"""Test that image towers of CLIP are read as timm networks, against open_clip."""

import json

import pytest
import torch

from classification.models import fill
from robust_backbones import sources
from robust_backbones.checkpoint import clip
from robust_backbones.checkpoint.architectures import build_network, recognize
from robust_backbones.checkpoint.io import read_checkpoint
from robust_backbones.checkpoint.read import read_weights
from robust_backbones.checkpoint.wrappers import unwrap_network
from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import ASSUMED, PRESETS
from robust_backbones.meta_device import meta_device

pytest.importorskip("timm", reason="timm is not installed")

ATTO = {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear"}
SMALL = {"layers": 10, "width": 256, "patch_size": 16}
BASE = {"layers": 12, "width": 768, "patch_size": 32}
TEXT = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
# image tower, its network in timm, its size, whether it has QuickGELU
TOWERS = [
    (ATTO, "timm:convnext_atto", 64, False),
    (SMALL, "timm:vit_xsmall_patch16_clip_224", 224, False),
    (BASE, "timm:vit_base_patch32_clip_quickgelu_224", 224, True),
]


def config(tower: dict, size: int, quick: bool = False, **images) -> dict:
    """The `open_clip_config.json` of a repository, with QuickGELU as in files of FARE."""
    model = {"embed_dim": 6, "vision_cfg": tower | {"image_size": size}, "text_cfg": TEXT}
    more = {"quick_gelu": "TRUE"} if quick else {}
    return {"model_cfg": model | more, "preprocess_cfg": images}


def repository(folder, contents: dict, state: dict):
    (folder / "open_clip_config.json").write_text(json.dumps(contents))
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    return folder / "open_clip_pytorch_model.bin"


@pytest.mark.parametrize(("tower", "arch", "size", "quick"), TOWERS)
def test_features_are_those_of_open_clip(tmp_path, tower, arch, size, quick):
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    torch.manual_seed(0)
    contents = config(tower, size, quick)
    network = open_clip.model.CLIP(**contents["model_cfg"]).eval()
    for parameter in network.parameters():  # biases and norms differ from their initial values
        parameter.data += 0.01 * torch.randn(parameter.shape)
    path = repository(tmp_path, contents, network.state_dict())
    found = read_weights("hf://someone/clip", path=path)
    assert (found.arch, found.layout) == (arch, "clip")
    assert found.statistics.equal(PRESETS["clip"])
    assert found.metadata["input_size"] == size
    model = fill(found).for_task(3, seed=0).eval()
    x = torch.rand(2, 3, size, size)
    features, expected = model.features(x), network.encode_image(model.normalize(x))
    trunk = "timm_model_name" in tower
    head = network.visual.head.proj.weight if trunk else network.visual.proj.T
    torch.testing.assert_close(features @ head.T, expected, rtol=1e-5, atol=1e-5)
    assert {text.partition(".")[0] for text, why in found.dropped.items() if why == clip.TEXT} == {
        "positional_embedding",
        "text_projection",
        "logit_scale",
        "token_embedding",
        "transformer",
        "ln_final",
    }
    with pytest.raises(UserError, match="no last layer .*: projection to the embeddings"):
        found.require_head("clip")


def convnext_clip() -> dict:
    tower = build_network("timm:convnext_atto", 6).state_dict()
    state = {f"visual.trunk.{k}": t for k, t in tower.items() if not k.startswith("head.fc")}
    state["visual.head.proj.weight"] = torch.zeros(6, 320)
    return state | {"logit_scale": torch.tensor(1.0), "text.ln_final.bias": torch.zeros(8)}


def test_a_convnext_is_recognized_without_a_configuration(tmp_path):
    state = convnext_clip()
    for contents in (
        state,
        {"epoch": 3, "state_dict": {f"module.{k}": t for k, t in state.items()}},
    ):
        torch.save(contents, tmp_path / "clip.pt")
        found = read_checkpoint(tmp_path / "clip.pt")
        assert (found.arch, len(found.dropped)) == ("timm:convnext_atto", 3)
        assert found.statistics == PRESETS["clip"].of(ASSUMED)
        names = build_network(found.arch, 2).state_dict()
        assert found.tensors.keys() == {name for name in names if "head.fc" not in name}


def test_a_vit_without_a_configuration_needs_the_activation():
    with meta_device():
        tower = build_network("timm:vit_base_patch32_clip_224", 6).state_dict()
    tower = {k: torch.zeros(1).expand(t.shape) for k, t in tower.items() if "head" not in k}
    state = open_clip_names(tower)
    for contents in (state, {k.removeprefix("visual."): t for k, t in state.items()}):
        tensors = unwrap_network(contents, "file").tensors
        with pytest.raises(UserError, match="--arch timm:vit_base_patch32_clip_224 or timm:"):
            recognize(tensors, None, "file")
        arch = "timm:vit_base_patch32_clip_quickgelu_224"
        found = recognize(tensors, arch, "file")
        assert found.arch == arch and found.tensors.keys() == tower.keys()
    with pytest.raises(UserError, match="'optimizer' is neither in the image tower nor in the"):
        unwrap_network(state | {"optimizer": torch.zeros(1)}, "file")


def open_clip_names(state: dict) -> dict:
    """Rename the tensors of timm's ViT as in open_clip."""
    names = {
        "patch_embed.proj.": "conv1.",
        "norm_pre.": "ln_pre.",
        "norm.": "ln_post.",
        "blocks.": "transformer.resblocks.",
        ".norm1.": ".ln_1.",
        ".norm2.": ".ln_2.",
        ".attn.qkv.": ".attn.in_proj_",
        ".attn.proj.": ".attn.out_proj.",
        ".mlp.fc1.": ".mlp.c_fc.",
        ".mlp.fc2.": ".mlp.c_proj.",
    }
    found = {"visual.class_embedding": state["cls_token"][0, 0]}
    found["visual.positional_embedding"] = state["pos_embed"][0]
    for key, tensor in state.items():
        if key not in ("cls_token", "pos_embed"):
            for ours, theirs in names.items():
                key = key.replace(ours, theirs) if ours[0] == "." or key.startswith(ours) else key
            found[f"visual.{key}"] = tensor
    return found


@pytest.mark.parametrize(
    ("tower", "other"),
    [
        (SMALL | {"pool_type": "avg"}, "pool_type"),
        (SMALL | {"head_width": 32}, "width 256 with head_width 32"),
        (ATTO | {"timm_pool": "map"}, "timm_pool 'map'"),
    ],
)
def test_towers_that_timm_lacks_are_refused(tmp_path, tower, other):
    path = repository(tmp_path, config(tower, 224), {})
    with pytest.raises(
        UserError, match=f"hf://a/b: the image tower .* has {other}, and no timm network"
    ):
        sources.stated("hf://a/b", path)


def test_a_configuration_states_the_input(tmp_path):
    images = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    path = repository(tmp_path, config(ATTO, 96, **images), {})
    found = sources.stated("hf://a/b", path)
    assert found.statistics.equal(PRESETS["half"])
    assert found.facts == {"interpolation": "bilinear", "input_size": 96, "crop_pct": 1.0}
