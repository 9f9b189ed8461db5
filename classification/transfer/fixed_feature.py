"""Run trials on cached features of a frozen network: logistic regression or nearest neighbors."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from classification import progress
from classification.calibration import best_temperature
from classification.datasets.split import ImageSplit
from classification.models import Classifier
from classification.transfer import features, knn, probe, protocols
from classification.transfer.memory import LARGE, Size, make_plan, solver_device
from classification.transfer.rows import Rows
from classification.transfer.task import Calibration, Task, Trial
from robust_backbones.core import run_log
from robust_backbones.core.signals import Stopped


@dataclass
class Choice:
    """Selected hyperparameter of one trial.

    Attributes:
        value: selected value, or the value that the user gave.
        candidates: evaluated values, as in `Trial`.
        more: further entries for the result, in plain JSON types.
        start: solution from which `Probe.predict` can start; None: no solution.
        temperature: temperature chosen on the validation images; None: no validation images.
    """

    value: Any
    candidates: list[dict] = field(default_factory=list)
    more: dict = field(default_factory=dict)
    start: Any = None
    temperature: float | None = None


@dataclass(frozen=True)
class Outcome:
    """Output of a fitted probe for N images.

    Attributes:
        predictions: predicted classes `(N,)` int64.
        logits: logits `(N, K)` float64; None: the probe has none.
        head: weight `(K, d)` and bias `(K,)` of the last layer; None: the probe has no parameters.
    """

    predictions: Tensor
    logits: Tensor | None = None
    head: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Probe:
    """Functions of one type of probe. They run on the device that fits the task.

    Attributes:
        choose: function `(x, y, x_val, y_val) -> Choice`, which selects the hyperparameter.
        predict: function `(choice, x, y, x_test) -> Outcome`.
    """

    choose: Callable[[Rows, Tensor, Rows, Tensor], Choice]
    predict: Callable[[Choice, Rows, Tensor, Rows], Outcome]


@dataclass(frozen=True)
class _Features:
    """Features of a subset of the training images.

    Attributes:
        indices: ascending indices of the images, `(N,)` int64.
        x: features of these images.
    """

    indices: Tensor
    x: Rows

    def of(self, images: Tensor) -> Rows:
        """Return the features of the images with these ascending indices."""
        return self.x.subset(torch.searchsorted(self.indices, images))


def run(task: Task) -> list[Trial]:
    """Run all trials.

    The test images are used only after all trials have selected their hyperparameter, unless the
    protocol selects on the test images.
    """
    model = task.classifier(0)
    indices = torch.cat([task.images(trial) for trial in task.trials]).unique()
    row = PROBES[task.settings.parts.probe](task, len(indices), model.head.in_features)
    features_of = partial(_extract, task, model)
    train = _Features(indices, features_of(task.train.subset(indices)))
    choices = []
    for trial in task.trials:
        if task.signals.requested:
            raise Stopped
        choices.append(_choose(task, row, trial, train, features_of))
    x_test = features_of(task.test)
    return [
        _test(task, row, trial, train, x_test, choice)
        for trial, choice in zip(task.trials, choices, strict=True)
    ]


def _extract(task: Task, model: Classifier, source: ImageSplit) -> Rows:
    line = progress.ProgressLine(len(source))
    found = features.extract(
        model,
        source,
        precision=task.settings.precision,
        workers=task.workers,
        signals=task.signals,
        progress=line.show,
    )
    line.clear()
    return found


def _choose(
    task: Task, row: Probe, trial: int, train: _Features, features_of: Callable[[ImageSplit], Rows]
) -> Choice:
    """Select the hyperparameter of a trial, or return the value that the user gave."""
    settings = task.settings
    if not settings.chooses:
        return Choice(
            settings.penalty if settings.parts.probe == "logistic" else settings.neighbors
        )
    if task.selects_on_test:
        fit, x_val, y_val = task.images(trial), features_of(task.test), task.test.labels
    else:
        fit, val = task.validation_split(trial)
        x_val, y_val = train.of(val), task.train.labels[val]
    run_log.say(
        f"trial {trial + 1} of {len(task.trials)}: selecting {_name(task)} with {len(fit)} "
        f"training and {len(y_val)} validation images"
    )
    return row.choose(train.of(fit), task.train.labels[fit], x_val, y_val)


def _name(task: Task) -> str:
    return protocols.CHOICES[task.settings.parts.probe]


def _test(
    task: Task, row: Probe, trial: int, train: _Features, x_test: Rows, choice: Choice
) -> Trial:
    images = task.images(trial)
    found = row.predict(choice, train.of(images), task.train.labels[images], x_test)
    state, measured = None, None
    if found.logits is not None:
        measured = Calibration.of(found.logits, task.test.labels, choice.temperature)
    if found.head and task.keeps_networks:
        model = task.classifier(trial)
        with torch.no_grad():
            model.head.weight.copy_(found.head[0])
            model.head.bias.copy_(found.head[1])
        state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    return Trial(
        task.seed(trial),
        {_name(task): choice.value},
        choice.candidates,
        found.predictions.cpu(),
        measured,
        more=choice.more,
        model=state,
    )


def _logistic(task: Task, images: int, width: int) -> Probe:
    """Plan the memory of logistic regression. Print the plan if it is large.

    Args:
        task: task.
        images: number of training images.
        width: number of features per image.
    """
    penalties = len(probe.PENALTIES) if task.settings.chooses else 1
    size, device = Size(images, width, task.train.classes, penalties), solver_device(task.device)
    if device != task.device:
        name = torch.cuda.get_device_name(task.device)
        run_log.say(f"the probe runs on the CPU, because {name} is slow in float64")
    plan = make_plan(size, device)
    if plan.needs >= LARGE:
        run_log.say(f"probe: {size}: {plan}")

    def choose(x: Rows, y: Tensor, x_val: Rows, y_val: Tensor) -> Choice:
        found = probe.choose(x, y, x_val, y_val, task.train.classes, task.metric, plan=plan)
        candidates = [{"penalty": penalty, "value": value} for penalty, value in found.curve]
        more = {"at_the_edge": found.edge, "extended_decades": found.extended}
        chosen = found.probes.one([penalty for penalty, _ in found.curve].index(found.penalty))
        temperature = None
        if not task.selects_on_test:
            temperature = best_temperature(chosen.all_logits(x_val)[0].cpu(), y_val)
        return Choice(found.penalty, candidates, more, chosen, temperature)

    def predict(choice: Choice, x: Rows, y: Tensor, x_test: Rows) -> Outcome:
        found = probe.refit(x, y, task.train.classes, choice.value, choice.start, plan=plan)
        logits = found.all_logits(x_test)[0].cpu()
        return Outcome(logits.argmax(1), logits, (found.weights[0], found.bias[0]))

    return Probe(choose, predict)


def _nearest_neighbors(task: Task, images: int, width: int) -> Probe:
    """Vote on the device of the task."""
    classes, device = task.train.classes, task.device

    def choose(x: Rows, y: Tensor, x_val: Rows, y_val: Tensor) -> Choice:
        k, curve = knn.choose_neighbors(x, y, x_val, y_val, classes, task.metric, device=device)
        return Choice(k, [{"neighbors": k, "value": value} for k, value in curve])

    def predict(choice: Choice, x: Rows, y: Tensor, x_test: Rows) -> Outcome:
        return Outcome(knn.classify(x, y, x_test, choice.value, classes, device=device))

    return Probe(choose, predict)


PROBES = {"logistic": _logistic, "knn": _nearest_neighbors}
