"""Training through the command: strict loading, resuming bit for bit, both evaluators."""

import argparse
import json
import math
import time
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage, EventWriter

from robust_backbones.commands import train
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import claimed, sha256
from robust_backbones.detection import run_checks
from robust_backbones.detection.training import run, trainer
from tests.support import small_detectors
from tests.support.detector_runs import DIGITS, overrides, small, start, train_net

SMALL = {"INPUT.MIN_SIZE_TRAIN": "(64,)", "INPUT.MIN_SIZE_TEST": "64"}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["coco", "voc"])
def test_train_evaluate_and_evaluate_again(tmp_path, resnet18_backbone, task):
    more = SMALL | {"SOLVER.MAX_ITER": "3"}
    if task == "voc":
        more |= {"DATASETS.TRAIN": "['digit_scenes_voc_train']", "MODEL.MASK_ON": "False"}
        more |= {"DATASETS.TEST": "['digit_scenes_voc_val']"}
    args = overrides(tmp_path, resnet18_backbone, **more)
    train_net(tmp_path / "log", *args)
    result = json.loads((tmp_path / "result.json").read_text())
    ((name, metrics),) = result["metrics"].items()
    assert name == ("digit_scenes_voc_val" if task == "voc" else "digit_scenes_val")
    assert set(metrics) == ({"bbox"} if task == "voc" else {"bbox", "segm"})
    assert 0 <= metrics["bbox"]["AP"] <= 100
    assert result["data"][name]["images"] == 200
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "total_loss" in line] == [0, 1, 2]
    assert any(path.name.startswith("events.out.tfevents") for path in tmp_path.iterdir())

    # The training data of an evaluation may be on another machine.
    absent = ["DATASETS.TRAIN", "['coco_2017_train']"]
    train_net(tmp_path / "again", "--eval-only", "--resume", *args, *absent)
    again = json.loads((tmp_path / "eval_result.json").read_text())
    assert again["metrics"] == result["metrics"]
    assert list(again["data"]) == [name]
    assert result["weights_sha256"] == sha256(resnet18_backbone)
    assert again["weights_sha256"] == sha256(tmp_path / "model_final.pth")


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(tmp_path, resnet18_backbone):
    """SIGKILL in the middle; resumed, it ends as an uninterrupted run does, bit for bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_net(tmp_path / "log", *overrides(whole, resnet18_backbone, **SMALL))

    long = overrides(killed, resnet18_backbone, **SMALL)
    (process,) = start(tmp_path / "first", *long)
    while not (killed / "last_checkpoint").exists():
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    assert not (killed / "result.json").exists()
    first = (killed / "last_checkpoint").read_text()
    assert first in ("model_0000001.pth", "model_0000003.pth", "model_0000005.pth")

    train_net(tmp_path / "second", "--resume", *long)
    expected = torch.load(whole / "model_final.pth", weights_only=True)
    found = torch.load(killed / "model_final.pth", weights_only=True)
    assert found["iteration"] == expected["iteration"] == 5
    for name, tensor in expected["model"].items():
        assert torch.equal(found["model"][name], tensor), name
    momenta = [c["trainer"]["_trainer"]["optimizer"]["state"] for c in (expected, found)]
    assert momenta[0].keys() == momenta[1].keys()
    for key, state in momenta[0].items():
        assert torch.equal(state["momentum_buffer"], momenta[1][key]["momentum_buffer"])
    results = [json.loads((p / "result.json").read_text()) for p in (whole, killed)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]

    stamp = (killed / "result.json").stat().st_mtime_ns
    train_net(tmp_path / "third", "--resume", *long)
    assert (killed / "result.json").stat().st_mtime_ns == stamp  # a finished run is left alone


def test_a_used_folder_is_not_written_over(tmp_path, resnet18_backbone):
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    with pytest.raises(UserError, match="contains a run already. Use --resume"):
        run.continued(small(tmp_path, resnet18_backbone), False, False)


def test_a_run_that_died_before_its_final_checkpoint_gets_it(tmp_path, resnet18_backbone):
    made = trainer.Trainer(small(tmp_path, resnet18_backbone))
    made.resume_or_load(resume=False)
    made.iter = 5  # the last of six
    made.checkpointer.save("model_0000005", iteration=5)
    for _ in range(2):
        again = trainer.Trainer(small(tmp_path, resnet18_backbone))
        again.resume_or_load(resume=True)
        assert (again.start_iter, again.max_iter) == (6, 6)
        assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    found = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert found["iteration"] == found["trainer"]["iteration"] == 5


def test_two_trainings_do_not_share_a_folder(tmp_path):
    args = argparse.Namespace(eval_only=False, resume=True, restart_schedule=False)
    with claimed(tmp_path), pytest.raises(UserError, match="another run is writing to"):
        run.run(small(tmp_path, ""), args)


def test_the_config_of_a_run_is_replaced_in_one_step_and_not_by_an_evaluation(tmp_path):
    """It says what a resumed run began with: a kill must never leave half of it."""
    path, first = tmp_path / "config.yaml", tmp_path / "first"
    for seed, evaluation in ((1, False), (2, False), (3, True)):
        cfg = small(tmp_path, "", SEED=str(seed))
        run._setup(cfg, argparse.Namespace(eval_only=evaluation))
        if seed == 1:
            first.hardlink_to(path)  # what writes into the old file is seen here
    assert "SEED: 1\n" in first.read_text() and "SEED: 2\n" in path.read_text()


CHANGES = [  # key, value now, with --restart-schedule, value used, what is said
    ("SOLVER.BASE_LR", "0.5", False, 0.02, "started with 0.02. It continues with the old value."),
    ("SOLVER.BASE_LR", "0.5", True, 0.5, "started with 0.02. It continues with the new value"),
    (
        "SOLVER.STEPS",
        "(3,)",
        False,
        (450, 550),
        "SOLVER.STEPS is [3], but the run started with [450, ",
    ),
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "1.0", False, 1.0, "continues with the new value"),
    ("MODEL.WEIGHTS", "other.pth", True, None, "It continues from its own weights."),
    ("TEST.EVAL_PERIOD", "9", False, 9, None),
]


@pytest.mark.parametrize(("key", "value", "restart", "used", "said"), CHANGES)
def test_what_differs_at_resuming_is_said(
    tmp_path, resnet18_backbone, key, value, restart, used, said
):
    before = small(tmp_path, resnet18_backbone)
    (tmp_path / "config.yaml").write_text(before.dump())
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    after = small(tmp_path, resnet18_backbone, **{key: value})
    cfg, notes = run.continued(after, True, restart)
    for part in key.split("."):
        cfg = cfg[part]
    assert cfg == (str(resnet18_backbone) if used is None else used)
    assert len(notes) == (said is not None)
    assert said is None or said in notes[0]


@pytest.mark.parametrize(
    ("start", "last", "written"),
    [(0, 12, [1, 2, 5, 10, 12]), (0, 45, [1, 2, 5, 10, 20, 40, 45]), (15, 22, [16, 17, 20, 22])],
)
def test_the_first_iterations_are_printed(start, last, written):
    found = []
    writer = EventWriter()
    writer.write = lambda: found.append(hook.trainer.iter)
    hook = trainer._ProgressWriter([writer])
    hook.trainer = SimpleNamespace(start_iter=start, max_iter=last)
    for hook.trainer.iter in range(start, last):
        hook.after_step()
    assert [iteration + 1 for iteration in found] == written


class CosineTrainer(trainer.Trainer):
    """A project's trainer with a scheduler of PyTorch."""

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cfg.SOLVER.MAX_ITER)


