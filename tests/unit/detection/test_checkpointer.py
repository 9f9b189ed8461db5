"""Strict loading: what is refused, and in which words."""

import contextlib
import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from robust_backbones.checkpoint import export
from robust_backbones.checkpoint.io import read_checkpoint, save_file
from robust_backbones.core.errors import UserError
from robust_backbones.detection.checkpointer import StrictCheckpointer
from robust_backbones.detection.training import run, trainer
from tests.support import small_detectors
from tests.support.bad_checkpoints import Bomb
from tests.support.checkpoint_changes import without
from tests.support.detector_runs import small
from tests.support.networks import random_network


def test_strict_loading_accepts_new_heads_only(tmp_path, resnet18_backbone):
    made = trainer.Trainer(small(tmp_path, resnet18_backbone))
    made.resume_or_load(resume=False)
    loaded = torch.load(resnet18_backbone, weights_only=True)["model"]
    state = made.model.state_dict()
    for name, tensor in loaded.items():
        assert torch.equal(state[f"backbone.bottom_up.{name}"], tensor)


def shorter(name):
    return lambda contents: contents["model"].update({name: contents["model"][name][1:]})


def metadata(key, value):
    return lambda contents: contents["metadata"].update({key: value})


def unprefixed(contents):
    contents["matching_heuristics"] = False


def classifier(contents):
    unprefixed(contents)
    contents["model"] = {f"network.layer1.{k}": v for k, v in contents["model"].items()}


def exact_but_short(contents):
    """The model's own names: Detectron2's matching, which drops wrong shapes, has no say."""
    unprefixed(contents)
    shorter("res5.1.conv2.norm.bias")(contents)
    contents["model"] = {f"backbone.bottom_up.{k}": v for k, v in contents["model"].items()}


