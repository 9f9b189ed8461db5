"""Trials by SGD: the last layer or the full network, through the engine of pretraining."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from classification import progress
from classification.datasets import loader
from classification.datasets.split import ImageSplit
from classification.models import Classifier
from classification.training import distributed
from classification.training import evaluate as engine
from classification.training.learner import Learner, seed_of
from classification.training.trainer import EVAL_BATCH, Training, identity
from classification.transfer.task import Task, Trial
from robust_backbones import attacks
from robust_backbones.checkpoint.formats import FORMAT, FORMAT_VERSION
from robust_backbones.checkpoint.io import load_file, save_file
from robust_backbones.core.signals import Stopped

BEST, LAST = "best.pt", "checkpoint.pt"
CHOOSING, FINAL = "choosing", "final"


@dataclass(frozen=True)
class Run:
    """One training of one trial.

    Attributes:
        part: `choosing`, or `final`: on all training images, after the choice.
    """

    trial: int
    lr: float
    part: str

    def folder(self, task: Task) -> Path:
        return task.folder / f"trial{self.trial}" / f"{self.part}_lr{self.lr:g}"


def run(task: Task) -> list[Trial]:
    """All trials. The test images are looked at after all choices are made.

    Unless they are to decide: then each training is judged on them as it goes.
    """
    on_test = task.settings["selection"] == "test"
    rates = task.settings["rates"]
    choosing = [
        Run(trial, lr, CHOOSING) for trial in task.trials for lr in rates if on_test or task.chooses
    ]
    runs = len(choosing) + (0 if on_test else len(task.trials))
    histories: dict[Run, list[dict]] = {}
    for i, one in enumerate(choosing, 1):
        rivals = [past for other, past in histories.items() if other.trial == one.trial]
        histories[one] = _train(task, one, f"{i} of {runs}", rivals)
    values = {one: _value(task, past) for one, past in histories.items()}
    chosen = _same_for_all(task, values) if on_test else _each_its_own(task, values)
    if not on_test:
        for i, one in enumerate(chosen, len(choosing) + 1):
            _train(task, one, f"{i} of {runs}", [])
    return [_finish(task, one, values) for one in chosen]


def _same_for_all(task: Task, values: dict[Run, dict]) -> list[Run]:
    """The rate whose best epochs are the best in the mean over the trials, as published."""
    means = {
        lr: sum(values[Run(trial, lr, CHOOSING)]["value"] for trial in task.trials)
        for lr in task.settings["rates"]
    }
    best = max(means, key=means.__getitem__)
    return [Run(trial, best, CHOOSING) for trial in task.trials]


def _each_its_own(task: Task, values: dict[Run, dict]) -> list[Run]:
    rates = task.settings["rates"]
    if not task.chooses:
        return [Run(trial, rates[0], FINAL) for trial in task.trials]

    def best(trial: int) -> float:
        return max(rates, key=lambda lr: values[Run(trial, lr, CHOOSING)]["value"])

    return [Run(trial, best(trial), FINAL) for trial in task.trials]


def _train(task: Task, one: Run, place: str, rivals: list[list[dict]]) -> list[dict]:
    """Train, or go on, or find it done.

    Args:
        rivals: histories of the earlier trainings that it is to be chosen among.

    Returns:
        its history: a record of each epoch.
    """
    if task.signals.requested:
        raise Stopped
    settings, monitored = task.settings, None
    if one.part == FINAL:
        fit = task.train.subset(task.images(one.trial))
    else:
        fit, monitored = task.judges(one.trial)
    own = settings | {"lr": one.lr, "seed": task.seed(one.trial), "part": one.part}
    if distributed.rank() == 0:
        print(
            f"training {place}: trial {one.trial + 1}, {one.part}, learning rate {one.lr:g}, "
            f"{len(fit)} images",
            flush=True,
        )
    sources = [fit] if monitored is None else [fit, monitored]
    training = Training(
        Learner(task.classifier(one.trial), own),
        fit,
        own,
        task.metadata(one.trial),
        one.folder(task),
        data=identity(*sources),
        examine=partial(_examine, task, monitored),
        finish=_draw,
        enough=partial(_hopeless, task, rivals),
        monitored=monitored.split if monitored else "",
        workers=task.workers,
        save_seconds=task.save_seconds,
    )
    training.run()
    return training.history


def _draw(run: Training) -> None:
    if run.writes:
        title = f"{run.settings['dataset']}, {run.settings['part']}, rate {run.settings['lr']:g}"
        progress.draw_curves(run.folder / "curves.png", run.history, title, run.monitored)


def _key(task: Task) -> str:
    """Which number of an epoch's record decides."""
    return f"{'adversarial' if task.settings['eps'] else 'clean'}_{task.metric_name}"


