"""The detector as a Python object: Detectron2's numbers, strict loading, clear refusals."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from robust_backbones import detection
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import sha256
from robust_backbones.detection.data.digit_scenes import CLASSES
from robust_backbones.detection.inspect import predictor as inspect_predictor
from robust_backbones.detection.inspect import torchscript
from tests.support.checkpoint_changes import without
from tests.support.detector_runs import DIGITS, small
from tests.support.detectors import photograph, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory, resnet18_backbone):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, resnet18_backbone)
    return folder


@pytest.fixture(scope="module")
def predictor(run):
    return detection.load(run)


def same(found, expected) -> bool:
    """Whether two `Instances` agree in every field, bit for bit."""
    a, b = found.get_fields(), expected.get_fields()
    tensors = [(getattr(a[k], "tensor", a[k]), getattr(b[k], "tensor", b[k])) for k in b]
    return a.keys() == b.keys() and all(torch.equal(x, y) for x, y in tensors)


def test_the_numbers_are_those_of_detectron2s_predictor(run, predictor):
    from detectron2.engine import DefaultPredictor

    theirs = DefaultPredictor(small(run, run / "model_final.pth"))
    for image in (photograph(), photograph(150, 60, seed=1)):
        expected = theirs(image[:, :, ::-1])["instances"]
        found = predictor(image)["instances"]
        assert len(expected) == 5 and found.image_size == image.shape[:2]
        assert same(found, expected)
        assert not same(predictor(image[:, :, ::-1])["instances"], expected)  # colours matter


def test_a_detector_for_bgr_images_gets_them_so(tmp_path, resnet18_backbone):
    """A stock Detectron2 config and its own backbone: RGB goes in here, too."""
    from detectron2.engine import DefaultPredictor

    bgr = {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.RESNETS.DEPTH": "18",
        "MODEL.RESNETS.RES2_OUT_CHANNELS": "64",
        "INPUT.FORMAT": "BGR",
    }
    write_run(tmp_path, "", **bgr)
    theirs = DefaultPredictor(small(tmp_path, tmp_path / "model_final.pth", **bgr))
    expected = theirs(photograph()[:, :, ::-1])["instances"]
    assert same(detection.load(tmp_path)(photograph())["instances"], expected)


@pytest.mark.parametrize(("constraint", "eps"), [("linf", 4 / 255), ("l2", 1.0)])
def test_an_attack_stays_in_the_ball_and_is_repeatable(predictor, constraint, eps):
    clean = predictor.preprocess(photograph())["image"]
    options = {"eps": eps, "steps": 2, "constraint": constraint}
    attacks = [predictor.attack(photograph(), **options) for _ in range(2)]
    assert torch.equal(*(attacked["image"] for attacked in attacks))
    order = {"linf": torch.inf, "l2": 2}[constraint]
    assert 0 < (attacks[0]["image"] - clean).norm(p=order) <= 255 * eps * (1 + 1e-5)
    assert len(predictor.model(attacks[:1])[0]["instances"]) == 5


def test_detections_become_ground_truth_of_the_resized_image():
    found = Instances((4, 4), pred_classes=torch.tensor([3]))
    found.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 2.0, 4.0]]))
    found.pred_masks = torch.tensor([[[True, True, False, False]] * 4])
    truth = inspect_predictor.as_truth(found, (8, 12))
    assert truth.gt_boxes.tensor.tolist() == [[0, 0, 6, 8]] and truth.gt_classes.tolist() == [3]
    assert truth.gt_masks.tensor[0].sum(0).tolist() == [8] * 6 + [0] * 6
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 2, 4]]


def sources(run, cfg):
    final = run / "model_final.pth"
    return {
        "folder": (run,),
        "checkpoint": (final,),
        "config and weights": (run / "config.yaml", final),
        "config that names them": (run / "config.yaml", None, None, ["MODEL.WEIGHTS", str(final)]),
        "CfgNode": (cfg, str(final)),
    }


@pytest.mark.parametrize("source", list(sources(DIGITS, None)))
def test_every_source_gives_the_same_detector(run, predictor, source):
    cfg = small(run, "")
    before = cfg.dump()
    found = detection.load(*sources(run, cfg)[source])
    assert found.weights_sha256 == predictor.weights_sha256 == sha256(run / "model_final.pth")
    assert not found.model.training and found.classes == CLASSES
    assert same(found(photograph())["instances"], predictor(photograph())["instances"])
    assert cfg.dump() == before  # the caller's configuration is left alone


def test_images_from_arrays_files_and_pillow_are_the_same(tmp_path, predictor):
    image = photograph()
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = predictor(image)["instances"]
    for form in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image)):
        assert same(predictor(form)["instances"], expected)
    grey = Image.fromarray(image[..., 0])
    three = np.repeat(image[..., :1], 3, axis=2)
    assert same(predictor(grey)["instances"], predictor(three)["instances"])


def test_the_orientation_of_a_file_is_applied(tmp_path, predictor):
    """As a camera held upright writes it: the pixels lie on their side, EXIF says so."""
    upright = photograph(120, 80)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    found = predictor(tmp_path / "turned.png")["instances"]
    assert found.image_size == (120, 80)
    assert same(found, predictor(upright)["instances"])


def test_a_list_is_a_batch(predictor, monkeypatch):
    images = [photograph(seed=1), photograph(seed=2)]
    alone = [predictor(image)["instances"] for image in images]
    calls = []
    forward = predictor.model.forward
    monkeypatch.setattr(predictor.model, "forward", lambda x: calls.append(len(x)) or forward(x))
    together = predictor(images)
    assert calls == [2]
    for one, output in zip(alone, together, strict=True):
        assert torch.allclose(
            output["instances"].pred_boxes.tensor, one.pred_boxes.tensor, atol=1e-3
        )
        assert torch.equal(output["instances"].pred_classes, one.pred_classes)
    assert predictor([]) == []


WRONG = [
    (np.zeros((8, 8), np.uint8), r"shape \(8, 8\). Give \(H, W, 3\), RGB"),
    (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\). Give \(H, W, 3\)"),
    (np.zeros((8, 8, 4), np.uint8), r"shape \(8, 8, 4\)"),
    (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
    (np.zeros((2, 8, 8, 3), np.uint8), "A batch is a list of images"),
    (np.zeros((8, 8, 3), np.float32), "float32. Give uint8 .* multiply values in .0, 1. by 255"),
    (np.zeros((8, 8, 3), np.int64), "an image has dtype int64"),
    (np.zeros((1, 9999, 3), np.uint8), "9999 x 1 pixels is too thin .*MAX_SIZE_TEST 1333"),
    (torch.zeros(8, 8, 3), "an image is a Tensor. Give an"),
    ([np.zeros((8, 8), np.uint8)], r"shape \(8, 8\)"),
    ("none.png", "image 'none.png' does not exist"),
    (__file__, "cannot be read as an image"),
]


@pytest.mark.parametrize(("image", "message"), WRONG, ids=[m[:25] for _, m in WRONG])
def test_what_is_no_image_is_refused(predictor, image, message):
    with pytest.raises(UserError, match=message):
        predictor(image)


def refused(run, tmp_path, backbone):
    final = run / "model_final.pth"
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished/config.yaml").write_text((run / "config.yaml").read_text())
    contents = torch.load(final, weights_only=True)
    without("roi_heads.box_predictor.cls_score.bias")(contents)
    torch.save(contents, tmp_path / "short.pth")
    (tmp_path / "alone.pth").write_bytes(b"")
    config = run / "config.yaml"
    return {
        "nothing": (("none",), "'none' does not exist. Give a run folder, a checkpoint"),
        "empty folder": ((tmp_path / "empty",), "contains no config.yaml"),
        "lone checkpoint": ((tmp_path / "alone.pth",), "contains no config.yaml.*Give the config"),
        "no checkpoint": ((tmp_path / "unfinished",), "contains no checkpoint. Give weights"),
        "no config": (("none.yaml",), "config file 'none.yaml' does not exist"),
        "backbone": (
            (config, backbone),
            "do not fit the detector of this config.* tensors are missing",
        ),
        "short": ((config, tmp_path / "short.pth"), "1 tensor is missing .*cls_score.bias"),
        "no weights": ((config, ""), "MODEL.WEIGHTS is empty. Give the checkpoint of a"),
        "missing": ((config, "none.pth"), "MODEL.WEIGHTS 'none.pth' does not exist. Give the"),
        "key": ((run, None, None, ["MODEL.NOTHING", 1]), "MODEL.NOTHING is not a conf"),
        "CfgNode key": ((small(run, final), None, None, ["MODEL.NOTHING", 1]), "MODEL.NOTHING"),
        "other model": (
            (run, None, None, ["MODEL.FPN.OUT_CHANNELS", 8]),
            "tensors are missing or have a different shape",
        ),
        "device": ((run, None, "gpu"), "device 'gpu' is unknown. Use 'cuda', 'cuda:1' or 'cpu'"),
    }


def test_loading_refuses(run, tmp_path, resnet18_backbone):
    for case, (arguments, message) in refused(run, tmp_path, resnet18_backbone).items():
        with pytest.raises(UserError) as error:
            detection.load(*arguments)
        assert re.search(message, str(error.value)), case


def test_the_cpu_serves_where_there_is_no_gpu(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made = detection.load(run, overrides=["MODEL.DEVICE", "cuda"])
    assert made.model.device.type == "cpu"
    with pytest.raises(UserError, match="device 'cuda:1': no CUDA GPU found"):
        detection.load(run, device="cuda:1")


def test_classes_are_those_of_the_weights_or_cannot_be_wrong(run, tmp_path):
    """Saved with the weights; where these are silent, as many as the detector has."""
    own = ["DATASETS.TEST", "('mine_val',)"]
    assert detection.load(run, overrides=own).classes == CLASSES
    contents = torch.load(run / "model_final.pth", weights_only=True)
    del contents["metadata"]["classes"]
    torch.save(contents, tmp_path / "silent.pth")
    silent = (run, tmp_path / "silent.pth", None)
    assert detection.load(*silent).classes == CLASSES  # of the data set in the config
    letters = tuple("abcdefghij")
    assert detection.load(*silent, [*own, "DATASETS.CLASSES", list(letters)]).classes == letters
    with pytest.raises(UserError, match="dataset 'mine_val' is not registered. Set DATASETS.CLA"):
        _ = detection.load(*silent, own).classes
    coco = ["DATASETS.TEST", "('coco_2017_val',)"]
    with pytest.raises(UserError, match="has 10 classes, .* dataset 'coco_2017_val' has 80. Set"):
        _ = detection.load(*silent, coco).classes
    made = detection.load(run, overrides=coco)
    assert made.classes == CLASSES == tuple(made.metadata.thing_classes)


# Runs exported files where Detectron2 cannot be imported.
READER = """
import json, sys
sys.modules["detectron2"] = sys.modules["robust_backbones"] = None
import torch, torchvision
for folder in sys.argv[1:]:
    extra = {"robust_backbones.json": ""}
    model = torch.jit.load(folder + "/detector.ts", _extra_files=extra)
    with torch.no_grad():
        outputs = model(torch.load(folder + "/input.pt"))
    facts = json.loads(extra["robust_backbones.json"])
    torch.save({"facts": facts, "outputs": outputs}, folder + "/output.pt")
