"""Dataset options and overrides: either both hold, or the one that loses is named."""

import pytest

from robust_backbones.core.errors import UserError
from robust_backbones.detection import config, run_checks
from robust_backbones.detection.training.step import evaluation_note, precision_of
from tests.support import ROOT
from tests.support.generated_tables import check_table
from tests.support.voc_data import voc

VOC = ROOT / "configs/voc_faster_rcnn_robust_eps3.yaml"


@pytest.fixture
def data(tmp_path):
    images = {"a": [("cat", (1, 1, 9, 9)), ("dog", (2, 2, 9, 9))], "b": [("cat", (1, 1, 9, 9))]}
    return voc(tmp_path, images, {"train": "a\n", "val": "b\n"})


def load(folder, *overrides, **datasets):
    options = ["MODEL.WEIGHTS", "", "MODEL.ROBUST.ARCH", "resnet50", *overrides]
    chosen = {split.upper(): [text.format(folder)] for split, text in datasets.items()}
    cfg = config.load_config(VOC, [*options, "OUTPUT_DIR", str(folder / "run")], datasets=chosen)
    run_checks.check_inputs(cfg, train="TRAIN" in chosen, overrides=overrides)
    return cfg


TRAIN, VAL = "mine=voc:{}:train", "mine_val=voc:{}:val"
TEST_KEY = ("DATASETS.TEST", "('digit_scenes_voc_val',)")


def test_an_option_that_replaces_an_override_names_it(data, caplog):
    assert load(data, test=VAL).DATASETS.TEST == ("mine_val",)
    assert not caplog.records
    assert load(data, *TEST_KEY, test=VAL).DATASETS.TEST == ("mine_val",)
    assert "DATASETS.TEST ('digit_scenes_voc_val',) has no effect" in caplog.text


def test_training_data_keep_the_test_data_of_the_overrides(data):
    assert load(data, train=TRAIN).DATASETS.TEST == ()
    options = config.load_config(VOC, TEST_KEY, datasets={"TRAIN": [TRAIN.format(data)]})
    assert options.DATASETS.TEST == ("digit_scenes_voc_val",)


@pytest.mark.parametrize("heads", ["ROI_HEADS", "RETINANET"])
def test_another_number_of_classes_is_refused(data, heads):
    key = f"MODEL.{heads}.NUM_CLASSES"
    assert load(data, key, "2", train=TRAIN).MODEL[heads].NUM_CLASSES == 2
    with pytest.raises(UserError, match=f"{key} is 5, but the datasets have 2: cat, dog. Omit it"):
        load(data, key, "5", train=TRAIN)


AMP = ("SOLVER.AMP.ENABLED", "True")


@pytest.mark.parametrize(
    ("overrides", "precision"),
    [
        ((), "float32"),
        (AMP, "float16"),
        (("SOLVER.PRECISION", "bfloat16"), "bfloat16"),
        ((*AMP, "SOLVER.PRECISION", "float16"), "float16"),
    ],
)
def test_precision(data, overrides, precision):
    cfg = load(data, *overrides, train=TRAIN)
    assert precision_of(cfg) == precision
    said = f"Evaluating in float32. The precision {precision} applies to training only."
    assert evaluation_note(cfg) == (None if precision == "float32" else said)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("SOLVER.PRECISION", "half"), "SOLVER.PRECISION is half. It must be empty or one of"),
        ((*AMP, "SOLVER.PRECISION", "bfloat16"), "SOLVER.AMP.ENABLED True means float16. Set"),
        ((*AMP, "SOLVER.PRECISION", "float32"), "SOLVER.PRECISION is float32, but SOLVER.AMP."),
        (("MODEL.DEVICE", "cpu", "SOLVER.PRECISION", "tf32"), "the device cpu has no TF32. Use"),
        (("SOLVER.AMP.DTYPE", "float16"), "SOLVER.AMP.DTYPE is not a configuration key"),
    ],
)
def test_contradicting_and_unsupported_precisions_are_refused(data, overrides, message):
    with pytest.raises(UserError, match=message):
        load(data, *overrides, train=TRAIN)


def test_custom_data_may_be_named_in_a_key(data):
    cfg = load(data, "DATASETS.TEST", f"['{VAL.format(data)}']")
    assert cfg.DATASETS.TEST == ("mine_val",)
    assert cfg.DATASETS.CUSTOM == [VAL.format(data)]


def test_the_guide_lists_all_configs():
    rows = [["config, weights", "iterations x images"]]
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        cfg = config.load_config(path)
        weights = f"`{cfg.MODEL.WEIGHTS}`" if cfg.MODEL.WEIGHTS else "your choice"
        schedule = f"{cfg.SOLVER.MAX_ITER:,} x {cfg.SOLVER.IMS_PER_BATCH}"
        rows.append([f"`{path.name}`<br>{weights}", schedule])
    check_table("docs/guides/train_detector.md", "configs", rows)
