"""Messages about common mistakes on the command line: cause with the value, allowed values, fix."""

import pytest

from robust_backbones.__main__ import main

TRAIN = "train --config digits_mask_rcnn_robust.yaml"
PRETRAIN = "pretrain --dataset digits --output o"
MISTAKES = [
    ("train", "the following arguments are required: --config/--config-file"),
    (
        "train --config coco_mask_rcnn_robust_eps4.yaml",
        "config file 'coco_mask_rcnn_robust_eps4.yaml' does not exist. Did you mean "
        "coco_mask_rcnn_robust_eps3.yaml, coco_mask_rcnn_robust_eps3_1x.yaml or "
        "coco_faster_rcnn_robust_eps3.yaml?",
    ),
    (f"{TRAIN} --num-gpus eight", "--num-gpus: 'eight' is not a whole number of at least 0"),
    (
        f"{TRAIN} --epochs 3",
        "--epochs is not an option. Set the config key SOLVER.MAX_ITER: SOLVER.MAX_ITER ITERATIONS",
    ),
    (f"{TRAIN} --weights a.pth", "Set the config key MODEL.WEIGHTS: MODEL.WEIGHTS FILE"),
    (f"{TRAIN} --output o", "--output is not an option. Set the config key OUTPUT_DIR"),
    ("attack --config c.yaml --weights a", "Set the config key MODEL.WEIGHTS"),
    ("convert nofile.pth t.pth", "the file 'nofile.pth' does not exist. Check the path."),
    ("convert nofile.pth", "TARGET is missing. Give the file to write, or --inspect or --dry-run"),
    (
        f"{PRETRAIN} --eps 4/25x",
        "--eps: '4/25x' is not a finite number of at least 0, such as 3 or 4/255",
    ),
    (f"{PRETRAIN} --eps -1", "--eps: '-1' is not a finite number of at least 0"),
    (f"{PRETRAIN} --constraint linf --eps 8", "Did you mean 8/255?"),
    (f"{PRETRAIN} --norm l2", "--norm is not an option. Did you mean --constraint?"),
    (f"{PRETRAIN} --learning-rate 1", "--learning-rate is not an option. Did you mean --lr?"),
    (
        f"{PRETRAIN} --arch resnet51",
        "architecture 'resnet51' is unknown. Did you mean resnet18, resnet50 or resnet101? For "
        "timm networks, give timm:NAME.",
    ),
    (
        "pretrain --dataset mnist --output o",
        "dataset 'mnist' is unknown. For your own images, choose folder. List all names with: "
        "robust-backbones datasets list",
    ),
    ("pretrain --dataset digits", "the following arguments are required: --output"),
    (f"{PRETRAIN} --batch-size 1", "'1' is not a whole number of at least 2 (BatchNorm needs two)"),
    (f"{PRETRAIN} --method trads", "Did you mean trades? Choose from standard, pgd, fast"),
    (
        "transfer --weights w.pt --dataset aircraft",
        "the file 'w.pt' does not exist. Check the path.",
    ),
    (
        "transfer --weights resnet50_l2_eps4 --dataset digits",
        "no published model is named 'resnet50_l2_eps4'. Did you mean resnet50_l2_eps0, "
        "resnet50_l2_eps1 or resnet50_l2_eps3? List all names with: robust-backbones zoo list",
    ),
    ("transfer --weights w --dataset digits --mode fixed", "Did you mean fixed-feature?"),
    ("transfer --weights w --dataset digits --adversarial 1", "--adversarial is not an option"),
    (
        "study run table11.yaml",
        "study file 'table11.yaml' does not exist. Did you mean studies/table1.yaml",
    ),
    ("study go s.yaml", "invalid choice: 'go'. Choose from run, plan, status, retry, table"),
    ("study run s.yaml --gpus 2", "--gpus is not an option. Did you mean --num-gpus?"),
    ("report nofolder --output o", "nofolder does not exist. Give folders with results"),
    ("evaluate a.json", "give --annotations or --dataset (see"),
    ("visualize --output o", "give --config and MODEL.WEIGHTS, or --predictions, or --truth-only"),
    ("datasets fetch foo --data d", "dataset 'foo' is unknown. Did you mean food?"),
    (
        "datasets check imagenet",
        "dataset 'imagenet' needs data, and no path was given. Pass --data",
    ),
    ("zoo show resnet50_l2_eps33", "Did you mean resnet50_l2_eps3, resnet50_l2_eps0 or"),
    ("trian", "command 'trian' is unknown. Did you mean train, pretrain or transfer?"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_one_line_with_cause_and_fix(words, message, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBUST_BACKBONES_DATA", raising=False)
    monkeypatch.setattr("sys.argv", ["robust-backbones"])
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err