"""


@pytest.mark.slow
def test_an_exported_detector_is_the_same_on_another_size(tmp_path, resnet18_backbone):
    """Traced on one image; run without Detectron2 on one of another size; the boxes and masks that
    Detectron2 makes of its outputs are the predictor's."""
    from detectron2.modeling.postprocessing import detector_postprocess
    from detectron2.structures import Boxes, Instances

    image, predictors, facts = photograph(130, 70, seed=3), {}, {}
    for masks in ("False", "True"):
        folder = tmp_path / masks
        write_run(folder, resnet18_backbone, **{"MODEL.MASK_ON": masks})
        predictors[masks] = made = detection.load(folder)
        facts[masks] = torchscript.export(made, folder / "detector.ts", photograph())
        torch.save(made.preprocess(image)["image"], folder / "input.pt")
    folders = [str(tmp_path / masks) for masks in predictors]
    subprocess.run([sys.executable, "-c", READER, *folders], check=True)

    for masks, made in predictors.items():
        read = torch.load(tmp_path / masks / "output.pt")
        assert read["facts"] == facts[masks]
        assert read["facts"]["classes"] == list(CLASSES)
        assert read["facts"]["weights_sha256"] == made.weights_sha256
        outputs = dict(zip(read["facts"]["outputs"], read["outputs"], strict=True))
        size = tuple(outputs.pop("image_size").tolist())
        outputs["pred_boxes"] = Boxes(outputs["pred_boxes"])
        found = detector_postprocess(Instances(size, **outputs), *image.shape[:2])
        expected = made(image)["instances"]
        assert len(expected) == 5 and expected.has("pred_masks") == (masks == "True")
        assert torch.allclose(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3)
        assert torch.allclose(found.scores, expected.scores, atol=1e-5)
        assert torch.equal(found.pred_classes, expected.pred_classes)
        if masks == "True":
            assert (found.pred_masks != expected.pred_masks).float().mean() < 1e-3