def learning_rates(made, iterations) -> list[float]:
    """Step the hook of the schedule without training, and save the run."""
    found = []
    (hook,) = [hook for hook in made._hooks if type(hook).__name__ == "LRScheduler"]
    hook.before_train()
    with EventStorage(made.start_iter) as made.storage:
        for iteration in range(made.start_iter, made.start_iter + iterations):
            made.iter = iteration
            made.optimizer.step()
            hook.after_step()
            found.append(made.optimizer.param_groups[0]["lr"])
    made.checkpointer.save(f"model_{made.iter:07d}", iteration=made.iter)
    return found


def test_a_scheduler_of_pytorch_resumes(tmp_path):
    def build(folder):
        output = {"OUTPUT_DIR": str(tmp_path / folder), "SOLVER.MAX_ITER": "6"}
        made = CosineTrainer(small_detectors.tiny_config(**output))
        made.resume_or_load(resume=True)
        return made

    whole = learning_rates(build("whole"), 6)
    assert len(set(whole)) == 6
    assert learning_rates(build("parts"), 2) == whole[:2]
    assert learning_rates(build("parts"), 4) == pytest.approx(whole[2:], abs=1e-12)


def test_a_scheduler_of_pytorch_can_be_restarted(tmp_path):
    """--restart-schedule: the learning rate is that of the new schedule at this iteration."""

    def build(lr):
        output = {"OUTPUT_DIR": str(tmp_path), "SOLVER.MAX_ITER": "6", "SOLVER.BASE_LR": lr}
        return CosineTrainer(small_detectors.tiny_config(**output))

    learning_rates(build("0.5"), 2)
    made = build("1.0")
    made.resume_or_load(resume=True, restart_schedule=True)
    half = math.cos(math.pi * 2 / 6) / 2 + 0.5
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(half)