def _hopeless(task: Task, rivals: list[list[dict]], run: Training) -> bool:
    """Whether the best rival was better at this epoch by more than `--stop-hopeless`."""
    margin, key = task.settings["stop_hopeless"], _key(task)
    own = [record for record in run.history if key in record]
    if not margin or not own or run.epoch < run.epochs / 3:
        return False
    then = [
        record[key]
        for past in rivals
        for record in past
        if key in record and record["epoch"] <= own[-1]["epoch"]
    ]
    return bool(then) and max(then) - max(record[key] for record in own) > margin


def _value(task: Task, history: list[dict]) -> dict:
    """`value`: the accuracy that decides, in percent: of the best epoch if the test images decide,
    else of the last one; `epoch`: which that is; `last`: of the last epoch; `stopped`: after how
    many epochs it was given up, if it was."""
    key = _key(task)
    judged = [record for record in history if key in record]
    last = judged[-1]
    best = max(judged, key=lambda r: r[key]) if task.settings["selection"] == "test" else last
    found = {"value": best[key], "epoch": best["epoch"], "last": last[key]}
    cut = len(history) < task.settings["passes"]
    return found | ({"stopped": len(history)} if cut else {})


def _examine(task: Task, monitored: ImageSplit | None, run: Training) -> dict:
    """The accuracy on the monitored images, at epochs 1, 6, 11, ... and the last; the network of
    the best epoch is kept if that is what will count."""
    settings = task.settings
    due = run.epoch % settings["eval_every"] == 0 or run.epoch == run.epochs - 1
    if monitored is None or not due:
        return {}
    found = _judge(task, "clean", run.evaluate(monitored, None))
    if settings["eps"]:
        found |= _judge(task, "adversarial", run.evaluate(monitored, settings))
    key = _key(task)
    if settings["selection"] == "test" and run.writes:
        if all(found[key] > record[key] for record in run.history if key in record):
            _keep(task, run)
    return found


def _judge(task: Task, kind: str, outcome: engine.Outcome) -> dict:
    return {
        f"{kind}_loss": outcome.loss,
        f"{kind}_top1": outcome.top1,
        f"{kind}_{task.metric_name}": task.metric(
            outcome.predictions, outcome.labels, task.train.classes
        ),
    }


def _keep(task: Task, run: Training) -> None:
    contents = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "metadata": run.metadata,
        "model": run.learner.result.state_dict(),
    }
    save_file(contents, run.folder / BEST)


def _finish(task: Task, one: Run, values: dict[Run, dict]) -> Trial:
    """Measure the network that counts on the test images."""
    model = task.classifier(one.trial)
    file = BEST if one.part == CHOOSING else LAST
    state = load_file(one.folder(task) / file)["model"]
    model.load_state_dict(state)
    clean = _predict(task, model, one, None)
    adversarial = None
    if attack := task.settings["evaluation"]:
        adversarial = _predict(task, model, one, attack)
    candidates = [
        {"lr": lr} | values[Run(one.trial, lr, CHOOSING)]
        for lr in task.settings["rates"]
        if Run(one.trial, lr, CHOOSING) in values
    ]
    more = {key: values[one][key] for key in ("epoch", "last")} if one in values else {}
    kept = (
        {name: t.cpu() for name, t in state.items()} if task.settings["save_classifier"] else None
    )
    return Trial(task.seed(one.trial), {"lr": one.lr}, candidates, clean, adversarial, more, kept)


def _predict(task: Task, model: Classifier, one: Run, attack: dict | None) -> torch.Tensor:
    seed = seed_of(task.seed(one.trial), distributed.rank())
    adversary = attacks.adversary(attack, seed) if attack else None
    batches = loader.test_batches(
        task.test,
        EVAL_BATCH,
        rank=distributed.rank(),
        world=distributed.world(),
        workers=task.workers,
    )
    return engine.evaluate(model, batches, adversary, task.signals).predictions


def tidy(task: Task) -> None:
    """Remove the weights of a finished run's trainings; their curves stay."""
    for name in (BEST, LAST):
        for path in task.folder.glob(f"trial*/*/{name}"):
            path.unlink()
