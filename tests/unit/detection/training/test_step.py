"""One update of a detector, and what a run keeps: averages, the best, a batch that broke it."""

import contextlib
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.engine import hooks

from robust_backbones.attacks import CONSTRAINTS
from robust_backbones.core.eps import parse_number
from robust_backbones.core.errors import UserError
from robust_backbones.core.signals import Stopped
from robust_backbones.detection import attack
from robust_backbones.detection.checkpointer import StrictCheckpointer
from robust_backbones.detection.training import trainer
from tests.support import processes
from tests.support.backward_masks import BackwardMasks
from tests.support.detector_runs import overrides, ready_trainer, start, train_net
from tests.support.small_detectors import tiny_detector


@pytest.fixture
def make(tmp_path, resnet18_backbone):
    """Trainers that are ready for their first iteration."""
    from detectron2.utils.events import EventStorage

    with EventStorage():
        yield partial(ready_trainer, folder=tmp_path, weights=resnet18_backbone)


def weights(model) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_accumulated_gradients_are_the_mean_over_the_parts(make):
    """Against a step written out with Detectron2's model and optimizer alone."""
    found, plain = make(SOLVER__ACCUMULATE="2"), make(SOLVER__ACCUMULATE="2")
    found.run_step()
    batches = iter(plain.data_loader)
    torch.manual_seed(trainer.seed_from(0, 0, 0))
    plain.optimizer.zero_grad()
    for _ in range(2):
        batch = next(batches)
        assert len(batch) == 1
        (sum(plain.model(batch).values()) / 2).backward()
    plain.optimizer.step()
    ours, theirs = weights(found.model), weights(plain.model)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-7) for name in ours)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_is_near_full(make, dtype):
    """The losses of the first step agree to the precision, but not to that of float32."""
    plain = make()
    mixed = make(SOLVER__PRECISION=dtype)
    for found in (plain, mixed):
        found.run_step()
    a, b = (found.storage.latest()["total_loss"][0] for found in (plain, mixed))
    losses = plain.storage.history("total_loss").values()
    assert a == b == losses[-1][0]  # one storage: the last of both
    first, second = (value for value, _ in losses)
    assert first != second
    assert abs(first - second) < 0.05 * first


def test_the_average_moves_by_its_decay_and_is_what_is_saved(make, tmp_path):
    found = make(SOLVER__EMA="0.75")
    expected = None
    for found.iter in range(3):
        found.run_step()
        for hook in found._hooks[:1]:
            hook.after_step()
        now = weights(found.model)
        expected = (
            {
                k: 0.75 * expected[k] + 0.25 * now[k] if v.is_floating_point() else v
                for k, v in now.items()
            }
            if expected
            else now
        )
    average = weights(found.average.module)
    assert all(torch.allclose(average[name], expected[name], atol=1e-6) for name in expected)
    assert not equal(average, now)

    found.checkpointer.save("model_0000002", iteration=2)
    saved = torch.load(tmp_path / "model_0000002.pth", weights_only=True)
    assert equal(saved["model"], average)
    again = make(resume=True, SOLVER__EMA="0.75")
    assert equal(weights(again.model), now)
    assert equal(weights(again.average.module), average)
    assert int(again.average.n_averaged) == 3
    without = make(resume=True)  # the average is given up, training's weights are not
    assert equal(weights(without.model), now)
    alone = StrictCheckpointer(make(folder=tmp_path / "other").model)
    alone.load(str(tmp_path / "model_0000002.pth"))
    assert equal(weights(alone.model), average)