MISTAKES = [
    (["--config", "configs/coco_mask_rcn.yaml"], "does not exist. Did you mean configs/coco_mask_"),
    (["SOLVER.MAX_ITR", "3"], "SOLVER.MAX_ITR"),
    (["DATASETS.TRAIN", "['digit_scene']"], "'digit_scene' is not registered. Did you mean digit"),
    (["DATASETS.TEST", "['coco_2017_val']"], "set DETECTRON2_DATASETS"),
    (["MODEL.WEIGHTS", "none.pth"], "'none.pth' does not exist. Give the checkpoint of a det"),
    (
        ["MODEL.WEIGHTS", "output/demo/x.pth"],
        "does not exist. Create it with: robust-backbones demo",
    ),
    (["MODEL.WEIGHTS", "none.pth", "--eval-only"], "Give the checkpoint of a detector"),
    (["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(DIGITS)], "is not a checkpoint"),
    (["--num-gpus", "99"], "--num-gpus 99: this machine has"),
    (["OUTPUT_DIR", str(DIGITS)], ". Give the name of a folder"),
    (["OUTPUT_DIR", ""], "OUTPUT_DIR is ''. Give the name of a folder"),
    (["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER is 0. It must be at least 1"),
    (["SOLVER.REFERENCE_WORLD_SIZE", "3"], "It must be 0 or a divisor of SOLVER.IMS_PER_BATCH, 2"),
    (["MODEL.ROI_HEADS.NUM_CLASSES", "3"], "'digit_scenes_train' has 10 classes. Set it to 10"),
    (["MODEL.META_ARCHITECTURE", "RetinaNet"], "RETINANET.NUM_CLASSES is 80, but dataset 'digit"),
    (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is (). It must be at least one dataset"),
    (["SOLVER.BASE_LR", "1e9", "SOLVER.CLIP_GRADIENTS.ENABLED", "False"], "training diverged at"),
    (["SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH is 0. It must be a positive multiple"),
    (["MODEL.META_ARCHITECTURE", "Nothing"], "the configured model cannot be built"),
    (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE is 'gpu'. Use cuda, cuda:1 or cpu."),
    (["MODEL.DEVICE", "cuda:99"], "MODEL.DEVICE is cuda:99, but this machine has"),
    (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER is many. It must be an integer, such as 6."),
    (["SOLVER.BASE_LR", "fast"], "SOLVER.BASE_LR is fast. It must be a number, such as 0.02."),
    (["MODEL.MASK_ON", "maybe"], "MODEL.MASK_ON is maybe. It must be True or False"),
    (["DATASETS.TRAIN", "a"], "DATASETS.TRAIN is a. It must be a list, such as ('digit_scenes"),
    (["SOLVER.STEPS", "(5,3)"], "SOLVER.STEPS is (5, 3). It must be positive and increasing: (3,"),
    (["SOLVER.STEPS", "(3, 'x')"], "SOLVER.STEPS is (3, 'x'). It must be positive and increasing"),
    (["SOLVER.LR_SCHEDULER_NAME", "Cos"], "SOLVER.LR_SCHEDULER_NAME Cos cannot be built: Unknown"),
    (
        ["MODEL.ROBUST.ARCH", "resnet51"],
        'Set it to "" for the architecture of the weights. Did you',
    ),
    (["MODEL.ROBUST.ARCH", "resnet50"], "is a resnet18. Set MODEL.ROBUST.ARCH to resnet18 or"),
    (
        ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", "10"],
        "Set MODEL.BACKBONE.NAME to build_robust_retinanet_resnet_fpn_backbone",
    ),
    (["MODEL.RPN.IN_FEATURES", "['p7']"], "Set MODEL.RPN.IN_FEATURES to some of them"),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES, ids=[m[:30] for _, m in MISTAKES])
def test_errors_are_one_line_and_exit_with_2(
    tmp_path, monkeypatch, resnet18_backbone, capfd, args, message
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    options = [] if args[0] == "--config" else ["--config", str(DIGITS)]
    if args[0].startswith("--"):
        options, args = [*options, *args], []
    with pytest.raises(SystemExit) as stop:
        train.main([*options, *overrides(tmp_path, resnet18_backbone), *args])
    assert stop.value.code == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert message in lines[0]


def test_resuming_a_run_with_your_own_data_without_them_names_its_config(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    own = "mine=coco:/data/images:/data/a.json"
    run_of = tmp_path / "run"
    run_of.mkdir()
    (run_of / "config.yaml").write_text(f"DATASETS:\n  CUSTOM: ['{own}']\n  TRAIN: ['mine']\n")
    data = {"DATASETS.TRAIN": "('voc_2007_trainval',)", "DATASETS.TEST": "()"}
    cfg = small(run_of, "", **data)
    with pytest.raises(UserError) as error:
        run_checks.check_inputs(cfg, train=True, resume=True)
    assert str(error.value).startswith(
        f"The run in {run_of} uses {own}. Resume it with --config {run_of}/config.yaml. dataset"
    )
    with pytest.raises(UserError, match="^dataset 'voc_2007_trainval'"):
        run_checks.check_inputs(cfg, train=True)


@pytest.mark.parametrize("words", ["--resume SEED 1", "SEED 1 --resume"])
def test_options_and_overrides_in_any_order(words):
    args = train.parse(["--config", "c.yaml", *words.split(), "OUTPUT_DIR", "-1"])
    assert args.resume and args.opts == ["SEED", "1", "OUTPUT_DIR", "-1"]
