"""Run trials that train the last layer or the full network by SGD."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from classification import progress
from classification.calibration import best_temperature
from classification.datasets import loader
from classification.datasets.split import ImageSplit
from classification.models import save_classifier
from classification.training import distributed
from classification.training.evaluate import Evaluation, collect_logits
from classification.training.learner import Learner
from classification.training.trainer import EVAL_BATCH, Training
from classification.transfer.settings import SgdSettings
from classification.transfer.task import Calibration, Task, Trial
from robust_backbones.checkpoint.io import load_file
from robust_backbones.core import run_log
from robust_backbones.core.signals import Stopped

BEST, LAST = "best.pt", "checkpoint.pt"
CHOOSING, FINAL = "choosing", "final"


@dataclass(frozen=True)
class SgdRun:
    """One training run within a trial.

    Attributes:
        trial: index of the trial.
        lr: peak learning rate.
        part: purpose of the run. `CHOOSING`: train a candidate. `FINAL`: train on all training
            images with the selected learning rate.
    """

    trial: int
    lr: float
    part: str

    def folder(self, task: Task) -> Path:
        """Return the folder of the training run."""
        return task.folder / f"trial{self.trial}" / f"{self.part}_lr{self.lr:g}"


def run(task: Task) -> list[Trial]:
    """Run all trials.

    The test images are evaluated once, after all learning rates are selected. They are evaluated
    during training only if the protocol selects on the test images.
    """
    lrs, on_test = _sgd(task).lrs, task.selects_on_test
    candidates = [
        SgdRun(trial, lr, CHOOSING)
        for trial in task.trials
        for lr in lrs
        if on_test or task.settings.chooses
    ]
    count = len(candidates) + (0 if on_test else len(task.trials))
    histories: dict[SgdRun, list[dict]] = {}
    for i, candidate in enumerate(candidates, 1):
        rivals = [past for other, past in histories.items() if other.trial == candidate.trial]
        histories[candidate] = _train(task, candidate, f"{i} of {count}", rivals)
    scores = {candidate: _score(task, past) for candidate, past in histories.items()}
    chosen = _same_lr(task, scores) if on_test else _lr_per_trial(task, scores)
    if not on_test:
        for i, final in enumerate(chosen, len(candidates) + 1):
            _train(task, final, f"{i} of {count}", [])
    return [_test(task, final, scores) for final in chosen]


def _sgd(task: Task) -> SgdSettings:
    assert task.settings.sgd is not None
    return task.settings.sgd


def _same_lr(task: Task, scores: dict[SgdRun, dict]) -> list[SgdRun]:
    """Choose one learning rate for all trials, as in the paper.

    The accuracy of the best epoch, averaged over the trials, is highest for this learning rate.
    """
    means = {
        lr: sum(scores[SgdRun(trial, lr, CHOOSING)]["value"] for trial in task.trials)
        for lr in _sgd(task).lrs
    }
    best = max(means, key=means.__getitem__)
    return [SgdRun(trial, best, CHOOSING) for trial in task.trials]


def _lr_per_trial(task: Task, scores: dict[SgdRun, dict]) -> list[SgdRun]:
    """Choose the best learning rate of each trial. A single candidate needs no selection."""
    lrs = _sgd(task).lrs
    if not task.settings.chooses:
        return [SgdRun(trial, lrs[0], FINAL) for trial in task.trials]

    def best(trial: int) -> float:
        return max(lrs, key=lambda lr: scores[SgdRun(trial, lr, CHOOSING)]["value"])

    return [SgdRun(trial, best(trial), FINAL) for trial in task.trials]


def _train(task: Task, run: SgdRun, position: str, rivals: list[list[dict]]) -> list[dict]:
    """Train or resume one training run, unless it has finished.

    Args:
        task: network, data and settings of the transfer run.
        run: training run.
        position: position of the training run for the log, such as "2 of 6".
        rivals: histories of the trial's earlier candidates.

    Returns:
        The history of the training run, with one record per epoch.
    """
    if task.signals.requested:
        raise Stopped
    monitored = None
    if run.part == FINAL:
        fit = task.train.subset(task.images(run.trial))
    else:
        fit, monitored = task.selection_sources(run.trial)
    if distributed.rank() == 0:
        run_log.say(
            f"training {position}: trial {run.trial + 1}, {run.part}, learning rate {run.lr:g}, "
            f"{len(fit)} images"
        )
    seed = task.seed(run.trial)
    learner = Learner(
        task.classifier(run.trial), dataclasses.replace(_sgd(task).train, lr=run.lr, seed=seed)
    )
    training = Training(
        learner,
        fit,
        task.recorded | {"lr": run.lr, "seed": seed, "part": run.part},
        task.metadata(run.trial),
        run.folder(task),
        data=task.data,  # the settings determine which of its images are used
        examine=partial(_examine, task, monitored),
        finish=partial(_draw, f"{task.settings.dataset}, {run.part}, learning rate {run.lr:g}"),
        enough=partial(_prune, task, rivals),
        monitored=monitored.split if monitored else "",
        workers=task.workers,
        save_seconds=task.save_seconds,
    )
    training.run()
    return training.history


def _draw(title: str, training: Training) -> None:
    if training.writes:
        path = training.folder / "curves.png"
        progress.draw_curves(path, training.history, title, training.monitored)


def _key(task: Task) -> str:
    """Return the key of the selection accuracy in an epoch's record."""
    kind = "adversarial" if _sgd(task).train.attack.eps else "clean"
    return f"{kind}_{task.settings.metric}"


