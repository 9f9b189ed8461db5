"""Fixed features that are stored, and a probe on them: logistic regression or k-NN."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from classification import progress
from classification.datasets.split import ImageSplit
from classification.models import Classifier
from classification.transfer import features, knn, probe, protocols
from classification.transfer.task import Task, Trial
from robust_backbones.core.signals import Stopped


@dataclass(frozen=True)
class Probe:
    """One kind of probe.

    Attributes:
        choose: `(task, x, y, x_judged, y_judged)` -> the chosen value, the candidates as `Trial`
            has them, what else there is to know, and anything that helps `predict`.
        predict: `(task, value, x, y, x_test, help)` -> predictions, and the last layer's weight
            and bias or None.
    """

    choose: Callable
    predict: Callable


def run(task: Task) -> list[Trial]:
    """All trials. The test images are looked at after all choices are made.

    Unless they are to decide: then they are what is chosen on.
    """
    row = PROBES[task.settings["probe"]]
    needed = torch.cat([task.images(trial) for trial in task.trials]).unique()
    features_of = partial(_features, task, task.classifier(0))
    x = features_of(task.train.subset(needed))
    chosen = []
    for trial in task.trials:
        if task.signals.requested:
            raise Stopped
        chosen.append(_choose(task, row, trial, needed, x, features_of))
    x_test = features_of(task.test)
    return [
        _finish(task, row, trial, needed, x, x_test, *found)
        for trial, found in zip(task.trials, chosen, strict=True)
    ]


def _features(task: Task, model: Classifier, source: ImageSplit) -> Tensor:
    line = progress.ProgressLine(len(source))
    found = features.extract(
        model,
        source,
        precision=task.settings["precision"],
        workers=task.workers,
        signals=task.signals,
        progress=line.show,
    )
    line.clear()
    return torch.from_numpy(found).to(task.device)


def _choose(
    task: Task,
    row: Probe,
    trial: int,
    needed: Tensor,
    x: Tensor,
    features_of: Callable[[ImageSplit], Tensor],
) -> tuple:
    """The chosen value, the candidates, notes and help; what is given is not chosen."""
    name = protocols.CHOICES[task.settings["probe"]]
    if not task.chooses:
        return task.settings[name], [], {}, None
    if task.settings["selection"] == "test":
        fit, x_judged, y_judged = task.images(trial), features_of(task.test), task.test.labels
    else:
        fit, judged = task.parts(trial)
        x_judged, y_judged = x[_places(needed, judged)], task.train.labels[judged]
    print(
        f"trial {trial + 1} of {len(task.trials)}: choosing the {name} with {len(fit)} "
        f"images on {len(y_judged)}",
        flush=True,
    )
    return row.choose(task, x[_places(needed, fit)], task.train.labels[fit], x_judged, y_judged)


def _finish(
    task: Task,
    row: Probe,
    trial: int,
    needed: Tensor,
    x: Tensor,
    x_test: Tensor,
    value: Any,
    candidates: list[dict],
    more: dict,
    help: Any,
) -> Trial:
    every = task.images(trial)
    predictions, head = row.predict(
        task, value, x[_places(needed, every)], task.train.labels[every], x_test, help
    )
    model = None
    if head and task.settings["save_classifier"]:
        model = task.classifier(trial)
        with torch.no_grad():
            model.head.weight.copy_(head[0])
            model.head.bias.copy_(head[1])
        model = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    chosen = {protocols.CHOICES[task.settings["probe"]]: value}
    return Trial(task.seed(trial), chosen, candidates, predictions.cpu(), None, more, model)


def _places(needed: Tensor, numbers: Tensor) -> Tensor:
    """Where in `needed`, which is sorted, those numbers are."""
    return torch.searchsorted(needed, numbers)


def _choose_penalty(task: Task, x: Tensor, y: Tensor, x_judged: Tensor, y_judged: Tensor) -> tuple:
    found = probe.choose(x, y, x_judged, y_judged, task.train.classes, task.metric)
    candidates = [{"penalty": penalty, "value": value} for penalty, value in found.curve]
    more = {"at_the_edge": found.edge, "extended_decades": found.extended}
    return found.penalty, candidates, more, found.probes


def _fit(task: Task, penalty: float, x: Tensor, y: Tensor, x_test: Tensor, start: Any) -> tuple:
    found = probe.refit(x, y, task.train.classes, penalty, start)
    return found.predict(x_test)[0], (found.weights[0], found.bias[0])


def _choose_neighbours(
    task: Task, x: Tensor, y: Tensor, x_judged: Tensor, y_judged: Tensor
) -> tuple:
    k, curve = knn.choose_neighbours(x, y, x_judged, y_judged, task.train.classes, task.metric)
    return k, [{"neighbours": one, "value": value} for one, value in curve], {}, None


def _vote(task: Task, k: int, x: Tensor, y: Tensor, x_test: Tensor, start: Any) -> tuple:
    return knn.nearest(x, y, x_test, k, task.train.classes), None


PROBES = {"logistic": Probe(_choose_penalty, _fit), "nearest": Probe(_choose_neighbours, _vote)}
