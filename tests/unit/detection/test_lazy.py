"""Robust weights in Detectron2's LazyConfig: the input that they require, and strict loading."""

import re

import pytest
import torch
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from omegaconf import OmegaConf

from robust_backbones.checkpoint import export
from robust_backbones.checkpoint.io import read_checkpoint, save_file
from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import IMAGENET
from robust_backbones.detection.checkpointer import StrictCheckpointer
from robust_backbones.detection.lazy import use_weights
from tests.support import ROOT
from tests.support.networks import random_network


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory):
    path = tmp_path_factory.mktemp("lazy") / "resnet50.pth"
    torch.save(random_network("resnet50").state_dict(), path)
    save_file(export.detectron2_contents(read_checkpoint(path)), path.with_name("backbone.pth"))
    return path.with_name("backbone.pth")


@pytest.fixture
def mask_rcnn():
    """The model of Detectron2's LazyConfigs, with small heads."""
    try:
        model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    except RuntimeError:
        pytest.skip("this Detectron2 has no configs of the model zoo")
    model.roi_heads.box_head.fc_dims = [16]
    return model


def test_the_example_of_the_document_loads_the_backbone(mask_rcnn, resnet50, monkeypatch, tmp_path):
    text = (ROOT / "docs/guides/detectron2_project.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n([^`]*use_weights[^`]*)```", text)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block.replace("robust://resnet50_l2_eps3", str(resnet50)), names)
    expected = torch.load(resnet50, weights_only=True)["model"]
    state = names["model"].state_dict()
    for name, tensor in expected.items():
        assert torch.equal(state[f"backbone.bottom_up.{name}"], tensor), name
    cfg = names["cfg"]
    assert cfg.train.init_checkpoint == str(resnet50)
    assert cfg.dataloader.train.mapper.image_format == "RGB"
    assert cfg.dataloader.test.mapper.image_format == "RGB"
    assert names["model"].pixel_mean.flatten().tolist() == pytest.approx(IMAGENET.pixels[0])
    assert names["model"].pixel_std.flatten().tolist() == pytest.approx(IMAGENET.pixels[1])


CHECKPOINTERS = {
    "plain": lambda model, path: DetectionCheckpointer(model).load(path),
    "strict": lambda model, path: StrictCheckpointer(model).load(path, checkpointables=[]),
}
# Changes of a config that would feed the weights wrongly -> the error
WRONG = {
    "nothing set": (None, {}, "INPUT.FORMAT is BGR, but the weights require RGB"),
    "BGR": ("use", {"input_format": "BGR"}, "INPUT.FORMAT is BGR, but the weights require RGB"),
    "mean": (
        "use",
        {"pixel_mean": [103.53, 116.28, 123.675]},
        r"MODEL.PIXEL_MEAN is \[103.53, 116.28, 123.675\]",
    ),
    "stride": (
        "use",
        {"backbone.bottom_up.stages.stride_in_1x1": True},
        "STRIDE_IN_1X1 is True, but the weights require False",
    ),
}


@pytest.mark.parametrize("change", WRONG)
def test_a_model_with_another_input_is_refused(change, mask_rcnn, resnet50):
    use, values, message = WRONG[change]
    if use:
        use_weights(mask_rcnn, str(resnet50))
    for key, value in values.items():
        OmegaConf.update(mask_rcnn, key, value)
    model = instantiate(mask_rcnn)
    for load in CHECKPOINTERS.values():
        with pytest.raises(UserError, match=message):
            load(model, str(resnet50))


def test_weights_that_do_not_state_their_input_are_an_error(tmp_path):
    torch.save({"model": random_network("resnet18").state_dict()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="has no record of its input. Convert it with"):
        use_weights(OmegaConf.create({"pixel_mean": []}), str(tmp_path / "a.pth"))


def test_a_config_without_a_detector_is_an_error(resnet50):
    with pytest.raises(UserError, match="The config has no pixel_mean"):
        use_weights(OmegaConf.create({"train": {"amp": 1}}), str(resnet50))