def _prune(task: Task, rivals: list[list[dict]], training: Training) -> bool:
    """Return whether an earlier candidate is better by more than `--prune-margin` at this epoch."""
    margin, key = _sgd(task).prune_margin, _key(task)
    own = [record for record in training.history if key in record]
    if not margin or not own or training.epoch < training.epochs / 3:
        return False
    rival_values = [
        record[key]
        for past in rivals
        for record in past
        if key in record and record["epoch"] <= own[-1]["epoch"]
    ]
    return bool(rival_values) and max(rival_values) - max(r[key] for r in own) > margin


def _score(task: Task, history: list[dict]) -> dict:
    """Compute the score of a candidate.

    Returns:
        A dictionary. `value` is the accuracy to select by, in percent. It is from the best epoch if
        the protocol selects on the test images, and from the last epoch otherwise. `epoch` is the
        number of this epoch. `last` is the accuracy in the last epoch. `stopped` is the number of
        trained epochs, and present only if the candidate was pruned.
    """
    key = _key(task)
    evaluated = [record for record in history if key in record]
    last = evaluated[-1]
    best = max(evaluated, key=lambda record: record[key]) if task.selects_on_test else last
    score = {"value": best[key], "epoch": best["epoch"], "last": last[key]}
    pruned = len(history) < _sgd(task).train.epochs
    return score | ({"stopped": len(history)} if pruned else {})


def _examine(task: Task, monitored: ImageSplit | None, training: Training) -> dict:
    """Evaluate the monitored images in epochs 1, 1 + N, 1 + 2N, ... and in the last epoch.

    N is `eval_every`. If the protocol selects the best epoch, save the weights of the best epoch.
    """
    due = training.epoch % _sgd(task).eval_every == 0 or training.epoch == training.epochs - 1
    if monitored is None or not due:
        return {}
    found = _numbers(task, "clean", training.evaluate(monitored, None))
    attack = training.settings.attack
    if attack.eps:
        found |= _numbers(task, "adversarial", training.evaluate(monitored, attack))
    key = _key(task)
    if task.selects_on_test and training.writes:
        if all(found[key] > record[key] for record in training.history if key in record):
            _save_best(training)
    return found


def _numbers(task: Task, kind: str, evaluation: Evaluation) -> dict:
    accuracy = task.metric(evaluation.predictions, evaluation.labels, task.train.classes)
    return {
        f"{kind}_loss": evaluation.loss,
        f"{kind}_top1": evaluation.top1,
        f"{kind}_{task.settings.metric}": accuracy,
    }


def _save_best(training: Training) -> None:
    state = training.learner.result.state_dict()
    save_classifier(training.folder / BEST, state, training.metadata)


def _test(task: Task, run: SgdRun, scores: dict[SgdRun, dict]) -> Trial:
    """Evaluate the selected network on the test images."""
    sgd = _sgd(task)
    file = BEST if run.part == CHOOSING else LAST
    state = _state(task, run, file)
    temperature = _temperature(task, run)
    logits = _logits(task, state, run, task.test)
    candidates = [
        {"lr": lr} | scores[SgdRun(run.trial, lr, CHOOSING)]
        for lr in sgd.lrs
        if SgdRun(run.trial, lr, CHOOSING) in scores
    ]
    more = {key: scores[run][key] for key in ("epoch", "last")} if run in scores else {}
    saved = None
    if task.keeps_networks:
        saved = {name: tensor.cpu() for name, tensor in state.items()}
    seed = task.seed(run.trial)
    measured = Calibration.of(logits, task.test.labels, temperature)
    return Trial(
        seed, {"lr": run.lr}, candidates, logits.argmax(1), measured, more=more, model=saved
    )


def _temperature(task: Task, run: SgdRun) -> float | None:
    """Choose the temperature on the validation images of the selected candidate, if there are any.

    The candidate has not been trained on them, unlike the final network.
    """
    if run.part == CHOOSING or not task.settings.chooses:
        return None
    candidate = SgdRun(run.trial, run.lr, CHOOSING)
    _, images = task.selection_sources(run.trial)
    state = _state(task, candidate, LAST)
    return best_temperature(_logits(task, state, candidate, images), images.labels)


def _state(task: Task, run: SgdRun, file: str) -> dict:
    """Return the state dict in a file of a training run, in all processes.

    Only process 0 reads the file, because the others may finish training before it writes the file.
    """
    return distributed.from_first(lambda: load_file(run.folder(task) / file)["model"])


def _logits(task: Task, state: dict, run: SgdRun, images: ImageSplit) -> Tensor:
    """Compute the logits `(N, K)` of a network with this state dict, in all processes."""
    model = task.classifier(run.trial).eval()
    model.load_state_dict(state)
    batches = loader.load_batches(
        images,
        EVAL_BATCH,
        rank=distributed.rank(),
        world=distributed.world(),
        workers=task.workers,
        device=task.device,
    )
    return collect_logits(model, batches, task.device, task.signals)


def remove_weights(task: Task) -> None:
    """Remove the weights of all training runs of a finished transfer run, but not the curves."""
    for name in (BEST, LAST):
        for path in task.folder.glob(f"trial*/*/{name}"):
            path.unlink()