def test_what_broke_a_run_is_kept(make, tmp_path):
    found = make()
    before = weights(found.model)
    with torch.no_grad():
        found.model.proposal_generator.rpn_head.objectness_logits.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="diverged at iteration 0: .*NaN.*. Reduce SOLVER.BASE_LR"):
        found.run_step()
    kept = torch.load(tmp_path / "not_finite_iter0_rank0.pth", weights_only=True)
    assert kept["iteration"] == 0 and len(kept["batch"]) == 2
    assert kept["batch"][0]["image"].dtype == torch.uint8
    assert kept["batch"][0]["boxes"].shape == (len(kept["batch"][0]["classes"]), 4)
    name = "backbone.bottom_up.res5.0.conv1.weight"
    assert torch.equal(found.model.state_dict()[name], before[name])


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        (
            {"SOLVER__CLIP_GRADIENTS__ENABLED": "False"},
            "Reduce SOLVER.BASE_LR .*, or set SOLVER.CLIP_GRADIENTS.ENABLED True[.]",
        ),
        ({"SOLVER__CLIP_GRADIENTS__ENABLED": "True"}, "Reduce SOLVER.BASE_LR [(]0[.]\\d+[)][.]"),
    ],
)
def test_gradients_that_are_not_finite_stop_before_the_update(make, tmp_path, changes, fix):
    found = make(**changes)
    before = weights(found.model)
    bias = found.model.roi_heads.box_predictor.cls_score.bias
    bias.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UserError, match=f"0: the norm of the gradients is (nan|inf)[.] {fix}"):
        found.run_step()
    assert equal(weights(found.model), before)
    assert (tmp_path / "not_finite_iter0_rank0.pth").exists()


REPORTS = {"SOLVER__ADVERSARIAL__METHOD": "free", "SOLVER__ADVERSARIAL__REPLAYS": "4"}


def as_on_a_gpu(found) -> Any:
    """The training step of a run, with the fused optimizer and reports of a GPU."""
    found._trainer.use_fused(True)
    found._trainer.report_every = 4
    return found._trainer


def test_an_update_that_fails_between_reports_stops_the_weights_at_once(make, tmp_path):
    """On a GPU, the reason is read later, with the iteration, the batch and the losses."""
    found = make(**REPORTS)
    as_on_a_gpu(found)
    bias = found.model.roi_heads.box_predictor.cls_score.bias
    found.iter = 0
    found.run_step()  # the first updates of a run are reported at once
    logged = found.storage.history("total_loss").values()
    assert len(logged) == 1
    found.start_iter = -100  # no longer the first iterations
    found.iter = 1
    found.run_step()
    good = weights(found.model)
    handle = bias.register_hook(lambda gradient: gradient * float("inf"))
    found.iter = 2
    found.run_step()
    handle.remove()
    assert equal(weights(found.model), good)
    assert found.storage.history("total_loss").values() == logged  # not read yet
    found.iter = 3
    with pytest.raises(UserError, match="at iteration 2: the norm of the gradients is (nan|inf)"):
        found.run_step()
    assert equal(weights(found.model), good)
    kept = torch.load(tmp_path / "not_finite_iter2_rank0.pth", weights_only=True)
    assert kept["iteration"] == 2 and all(loss > 0 for loss in kept["losses"].values())


def test_an_update_that_overflows_in_float16_is_skipped_on_the_device(make):
    """Even the first one, which creates the momentum."""
    found = make(SOLVER__PRECISION="float16")
    step, before = as_on_a_gpu(found), weights(found.model)
    bias = found.model.roi_heads.box_predictor.cls_score.bias
    handle = bias.register_hook(lambda gradient: gradient * float("inf"))
    found.iter = 0
    found.run_step()
    handle.remove()
    assert equal(weights(found.model), before) and step.scaler.get_scale() == 2**15
    for found.iter in (1, 2, 3):
        found.run_step()
    now = weights(found.model)
    assert not equal(now, before) and all(tensor.isfinite().all() for tensor in now.values())
    iterations = [i for _, i in found.storage.history("total_loss").values()]
    assert iterations == [0, 1, 2, 3]


def test_weights_that_are_not_finite_are_never_saved(make, tmp_path):
    found = make()
    torch.nn.init.constant_(next(found.model.parameters()), float("nan"))
    with pytest.raises(UserError, match="model_0000001.pth was not written, because training"):
        found.checkpointer.save("model_0000001", iteration=1)
    assert not list(tmp_path.glob("*.pth")) and not (tmp_path / "last_checkpoint").exists()


