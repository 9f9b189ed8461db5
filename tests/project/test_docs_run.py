"""A reader's walk through the documents on the bundled data: the commands as they stand there, one
after the other in one folder, each made small. What one leaves, the next must find where the
document says. (Each program has its own tests. test_docs.py checks that all commands parse.)"""

import contextlib
import shutil

import pytest

from tests.support import documents
from tests.support.documents import ROOT

README, DOCS, GUIDES = "README.md", "docs/", "docs/guides/"
NETWORK = "output/digits_eps1/checkpoint.pt"
QUICK = ["--epochs", "1", "--limit", "64", "--test-limit", "32", "--eval-steps", "1"]
FEW = ["--limit", "60", "--test-limit", "60"]
# Page, how its command begins, what makes it small, and what it must leave.
WALK = [
    (f"{DOCS}index.md", "robust-backbones pretrain", QUICK, NETWORK),
    (f"{DOCS}index.md", "robust-backbones transfer", FEW, "output/transfer/*/result.json"),
    (f"{GUIDES}convert.md", "robust-backbones convert --inspect my_checkpoint.pth", [], ""),
    (README, "tools/convert.py my_checkpoint.pth", [], "weights/mine.pth"),
    (
        f"{GUIDES}convert.md",
        "robust-backbones convert my_checkpoint.pth mine.safetensors",
        [],
        "mine.safetensors",
    ),
    (
        f"{GUIDES}report.md",
        "robust-backbones report output/transfer",
        [],
        "output/report/index.html",
    ),
    (f"{GUIDES}studies.md", "robust-backbones study plan configs/studies/table1.yaml", [], ""),
    (f"{DOCS}tutorials/reproduce.md", "python benchmarks/study_cost.py", [], ""),
    (f"{GUIDES}weights.md", "robust-backbones zoo list --arch resnet50", [], ""),
]
TRAIN, EVALUATE = f"{GUIDES}train_detector.md", f"{GUIDES}evaluate_detector.md"
DETECTOR = "output/digits_mask_rcnn_robust"
DETECTOR_WALK = [
    (
        TRAIN,
        "robust-backbones train --config digits_mask_rcnn_robust.yaml",
        ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "DATASETS.TEST", "()"],
        f"{DETECTOR}/model_final.pth",
    ),
    (
        EVALUATE,
        "robust-backbones train --config digits_mask_rcnn_robust.yaml --resume --eval-only",
        ["TEST.DETECTIONS_PER_IMAGE", "5"],
        f"{DETECTOR}/eval_result.json",
    ),
    (EVALUATE, f"robust-backbones evaluate {DETECTOR}", ["--csv", "ap.csv"], "ap.csv"),
    (EVALUATE, "robust-backbones visualize", ["--images", "2"], "output/look/errors.json"),
    (
        EVALUATE,
        "robust-backbones attack",
        ["--images", "2", "--steps", "1", "--eps", "4/255", "--pictures", "1"],
        f"{DETECTOR}/attack_linf/result.json",
    ),
]


def named(page: str, beginning: str) -> documents.Command:
    """The command of a page that is this, or that begins so: there must be one."""
    own = [c for c in documents.every_command() if c.where.startswith(f"{page}:")]
    found = [c for c in own if " ".join(c.words) == beginning]
    found = found or [c for c in own if " ".join(c.words).startswith(beginning)]
    assert len(found) == 1, f"{page} has {len(found)} commands that begin: {beginning}"
    return found[0]


def run(command: documents.Command, small: list[str]) -> None:
    """In this process, as its program's `main`."""
    name, arguments = documents.program(command)
    try:
        assert not documents.functions(name)["main"]([*arguments, *small]), command
    except SystemExit as end:
        assert not end.code, f"{command} ends with {end.code}"


@pytest.mark.slow
def test_a_walk_through_the_documents(tmp_path, monkeypatch, capsys):
    for name in ("configs", "tools", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for page, beginning, small, left in WALK:
        run(named(page, beginning), small)
        assert not left or list(tmp_path.glob(left)), f"{beginning}: no {left}"
        if left == NETWORK:  # what the documents call yours
            shutil.copy(left, "my_checkpoint.pth")
    assert "resnet50_l2_eps3" in capsys.readouterr().out  # of zoo list, the last one


@pytest.mark.slow
def test_a_walk_through_the_guides_of_detectors(tmp_path, monkeypatch, resnet18_backbone):
    monkeypatch.chdir(tmp_path)
    backbone = tmp_path / "output/demo/robust/backbone.pth"  # of the demo
    backbone.parent.mkdir(parents=True)
    shutil.copy(resnet18_backbone, backbone)
    for page, beginning, small, left in DETECTOR_WALK:
        run(named(page, beginning), small)
        assert (tmp_path / left).exists(), f"{beginning}: no {left}"
    _predict()


def _predict() -> None:
    """The detector of the walk, loaded as docs/guides/detectron2_project.md does it."""
    from robust_backbones.detection.data import digit_scenes

    scene = next((digit_scenes.ensure() / "JPEGImages").iterdir())
    shutil.copy(scene, "photo.jpg")
    [block] = [
        block
        for block in documents.blocks(ROOT / "docs/guides/detectron2_project.md")
        if block.language == "python" and " load(" in block.text
    ]
    values = {}
    with contextlib.redirect_stdout(None):
        exec(block.text, values)
    assert values["predictor"].classes[1] == "one"
