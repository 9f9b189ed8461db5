"""mIoU by Detectron2's evaluator, an independent count, and what Detectron2 counts wrong."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from robust_backbones.core.errors import UserError
from robust_backbones.detection.data import custom
from robust_backbones.detection.evaluation import build_evaluator
from robust_backbones.detection.evaluation.semantic import SemanticEvaluator
from tests.support.mask_data import mask_folders
from tests.support.small_segmenters import tiny_config

# isort: split
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator

NAMES = ["sky", "sea", "sand", "ship", "gull"]
SHAPE = (30, 40)


def independent_iou(pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """IoU of each class over all pixels with a label, in percent."""
    ious = []
    for label in range(len(NAMES)):
        both = union = 0
        for found, truth in pairs:
            known = truth != 255
            both += ((found == label) & (truth == label) & known).sum()
            union += (((found == label) | (truth == label)) & known).sum()
        ious.append(100 * both / union if union else math.nan)
    return ious


@pytest.fixture
def data(tmp_path):
    """A registered dataset of random masks: ship never occurs, some pixels have no label."""
    rng = np.random.default_rng(0)
    masks = {f"m{i}": rng.choice([0, 1, 2, 4, 255], SHAPE).astype(np.uint8) for i in range(4)}
    images, folder = mask_folders(tmp_path, masks)
    source = custom.parse_dataset(f"random_beach=mask:{images}:{folder}")
    DatasetCatalog.register("random_beach", lambda: custom.load_dicts(source, NAMES, False))
    meta = dict(evaluator_type="sem_seg", stuff_classes=NAMES, ignore_label=255)
    MetadataCatalog.get("random_beach").set(**meta)
    yield masks
    DatasetCatalog.remove("random_beach")
    MetadataCatalog.remove("random_beach")


def outputs(labels: list[np.ndarray]) -> list[dict]:
    """Logits whose largest entries are at the labels."""
    return [
        {"sem_seg": torch.nn.functional.one_hot(torch.tensor(each).long(), 5).permute(2, 0, 1)}
        for each in labels
    ]


def evaluate(evaluator, labels) -> dict:
    evaluator.reset()
    evaluator.process(DatasetCatalog.get("random_beach"), outputs(labels))
    return evaluator.evaluate()["sem_seg"]


@pytest.mark.parametrize("predicted", [(0, 1, 2, 4), (0, 1), (0, 1, 2, 3, 4)])
def test_the_metrics_are_those_of_detectron2_and_of_a_count(data, predicted):
    rng = np.random.default_rng(1)
    truth = [mask for _, mask in sorted(data.items())]
    right = rng.random((4, *SHAPE)) < 0.6
    labels = [
        np.where(r & (t != 255), t, rng.choice(predicted, SHAPE))
        for r, t in zip(right, truth, strict=True)
    ]
    found = evaluate(build_evaluator(tiny_config(), "random_beach"), labels)
    theirs = evaluate(SemSegEvaluator("random_beach", distributed=False), labels)
    assert found == pytest.approx(dict(theirs), nan_ok=True)
    ious = independent_iou(list(zip(labels, truth, strict=True)))
    present = [(name, iou) for name, iou in zip(NAMES, ious, strict=True) if name != "ship"]
    assert [found[f"IoU-{name}"] for name, _ in present] == pytest.approx([i for _, i in present])
    # A class that has no pixel counts only if it is predicted, with an IoU of 0.
    assert math.isnan(found["IoU-ship"])
    assert found["mIoU"] == pytest.approx(np.nanmean(ious)) and 10 < found["mIoU"] < 70
    known = np.stack(truth) != 255
    right = (np.stack(labels) == np.stack(truth))[known]
    assert found["pACC"] == pytest.approx(100 * right.mean())


def test_no_labels_give_nan(data, tmp_path):
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(np.full(SHAPE, 255, np.uint8)).save(path)
    found = evaluate(SemanticEvaluator("random_beach"), [np.zeros(SHAPE, int)] * 4)
    assert math.isnan(found["mIoU"]) and math.isnan(found["pACC"])


def test_wrong_masks_and_outputs_are_refused(data, tmp_path):
    evaluator, items = SemanticEvaluator("random_beach"), DatasetCatalog.get("random_beach")
    logits = {"sem_seg": torch.zeros(4, *SHAPE)}
    with pytest.raises(UserError, match=r"m0.png: the model returns \(4, 30, 40\) logits, but the"):
        evaluator.process(items[:1], [logits])
    Image.fromarray(np.full(SHAPE, 5, np.uint8)).save(tmp_path / "masks/m0.png")
    with pytest.raises(UserError, match="m0.png: 1200 pixels have an index of up to 5"):
        evaluator.process(items[:1], outputs([np.zeros(SHAPE, int)]))