def test_the_best_is_kept_beside_the_last(make, tmp_path, monkeypatch):
    found = make(TEST__BEST="bbox/AP")
    values = iter([1.0, 3.0, float("nan"), 2.0])
    monkeypatch.setattr(found, "test", lambda cfg, model: {"bbox": {"AP": next(values)}})
    for found.iter in range(4):
        found._evaluate()
    assert found.best == {"metric": "bbox/AP", "value": 3.0, "iteration": 2}
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 1
    assert not (tmp_path / "last_checkpoint").exists()  # resuming starts from the last one
    found.checkpointer.save("model_0000003", iteration=3)
    assert make(resume=True).best == found.best
    monkeypatch.setattr(found, "test", lambda cfg, model: {"segm": {"AP": 1.0}})
    with pytest.raises(UserError, match="TEST.BEST is 'bbox/AP', .*Choose from segm/AP"):
        found._evaluate()


ADVERSARIAL = {"SOLVER__ADVERSARIAL__METHOD": "free", "SOLVER__ADVERSARIAL__REPLAYS": "3"}


def run_steps(found, first: int, last: int) -> list:
    """Iterations first to last - 1; returns the images that each learned from."""
    seen = []
    for found.iter in range(first, last):
        found.run_step()
        seen.append([[x.clone() for x in part] for part in found._trainer.adversary.images])
    return seen


def loss(found, batch, images) -> float:
    """Of classification, mean over some samplings of regions. (How many proposals are near an
    object has no gradient, and decides the localization loss of an untrained detector.)"""
    moved = [{**item, "image": image} for item, image in zip(batch, images, strict=True)]
    kind = "classification"
    return sum(attack.detection_loss(found.model, moved, loss=kind, seed=s) for s in (0, 1)) / 2


def starts(batch, constraint, eps) -> list:
    """Random points of the balls, where an attack begins."""
    rule, radius = CONSTRAINTS[constraint], 255 * eps
    generator = torch.Generator().manual_seed(0)
    return [rule.random_start(item["image"].float(), radius, generator) for item in batch]


@pytest.mark.parametrize(("constraint", "eps"), [("linf", "2/255"), ("l2", "2")])
def test_replayed_images_move_within_the_ball(make, constraint, eps):
    found = make(
        **ADVERSARIAL,
        SOLVER__ADVERSARIAL__CONSTRAINT=constraint,
        SOLVER__ADVERSARIAL__EPS=eps,
        SOLVER__BASE_LR="0",
    )
    found.model.load_state_dict(tiny_detector(found.cfg).state_dict())  # one that has gradients
    plain = iter(make().data_loader)
    one, two = next(plain), next(plain)
    seen = run_steps(found, 0, 4)
    for images, batch in zip(seen, (one, one, one, two), strict=True):
        for image, item in zip(images[0], batch, strict=True):
            away = (image - item["image"].float()) / 255
            size = away.abs().max() if constraint == "linf" else away.norm()
            assert 0 < size <= parse_number(eps) * (1 + 1e-5)
            assert image.min() >= 0 and image.max() <= 255
    assert not torch.equal(seen[0][0][0], seen[1][0][0])
    # The weights stand still; the loss is above that at the random points where replays begin.
    before = starts(one, constraint, parse_number(eps))
    assert loss(found, one, seen[2][0]) > loss(found, one, before)


def test_a_run_with_replays_stops_between_them_and_resumes_exactly(make):
    whole = make(**ADVERSARIAL)
    whole.signals = SimpleNamespace(requested=True)
    for first in range(3):
        run_steps(whole, first, first + 1)
        with pytest.raises(Stopped) if first == 2 else contextlib.nullcontext():
            whole._hooks[-1].after_step()
    expected = run_steps(whole, 3, 5)
    again = make(resume=True, **ADVERSARIAL)
    assert again.start_iter == 3
    found = run_steps(again, 3, 5)
    for a, b in zip(expected, found, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True))
    assert equal(weights(whole.model), weights(again.model))
    (saving,) = (h for h in whole._hooks if isinstance(h, hooks.PeriodicCheckpointer))
    assert saving.period == 102  # SOLVER.CHECKPOINT_PERIOD is 100