def test_an_export_that_would_be_wrong_is_not_written(tmp_path, run):
    """A model with a Python number in it, which tracing makes a constant."""
    target = tmp_path / "detector.ts"
    made = detection.load(run)
    inference = made.model.inference

    def shifted(inputs, do_postprocess):
        (found,) = inference(inputs, do_postprocess=do_postprocess)
        found.pred_boxes.tensor = found.pred_boxes.tensor + int(inputs[0]["image"].shape[2])
        return [found]

    made.model.inference = shifted
    with pytest.raises(UserError, match="differs from the model in pred_boxes on an image of"):
        torchscript.export(made, target, photograph())
    assert not target.exists()


def test_an_export_is_compared_on_objects(tmp_path, run):
    silent = detection.load(run, overrides=["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.999])
    with pytest.raises(UserError, match="finds nothing in the example"):
        torchscript.export(silent, tmp_path / "detector.ts", photograph())
    assert list(tmp_path.iterdir()) == []


def test_cascade_rcnn_is_verified_or_not_written(tmp_path, resnet18_backbone):
    """Detectron2 0.6 cannot export it, and newer releases can."""
    cascade = {
        "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
        "MODEL.MASK_ON": "False",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": "True",
    }
    write_run(tmp_path, resnet18_backbone, **cascade)
    fault = ""
    try:
        torchscript.export(detection.load(tmp_path), tmp_path / "detector.ts", photograph())
    except UserError as error:
        fault = str(error)
        assert re.search("cannot be exported to TorchScript: .*_ScaleGradient", fault)
    assert (tmp_path / "detector.ts").exists() == (not fault)
