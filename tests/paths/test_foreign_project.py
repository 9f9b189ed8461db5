"""Another Detectron2 project gets a robust backbone.

The files of docs/guides/detectron2_project.md train and evaluate with Detectron2's own trainer.
"""

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys

import pytest
import torch

from robust_backbones.core.errors import UserError
from robust_backbones.detection import add_robust_config, load
from tests.support import ROOT
from tests.support.checkpoint_changes import without
from tests.support.detector_runs import DIGITS
from tests.support.detectors import photograph

SMALL = {
    "MODEL.ROBUST.ARCH": "resnet18",
    "MODEL.DEVICE": "cpu",
    "MODEL.MASK_ON": "True",
    "MODEL.FPN.OUT_CHANNELS": "16",
    "MODEL.RPN.CONV_DIMS": "[16]",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "20",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "5",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": "16",
    "MODEL.ROI_HEADS.NUM_CLASSES": "10",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "8",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "16",
    "MODEL.RETINANET.NUM_CLASSES": "10",
    "MODEL.RETINANET.NUM_CONVS": "1",
    "MODEL.RETINANET.SCORE_THRESH_TEST": "0.0",
    "TEST.DETECTIONS_PER_IMAGE": "5",
    "INPUT.MIN_SIZE_TRAIN": "(96,)",
    "INPUT.MIN_SIZE_TEST": "96",
    "INPUT.MASK_FORMAT": "bitmask",
    "DATASETS.TRAIN": "('digit_scenes_train',)",
    "DATASETS.TEST": "('digit_scenes_val',)",
    "DATALOADER.NUM_WORKERS": "0",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "2",
    "SOLVER.WARMUP_ITERS": "0",
    "SOLVER.BASE_LR": "0.001",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the three files of the document."""
    folder = tmp_path_factory.mktemp("project")
    text = (ROOT / "docs/guides/detectron2_project.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^`([\w.]+)`[^\n]*(?:\n[^\n`]+)*\n\n```\w+\n(.*?)```", text, re.M | re.S)
    assert [name for name, _ in blocks] == ["train.py", "cascade.yaml", "retinanet.yaml"]
    for name, contents in blocks:
        contents = contents.replace("robust-backbones/configs", str(ROOT / "configs"))
        (folder / name).write_text(contents, encoding="utf-8")
    return folder


def options(folder, weights, **more) -> list[str]:
    settings = SMALL | {"OUTPUT_DIR": str(folder), "MODEL.WEIGHTS": str(weights)} | more
    return [part for pair in settings.items() for part in pair]


def script(project):
    """`train.py` as a module."""
    spec = importlib.util.spec_from_file_location("foreign_train", project / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train(project):
    """Runs it in this process: `train(config, options)`; its loggers are undone afterwards."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    before = [(logger.propagate, list(logger.handlers)) for logger in loggers]

    def run(config, opts):
        module = script(project)
        args = module.default_argument_parser().parse_args(["--config-file", str(project / config)])
        args.opts = opts
        module.main(args)

    yield run
    for logger, (propagate, handlers) in zip(loggers, before, strict=True):
        logger.propagate, logger.handlers = propagate, handlers


def check(folder, backbone, name, tasks, run_config):
    """The run used the weights, wrote APs, and its detector can be loaded."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    measured = {key for line in lines for key in line if key.endswith("/AP")}
    assert measured == {f"{task}/AP" for task in tasks}
    trained = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    started = torch.load(backbone, weights_only=True)["model"]
    frozen = [key for key in started if key.startswith(("stem", "res2"))]
    assert frozen  # FREEZE_AT 2: what must still be as it came
    for key in frozen:
        assert torch.equal(trained[f"backbone.bottom_up.{key}"], started[key]), key
    predictor = load(run_config, folder / "model_final.pth")
    assert type(predictor.model).__name__ == name
    assert len(predictor(photograph())["instances"]) == 5


@pytest.mark.slow
def test_cascade_rcnn_on_our_base_config(project, tmp_path, resnet18_backbone):
    """From the command line, with every import in the order of the document."""
    call = [sys.executable, "train.py", "--config-file", "cascade.yaml"]
    done = subprocess.run(
        [*call, *options(tmp_path, resnet18_backbone)],
        cwd=project,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check(
        tmp_path, resnet18_backbone, "GeneralizedRCNN", ("bbox", "segm"), tmp_path / "config.yaml"
    )
    trained = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert "roi_heads.box_predictor.2.bbox_pred.weight" in trained  # three stages


@pytest.mark.slow
def test_retinanet_on_no_base(train, tmp_path, resnet18_backbone):
    train("retinanet.yaml", options(tmp_path, resnet18_backbone))
    check(tmp_path, resnet18_backbone, "RetinaNet", ("bbox",), tmp_path / "config.yaml")
    trained = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert trained["backbone.top_block.p6.weight"].shape[:2] == (16, 512)  # from res5


def test_weights_that_lack_a_tensor_stop_it(train, tmp_path, resnet18_backbone):
    contents = torch.load(resnet18_backbone, weights_only=True)
    without("res4.0.shortcut.weight")(contents)
    torch.save(contents, tmp_path / "spoiled.pth")
    with pytest.raises(UserError, match="1 tensor is missing .*res4.0.shortcut.weight"):
        train("retinanet.yaml", options(tmp_path, tmp_path / "spoiled.pth"))


def test_keys_that_contradict_the_weights_stop_it(train, tmp_path, resnet18_backbone):
    bgr = options(tmp_path, resnet18_backbone, **{"INPUT.FORMAT": "BGR"})
    with pytest.raises(UserError, match="INPUT.FORMAT is BGR, but weights trained on RGB"):
        train("retinanet.yaml", bgr)


def build(cfg):
    from detectron2.modeling import build_model

    return build_model(cfg)


@pytest.mark.parametrize("forgotten", ["add_robust_config", "its order"])
def test_declaring_the_keys_late_or_never_is_told(tmp_path, forgotten):
    from detectron2.config import get_cfg

    cfg = get_cfg()
    if forgotten == "add_robust_config":
        cfg.MODEL.BACKBONE.NAME = "build_robust_resnet_fpn_backbone"
        cfg.MODEL.DEVICE = "cpu"
        with pytest.raises(UserError, match=r"ROBUST is missing. Call .*add_robust_config\(cfg\)"):
            build(cfg)
    else:
        with pytest.raises(KeyError, match="Non-existent config key: MODEL.ROBUST"):
            cfg.merge_from_file(str(DIGITS))
        add_robust_config(cfg)
        cfg.merge_from_file(str(DIGITS))
        assert cfg.MODEL.ROBUST.ARCH == "resnet18"
