"""Semantic segmentation through the commands: train, resume, evaluate, look, attack, corrupt."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from robust_backbones.commands import attack, corrupt, visualize
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import sha256
from robust_backbones.detection import config, launch, run_checks
from robust_backbones.detection.inspect import semantic_pictures
from robust_backbones.detection.inspect.predictor import load
from robust_backbones.detection.inspect.visualize import truth_and_prediction
from robust_backbones.detection.training.run import Mode
from tests.support import ROOT, small_detectors
from tests.support.custom_data import coco
from tests.support.mask_data import STRIPES, mask_folders
from tests.support.small_segmenters import DIGITS, overrides, tiny_config, tiny_file

# isort: split
from detectron2.data import DatasetCatalog

CLASSES = ["sky", "sea", "sand"]


@pytest.fixture(scope="module")
def beach(tmp_path_factory) -> str:
    """Paths of images and masks, as in `NAME=mask:...`."""
    root = tmp_path_factory.mktemp("beach")
    masks = {name: np.roll(STRIPES, k, 0) for k, name in enumerate("abcdef")}
    return "mask:" + ":".join(map(str, mask_folders(root, masks, "\n".join(CLASSES))))


def start(folder, beach, weights, *options, mode=None, **more) -> dict:
    """Run `train` in this process, and return its result."""
    own = ROOT / "configs/own_data_semantic_fpn.yaml"
    small = {"MODEL__ROBUST__ARCH": "resnet18", "INPUT__CROP__SIZE": "[32, 32]"}
    small |= {"SOLVER__REFERENCE_WORLD_SIZE": "0", "DATALOADER__NUM_WORKERS": "0"}
    pairs = overrides(OUTPUT_DIR=folder, MODEL__WEIGHTS=weights, **small | more)
    datasets = {"TRAIN": [f"beach={beach}"], "TEST": [f"test={beach}"]}
    mode = mode or Mode()
    launch.launch(str(own), pairs, datasets, mode, launch.Processes(), list(options))
    name = "eval_result.json" if mode.eval_only else "result.json"
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory, beach, resnet18_backbone):
    """A finished run on the beach, and its result."""
    folder = tmp_path_factory.mktemp("run")
    return folder, start(folder, beach, resnet18_backbone)


def test_train_and_evaluate_own_masks(run, beach, resnet18_backbone):
    folder, result = run
    metrics = result["metrics"]["test"]["sem_seg"]
    assert {"mIoU", "fwIoU", "mACC", "pACC"} | {f"IoU-{name}" for name in CLASSES} <= set(metrics)
    assert 0 <= metrics["mIoU"] <= 100
    assert result["settings"]["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"] == 3
    assert result["settings"]["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 80
    assert result["weights_sha256"] == sha256(resnet18_backbone)
    assert result["data"]["test"]["images"] == 6
    saved = torch.load(folder / "model_final.pth", weights_only=True)["metadata"]
    assert saved["classes"] == CLASSES and saved["channel_order"] == "RGB"
    again = start(folder, beach, "", mode=Mode(resume=True, eval_only=True))
    assert again["metrics"] == result["metrics"]


def test_a_backbone_alone_is_not_evaluated(tmp_path, beach, resnet18_backbone, capsys):
    with pytest.raises(SystemExit):
        start(tmp_path, beach, resnet18_backbone, mode=Mode(eval_only=True))
    assert "the weights do not fit the detector of this config" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, beach, run, resnet18_backbone):
    """Stopped by a signal after its first checkpoint, it ends as the uninterrupted run does."""
    whole, _ = run
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for name in ("model_final.pth", "model_0000003.pth", "result.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    start(folder, beach, resnet18_backbone, mode=Mode(resume=True))
    expected, found = (
        torch.load(path / "model_final.pth", weights_only=True) for path in (whole, folder)
    )
    assert found["iteration"] == expected["iteration"] == 3
    for name, tensor in expected["model"].items():
        assert torch.equal(found["model"][name], tensor), name


def test_learning_rates_are_chosen_by_miou(tmp_path, beach, resnet18_backbone, capsys):
    for rate in ("0.001", "0.01"):
        held = {"DATASETS__HELD_OUT": "0.5", "SOLVER__BASE_LR": rate, "SOLVER__MAX_ITER": "1"}
        result = start(tmp_path / rate, beach, resnet18_backbone, **held)
        assert list(result["metrics"]) == ["beach_held_out"]
        result["metrics"]["beach_held_out"]["sem_seg"]["mIoU"] = 50 - 100 * float(rate)
        (tmp_path / rate / "result.json").write_text(json.dumps(result))
    folders = [str(tmp_path / rate) for rate in ("0.001", "0.01")]
    start(tmp_path / "final", beach, resnet18_backbone, *folders, SOLVER__MAX_ITER="1")
    chosen = yaml.safe_load((tmp_path / "final/config.yaml").read_text())["SOLVER"]
    assert chosen["BASE_LR"] == 0.001 and chosen["CANDIDATES"]["APS"] == [49.9, 49.0]
    assert "0.001 has the highest mIoU on held-out images" in capsys.readouterr().err


def test_the_page_and_the_predictor(tmp_path, run, beach):
    folder, _ = run
    settings = ["--config", str(folder / "config.yaml")]
    weights = ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
    visualize.main(["--output", str(tmp_path), *settings, "--images", "2", *weights])
    page = (tmp_path / "index.html").read_text()
    assert "of the pixels right" in page and "% sky" in page and "with a score" not in page
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert len(pictures) == 4
    predictor = load(folder)
    assert predictor.classes == tuple(CLASSES)
    item = DatasetCatalog.get("beach")[0]
    logits = predictor(item["file_name"])["sem_seg"]
    assert logits.shape == (3, 30, 40)
    labels = semantic_pictures.labels({"sem_seg": logits})
    assert np.array_equal(labels, logits.argmax(0).numpy())
    found = predictor.attack(item["file_name"], eps=8 / 255, steps=1)
    clean = predictor.preprocess(np.asarray(Image.open(item["file_name"])))["image"]
    assert 1 < (found["image"] - clean).abs().max() <= 8.01
    (drawn,) = truth_and_prediction(predictor.cfg, "beach", 1, scale=2.0)
    assert drawn.shape[1] > 2 * 2 * 40


def test_masks_are_drawn_in_the_colors_of_their_classes():
    gray = np.full((30, 40, 3), 100, np.uint8)
    mask = STRIPES.copy()
    mask[:, :20] = 255
    drawn = semantic_pictures.draw(gray, mask, scale=1).astype(int)
    assert (drawn[:, :20] == 100).all()
    colors = {tuple(drawn[row, 30]) for row in range(30)}
    assert len(colors) == 3 and (100, 100, 100) not in colors
    assert semantic_pictures.describe(mask, CLASSES) == "33 % sky, 33 % sea, 33 % sand"
    assert semantic_pictures.describe(np.full((2, 2), 255, np.uint8), CLASSES) == "no labels"
    assert semantic_pictures.accuracy(STRIPES, mask) == "100.0 % of the pixels right"
    assert semantic_pictures.accuracy(np.ones_like(mask), mask) == "33.3 % of the pixels right"


REFUSED = {
    "masks for a detector": (
        small_detectors.DIGITS,
        "{mask}",
        {},
        "has semantic masks, but MODEL.META_ARCHITECTURE is GeneralizedRCNN. Use",
    ),
    "objects for a segmenter": (
        DIGITS,
        "{coco}",
        {},
        "has objects, but MODEL.META_ARCHITECTURE is SemanticSegmentor",
    ),
    "adversarial training": (
        DIGITS,
        "{mask}",
        {"SOLVER.ADVERSARIAL.METHOD": "pgd"},
        "METHOD is pgd. It must be empty for a SemanticSegmentor",
    ),
    "a number of classes": (
        DIGITS,
        "{mask}",
        {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": "7"},
        "SEM_SEG_HEAD.NUM_CLASSES is 7, but the datasets have 3: sky, sea, sand. Omit it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(tmp_path, beach, resnet18_backbone, case):
    file, data, changes, message = REFUSED[case]
    data = data.format(mask=beach, coco=f"coco:{tmp_path}:{coco(tmp_path)}")
    changes = {"MODEL.WEIGHTS": str(resnet18_backbone)} | changes
    pairs = [part for pair in changes.items() for part in pair]
    cfg = config.load_config(file, pairs, datasets={"TRAIN": [f"mine={data}"]})
    with pytest.raises(UserError, match=message):
        run_checks.check_inputs(cfg, train=True, overrides=pairs)


def test_saved_detections_are_refused(tmp_path, beach, capsys):
    (tmp_path / "found.json").write_text("[]")
    given = ["--predictions", str(tmp_path / "found.json"), "--dataset", f"beach={beach}"]
    with pytest.raises(SystemExit):
        visualize.main(["--output", str(tmp_path), *given])
    assert "'beach' has semantic masks, but saved predictions" in capsys.readouterr().err


PACKAGED = {"ade20k_semantic_fpn_robust_eps3.yaml": 150, "ade20k_semantic_fpn_standard.yaml": 150}


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_configs_describe_a_segmenter(name):
    cfg = config.load_config(name, ["MODEL.WEIGHTS", "", "MODEL.ROBUST.ARCH", "resnet50"])
    assert cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor"
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == PACKAGED[name]
    assert cfg.INPUT.CROP.SIZE == [512, 512] and cfg.SOLVER.MAX_ITER == 160000


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return tiny_file(tmp_path_factory.mktemp("network") / "network.pth", tiny_config())


def attacked(folder, weights, *options) -> dict:
    given = ["--config", str(DIGITS), "--output", str(folder), "--images", "2", "--steps", "1"]
    attack.main([*given, *options, *overrides(MODEL__WEIGHTS=str(weights))])
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_miou_under_attack(tmp_path, network, capsys):
    result = attacked(tmp_path, network, "--eps", "8/255", "--pictures", "1", "--restarts", "2")
    assert result["kind"] == "detection-robustness"
    rows = result["metrics"]["attacks"]
    clean, row = rows["clean"], rows["eps 8/255"]
    assert {"mIoU", "pACC"} <= set(row["sem_seg"]) and "IoU-seven" not in row["sem_seg"]
    assert row["losses"] == ["cross-entropy", "masked", "cosine"] and row["restarts"] == 2
    assert sum(row["strongest"].values()) == 2
    assert row["sem_seg"]["pACC"] <= clean["sem_seg"]["pACC"]
    assert row["loss_attacked"] > row["loss_clean"] and row["max_norm"] <= 8.001 / 255
    assert result["settings"]["selection"] == "pixel accuracy of the image"
    (picture,) = (tmp_path / "pictures").iterdir()
    with Image.open(picture) as opened:
        assert opened.size == (640, 320)
    again = attacked(tmp_path, network, "--eps", "8/255", "--restarts", "2")
    shown = capsys.readouterr().out
    assert "2 of 2 conditions are measured already" in shown and "mIoU" in shown
    assert again["metrics"]["attacks"]["eps 8/255"] == row


def test_losses_of_detectors_are_refused(tmp_path, network, capsys):
    with pytest.raises(SystemExit):
        attacked(tmp_path, network, "--loss", "classification")
    message = "--loss classification: the model does not have this loss. Choose from cross-entropy,"
    assert message in capsys.readouterr().err


def test_miou_of_corrupted_images(tmp_path, network):
    pytest.importorskip("imagecorruptions")
    given = ["--config", str(DIGITS), "--output", str(tmp_path), "--images", "2"]
    chosen = ["--corruptions", "contrast", "--severities", "5"]
    corrupt.main([*given, *chosen, *overrides(MODEL__WEIGHTS=str(network))])
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    means, row = metrics["mPC"]["sem_seg"], metrics["corruptions"]["contrast 5"]["sem_seg"]
    assert means["mIoU"] == row["mIoU"]
    assert "mIoU" in (tmp_path / "table.csv").read_text()
