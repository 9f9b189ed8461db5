"""A detector on a backbone with other input statistics than ImageNet's."""

import pytest
import torch
from torchvision.models.feature_extraction import create_feature_extractor

from robust_backbones.commands import convert
from robust_backbones.core.errors import UserError
from robust_backbones.detection import load
from robust_backbones.detection.backbone import set_architecture
from robust_backbones.detection.training import run, trainer
from tests.support.detector_runs import small
from tests.support.detectors import photograph, write_run
from tests.support.networks import random_network

HALF = [127.5, 127.5, 127.5]
IMAGENET = [123.675, 116.28, 103.53]


@pytest.fixture(scope="module")
def network():
    return random_network("resnet18")


@pytest.fixture(scope="module")
def half(network, tmp_path_factory):
    """The backbone of a classifier with mean and std 0.5."""
    folder = tmp_path_factory.mktemp("half")
    torch.save(network.state_dict(), folder / "source.pth")
    words = ["--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5"]
    convert.main([str(folder / "source.pth"), str(folder / "half.pth"), *words])
    return folder / "half.pth"


def checked(folder, weights, **more):
    """A configuration after the weights were read, as commands do before they start."""
    cfg = small(folder, weights, **more)
    set_architecture(cfg)
    return cfg


def test_the_detector_sees_what_the_classifier_sees(network, half, tmp_path, caplog):
    cfg = checked(tmp_path, half)
    assert cfg.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_STD == HALF
    assert cfg.MODEL.ROBUST.STATISTICS == "file"
    assert f"MODEL.PIXEL_MEAN is set to {HALF}" in caplog.text
    made = trainer.Trainer(cfg)
    made.resume_or_load(resume=False)
    image = torch.from_numpy(photograph(64, 96).copy()).permute(2, 0, 1)
    model = made.model.eval()
    with torch.no_grad():
        normalized = model.preprocess_image([{"image": image}]).tensor
        found = model.backbone.bottom_up(normalized)["res5"]
        extractor = create_feature_extractor(network, {"layer4": "res5"})
        expected = extractor(((image.float() / 255 - 0.5) / 0.5)[None])
    torch.testing.assert_close(found, expected["res5"], rtol=1e-4, atol=1e-4)


def test_training_evaluation_and_prediction(half, tmp_path):
    checkpoint = write_run(tmp_path, half)
    metadata = torch.load(checkpoint, weights_only=True)["metadata"]
    assert metadata["mean"] == metadata["std"] == [0.5, 0.5, 0.5]
    predictor = load(tmp_path)
    assert predictor.model.pixel_mean.flatten().tolist() == HALF
    assert predictor.cfg.MODEL.ROBUST.STATISTICS == "file"
    # The original config, with ImageNet's values, and this detector's weights.
    assert checked(tmp_path, checkpoint).MODEL.PIXEL_STD == HALF


def test_a_builder_sets_the_statistics_for_other_programs(half, tmp_path):
    cfg = small(tmp_path, half)
    cfg.freeze()
    model = trainer.Trainer.build_model(cfg)
    assert model.pixel_std.flatten().tolist() == HALF
    assert cfg.is_frozen()


OTHER = "[100.0, 100.0, 100.0]"


def test_a_contradiction_is_one_error_with_its_fix(half, tmp_path):
    with pytest.raises(UserError, match="MODEL.PIXEL_STD is .100.*Set MODEL.PIXEL_STD to .127.5"):
        checked(tmp_path, half, **{"MODEL.PIXEL_STD": OTHER})


def test_assumed_statistics_are_said_recorded_and_can_be_stated(
    resnet18_backbone, tmp_path, caplog
):
    cfg = checked(tmp_path, resnet18_backbone)
    assert cfg.MODEL.ROBUST.STATISTICS == "assumed" and cfg.MODEL.PIXEL_MEAN == IMAGENET
    assert caplog.text.count("ImageNet's are assumed. Convert the classifier with --mean") == 1
    made = trainer.Trainer(cfg)
    assert made.checkpointer._metadata()["statistics"] == "assumed"
    stated = checked(tmp_path, resnet18_backbone, **{"MODEL.PIXEL_MEAN": OTHER})
    assert stated.MODEL.ROBUST.STATISTICS == "given"
    made = trainer.Trainer(stated)
    made.resume_or_load(resume=False)  # the file's assumption contradicts nothing
    assert "statistics" not in made.checkpointer._metadata()


def test_the_result_names_the_source(half, tmp_path):
    cfg = checked(tmp_path, half)
    run.write_result(cfg, {}, None, 0.0, "result.json")
    settings = run.json.loads((tmp_path / "result.json").read_text())["settings"]["MODEL"]
    assert settings["PIXEL_MEAN"] == HALF and settings["ROBUST"]["STATISTICS"] == "file"