def test_pgd_attacks_each_batch_before_its_update(make):
    found = make(
        SOLVER__ADVERSARIAL__METHOD="pgd",
        SOLVER__ADVERSARIAL__EPS="2/255",
        MODEL__BACKBONE__FREEZE_AT="2",
    )
    found.model.load_state_dict(tiny_detector(found.cfg).state_dict())
    batch = next(iter(make().data_loader))
    generator = torch.Generator().manual_seed(0)
    moved = found._trainer.adversary.attacked(found.model, [batch], 0, generator)
    attacked = [item["image"] for item in moved]
    clean = [item["image"].float() for item in batch]
    for others in (starts(batch, "linf", 2 / 255), clean):
        assert loss(found, batch, attacked) > loss(found, batch, others)
    before = weights(found.model)
    with BackwardMasks() as seen:
        found.run_step()
    assert not equal(weights(found.model), before)
    learning = [mask for mask in seen.masks if mask[1]]
    attacking = [mask for mask in seen.masks if not mask[1]]
    assert set(attacking) == {(True, False, False)}
    # Three steps of the attack pass the five frozen convolutions of the stem and res2.
    assert len(attacking) == 3 * (len(learning) + 5)


RATES = {"SOLVER__BASE_LR": "0.5", "SOLVER__MOMENTUM": "0.5", "SOLVER__WARMUP_ITERS": "0"}


def test_the_schedule_given_now_is_taken_when_asked_for(make, tmp_path):
    first = make(SOLVER__WARMUP_ITERS="0")
    first.run_step()
    first.scheduler.step()
    first.checkpointer.save("model_0000000", iteration=0)
    again = make(resume=True, restart=True, **RATES)
    assert {group["lr"] for group in again.optimizer.param_groups} == {0.5}
    assert {group["momentum"] for group in again.optimizer.param_groups} == {0.5}
    assert again.optimizer.state  # momentum itself goes on
    again.run_step()
    again.scheduler.step()
    assert {group["lr"] for group in again.optimizer.param_groups} == {0.5}
    first.iter = 9
    first.checkpointer.save("model_0000009", iteration=9)
    with pytest.raises(UserError, match="MAX_ITER is 6, but the run .* has finished 10 iter"):
        make(resume=True)


def test_the_recipe_of_synchronised_statistics(make):
    found = make(MODEL__ROBUST__NORM="sync")
    body = found.model.backbone.bottom_up
    assert isinstance(body.stem.conv1.norm, torch.nn.SyncBatchNorm)
    assert isinstance(found.model.backbone.fpn_output2.norm, torch.nn.SyncBatchNorm)
    assert all(parameter.requires_grad for parameter in body.parameters())
    before = body.stem.conv1.norm.running_mean.clone()
    found.run_step()
    assert not torch.equal(body.stem.conv1.norm.running_mean, before)


@pytest.mark.slow
def test_a_signal_saves_and_a_resumed_run_ends_as_one_that_was_not_stopped(
    tmp_path, resnet18_backbone
):
    more = {
        "SOLVER.CHECKPOINT_PERIOD": "100",
        "DATASETS.TEST": "()",
        "SOLVER.EMA": "0.5",
        "SOLVER.ACCUMULATE": "2",
        "SOLVER.MAX_ITER": "12",
    }
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_net(tmp_path / "log", *overrides(whole, resnet18_backbone, **more))
    args = overrides(stopped, resnet18_backbone, **more)
    (process,) = start(tmp_path / "first", *args)
    log = stopped / "log.txt"
    while not (log.exists() and "Starting training" in log.read_text()):
        assert process.is_alive()
        time.sleep(0.05)
    process.terminate()
    (done,) = processes.finish(tmp_path / "first", [process])
    assert done.code == 75 and not done.errors, done
    assert (stopped / "last_checkpoint").exists()
    train_net(tmp_path / "second", "--resume", *args)
    a, b = (torch.load(p / "model_final.pth", weights_only=True) for p in (whole, stopped))
    assert equal(a["model"], b["model"]) and equal(a["training_model"], b["training_model"])