SPOILED = [
    (exact_but_short, "1 tensor is missing .*res5.1.conv2.norm.bias"),
    (without("res4.0.shortcut.weight"), "1 tensor is missing .*res4.0.shortcut.weight"),
    (without("stem.conv1.norm.running_mean"), "1 tensor .*stem.conv1.norm.running_mean"),
    (shorter("res5.1.conv2.norm.bias"), "1 tensor is missing .*res5.1.conv2.norm.bias"),
    (unprefixed, "weights of a resnet18 do not fit the backbone .* 100 tensors .* and 97 more"),
    (classifier, "the weights are a classifier. Convert them: robust-backbones convert"),
    (metadata("channel_order", "BGR"), "INPUT.FORMAT is RGB, but the weights require BGR"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILED, ids=[m[:30] for _, m in SPOILED])
def test_strict_loading_refuses(tmp_path, resnet18_backbone, spoil, message):
    contents = torch.load(resnet18_backbone, weights_only=True)
    spoil(contents)
    torch.save(contents, tmp_path / "spoiled.pth")
    made = trainer.Trainer(small(tmp_path, tmp_path / "spoiled.pth"))
    with pytest.raises(UserError, match=message):
        made.resume_or_load(resume=False)


def test_a_stock_backbone_with_other_strides_or_colours_is_refused(tmp_path):
    """Detectron2's own builder and defaults: the shapes fit, the computation does not."""
    torch.save(random_network("resnet50").state_dict(), tmp_path / "r50.pth")
    contents = export.detectron2_contents(read_checkpoint(tmp_path / "r50.pth"))
    save_file(contents, tmp_path / "backbone.pth")
    stock = {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.RESNETS.STRIDE_IN_1X1": "True",
    }
    made = trainer.Trainer(small(tmp_path, tmp_path / "backbone.pth", **stock))
    with pytest.raises(UserError, match="STRIDE_IN_1X1 is True, but the weights require False"):
        made.resume_or_load(resume=False)
    contents["metadata"] |= {"mean": [0.5] * 3, "std": [0.5] * 3, "statistics": "file"}
    save_file(contents, tmp_path / "half.pth")
    stock["MODEL.RESNETS.STRIDE_IN_1X1"] = "False"
    made = trainer.Trainer(small(tmp_path, tmp_path / "half.pth", **stock))
    with pytest.raises(UserError, match=r"PIXEL_MEAN is \[123.* require \[127.5, .* Set MODEL.PIX"):
        made.resume_or_load(resume=False)
    made = trainer.Trainer(
        small(tmp_path, tmp_path / "backbone.pth", **stock, **{"INPUT.FORMAT": "BGR"})
    )
    with pytest.raises(UserError, match="INPUT.FORMAT is BGR, but the weights require RGB"):
        made.resume_or_load(resume=False)


def test_a_pickle_is_not_executed_and_a_flipped_bit_is_noticed(tmp_path, resnet18_backbone):
    mark = tmp_path / "executed"
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": Bomb(mark), "__author__": "x"}))
    data = bytearray(resnet18_backbone.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "b.pth").write_bytes(data)
    for name, message in (("a.pkl", "would execute code .builtins.exec"), ("b.pth", "is damaged")):
        made = trainer.Trainer(small(tmp_path, ""))
        with pytest.raises(UserError, match=message):
            made.checkpointer.load(str(tmp_path / name), [])
    assert not mark.exists()


def test_another_architectures_weights_are_refused(tmp_path):
    network = random_network("resnet50")
    torch.save(network.state_dict(), tmp_path / "r50.pth")
    contents = export.detectron2_contents(read_checkpoint(tmp_path / "r50.pth"))
    save_file(contents, tmp_path / "backbone.pth")
    made = trainer.Trainer(small(tmp_path, tmp_path / "backbone.pth"))
    with pytest.raises(
        UserError, match="weights of a resnet50 do not fit the backbone of this config"
    ):
        made.resume_or_load(resume=False)


def test_random_weights_must_be_said_and_are_logged(tmp_path, caplog):
    made = trainer.Trainer(small(tmp_path, ""))
    with caplog.at_level("WARNING"):
        made.resume_or_load(resume=False)
    assert "The model starts from random weights" in caplog.text


def test_evaluation_requires_the_heads_too(tmp_path, resnet18_backbone):
    with pytest.raises(UserError, match="tensors are missing or have a different shape"):
        run.evaluate(small(tmp_path, resnet18_backbone), resume=False)


SEMANTIC = {
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": "32",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": "3",
}


def test_a_semantic_segmentor_is_loaded_and_saved(tmp_path, resnet18_backbone):
    """Detectron2's `SemanticSegmentor` does not state its channel order."""
    cfg = small_detectors.tiny_config(**SEMANTIC)
    checkpointer = StrictCheckpointer(trainer.Trainer.build_model(cfg), str(tmp_path))
    checkpointer.input_format = cfg.INPUT.FORMAT
    checkpointer.load(str(resnet18_backbone), checkpointables=[])
    expected = torch.load(resnet18_backbone, weights_only=True)["model"]["stem.conv1.weight"]
    assert torch.equal(checkpointer.model.backbone.bottom_up.stem.conv1.weight, expected)
    checkpointer.save("a")
    assert torch.load(tmp_path / "a.pth", weights_only=True)["metadata"]["channel_order"] == "RGB"
    checkpointer.load(str(tmp_path / "a.pth"))  # whole

    checkpointer.input_format = "BGR"
    with pytest.raises(UserError, match="INPUT.FORMAT is BGR, but the weights require RGB"):
        checkpointer.load(str(resnet18_backbone), checkpointables=[])
    checkpointer.input_format = None
    checkpointer.load(str(resnet18_backbone), checkpointables=[])
    checkpointer.model.pixel_mean = checkpointer.model.pixel_mean.flip(0)
    with pytest.raises(UserError, match=r"MODEL.PIXEL_MEAN is \[103.53, 116.28, 123.675\]"):
        checkpointer.load(str(resnet18_backbone), checkpointables=[])


@pytest.mark.parametrize(
    "trained, used, error",
    [
        ([0, 4095], [0.0, 4095.0], None),
        ([], [0, 4095], None),  # 8-bit images are not scaled
        ([0, 4095], [], r"INPUT.IMAGE_RANGE is \[\], but the weights require \[0, 4095\]"),
        ([0, 4095], [0, 65535], r"is \[0, 65535\], but the weights require \[0, 4095\]"),
    ],
)
def test_a_detector_keeps_its_image_range(tmp_path, resnet18_backbone, trained, used, error):
    """Images with more than 8 bits would otherwise be scaled differently than in training."""
    cfg = small_detectors.tiny_config()
    checkpointer = StrictCheckpointer(trainer.Trainer.build_model(cfg), str(tmp_path))
    cfg.INPUT.IMAGE_RANGE = trained
    checkpointer.use_input(cfg)
    checkpointer.save("a")
    cfg.INPUT.IMAGE_RANGE = used
    checkpointer.use_input(cfg)
    with pytest.raises(UserError, match=error) if error else contextlib.nullcontext():
        checkpointer.load(str(tmp_path / "a.pth"))
    checkpointer.load(str(resnet18_backbone), checkpointables=[])  # a backbone has no range


class Wrapper(torch.nn.Module):
    """A project's model around a detector, without attributes of its own."""

    def __init__(self, model):
        super().__init__()
        self.detector = model


def test_a_wrapped_detector_is_loaded_strictly(tmp_path, resnet18_backbone):
    contents = torch.load(resnet18_backbone, weights_only=True)
    model = Wrapper(trainer.Trainer.build_model(small_detectors.tiny_config()))
    StrictCheckpointer(model).load(str(resnet18_backbone), checkpointables=[])
    found = model.detector.backbone.bottom_up.stem.conv1.weight
    assert torch.equal(found, contents["model"]["stem.conv1.weight"])
    del contents["model"]["res2.0.conv1.weight"]
    torch.save(contents, tmp_path / "short.pth")
    with pytest.raises(UserError, match="detector.backbone.bottom_up.res2.0.conv1.weight"):
        StrictCheckpointer(model).load(str(tmp_path / "short.pth"), checkpointables=[])
    model.detector.input_format = "BGR"
    with pytest.raises(UserError, match="INPUT.FORMAT is BGR"):
        StrictCheckpointer(model).load(str(resnet18_backbone), checkpointables=[])


def test_a_model_without_a_backbone_is_an_error(resnet18_backbone):
    with pytest.raises(UserError, match="Linear has no Detectron2 backbone"):
        StrictCheckpointer(torch.nn.Linear(1, 1)).load(str(resnet18_backbone), checkpointables=[])


def test_detectron2s_own_checkpointer_refuses_bgr_images(tmp_path, resnet18_backbone):
    model = trainer.Trainer.build_model(small_detectors.tiny_config())
    DetectionCheckpointer(model).load(str(resnet18_backbone))
    model.input_format = "BGR"
    with pytest.raises(UserError, match="INPUT.FORMAT is BGR, but the weights require RGB"):
        DetectionCheckpointer(model).load(str(resnet18_backbone))
    # Files that do not state their input are loaded as before.
    torch.save({"model": model.state_dict(), "metadata": {"mean": "x"}}, tmp_path / "other.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "other.pth"))
