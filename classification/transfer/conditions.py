"""Test the networks of all trials under attack, on corrupted images, and on further test images."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from classification import metrics
from classification.datasets import loader
from classification.datasets.corrupted import CorruptedSplit
from classification.datasets.split import ImageSplit, balanced
from classification.models import Classifier
from classification.progress import ProgressLine
from classification.robustness_eval.checks import find_warnings
from classification.robustness_eval.execute import attack_images
from classification.robustness_eval.plan import (
    AUTOATTACK,
    PGD,
    UNBOUNDED,
    Attack,
    AttackResult,
    autoattack_parts,
    make_plan,
)
from classification.shared_batches import Journals, Share, run_batches
from classification.training import distributed
from classification.training.evaluate import collect_logits
from classification.training.trainer import EVAL_BATCH
from classification.transfer.task import Calibration, Task, Trial, summarize_calibration
from robust_backbones import arithmetic
from robust_backbones.core import run_log
from robust_backbones.core.eps import show_eps
from robust_backbones.core.precision import DEFAULT
from robust_backbones.corruptions import SEVERITIES

FOLDER = "conditions"
CAUSES = ("too few training images, or features that do not separate the classes",)


@dataclass(frozen=True)
class Condition:
    """Outcome of one test of all trials.

    Attributes:
        name: name that is unique in the run.
        kind: `attack`, `corruptions` or `shift`.
        labels: label of each image, `(N,)` int64.
        indices: index of each image in its split, `(N,)` int64.
        right: whether each version of each image is classified correctly, `(trials, versions, N)`
            bool.
        facts: further entries of the result, in plain JSON types.
        versions: kind and severity of each corrupted version.
    """

    name: str
    kind: str
    labels: Tensor
    indices: Tensor
    right: Tensor
    facts: dict = field(default_factory=dict)
    versions: tuple[tuple[str, int], ...] = ()

    @property
    def file(self) -> str:
        """Path of the table in the folder of the run."""
        name = re.sub(r"[^\w.+-]+", "_", self.name.replace("/", "-")).lower()
        return f"{FOLDER}/{name}.csv"

    def table(self) -> Iterator[tuple]:
        """Yield the rows of the table: the number of correct versions in each trial."""
        yield "index", "label", *(f"right{k}" for k in range(len(self.right)))
        columns = (self.indices, self.labels, *self.right.sum(1))
        yield from zip(*(column.tolist() for column in columns), strict=True)

    def summary(self, metric: str) -> dict:
        """Return the entry of result.json; docs/reference/formats.md describes it.

        Args:
            metric: key of `metrics.METRICS`.
        """
        shares = self.right.double().mean(1)
        trials = [metrics.mean_share(row, self.labels, metric) for row in shares]
        found = {
            "name": self.name,
            "kind": self.kind,
            "images": len(self.labels),
            "accuracy": fmean(trials),
            **spread(trials),
            "interval": list(metrics.share_interval(shares.mean(0), self.labels, metric)),
            "trials": trials,
            "versions": self.right.shape[1],
            "file": self.file,
        }
        by_corruption: dict[str, list[float]] = {}
        for (kind, _), right in zip(self.versions, self.right.double().mean(0), strict=False):
            accuracy = metrics.mean_share(right, self.labels, metric)
            by_corruption.setdefault(kind, []).append(accuracy)
        return found | ({"by_corruption": by_corruption} if by_corruption else {}) | self.facts


def spread(values: list[float]) -> dict:
    """Compute standard deviation (None for one value), minimum and maximum."""
    sd = stdev(values) if len(values) > 1 else None
    return {"sd": sd, "min": min(values), "max": max(values)}


@dataclass(frozen=True)
class Networks:
    """Networks of all trials, in eval mode.

    Attributes:
        models: network of each trial.
        shared: whether the networks differ in the last layer only.
        precision: precision of the features, a key of `core.precision.PRECISIONS`.
    """

    models: list[Classifier]
    shared: bool
    precision: str

    def logits(self, x: Tensor) -> Tensor:
        """Compute logits `(trials, n, K)` of images `(n, 3, H, W)`, shared features only once."""
        x = x.to(memory_format=torch.channels_last)
        if not self.shared:
            return torch.stack([model(x) for model in self.models])
        dtype = arithmetic.autocast_dtype(self.precision)
        with (
            torch.autocast(x.device.type, dtype, enabled=dtype is not None),
            arithmetic.tf32(self.precision),
        ):
            features = self.models[0].features(x)
        return torch.stack([model.head(features.float()) for model in self.models])


def measure(task: Task, trials: list[Trial]) -> tuple[list[Condition], list[dict]]:
    """Run all further tests, in all processes.

    Args:
        task: network, data and settings of the run.
        trials: outcomes of the trials, with their networks.

    Returns:
        The outcomes, and warnings about the attacks, each as `{"check", "message"}`.

    Raises:
        UserError: an image is unreadable.
        Stopped: a process received a stop signal.
    """
    if not task.settings.conditions.requested:
        return [], []
    networks = _networks(task, trials)
    attacks, warnings = _attacks(task, networks)
    shifts = [_shift(task, networks, trials, images) for images in task.shifts]
    return [*attacks, *_corruptions(task, networks), *shifts], warnings


def _networks(task: Task, trials: list[Trial]) -> Networks:
    models = []
    for k, trial in enumerate(trials):
        model = task.classifier(k).eval()
        assert trial.model is not None
        model.load_state_dict(trial.model)
        models.append(model)
    settings = task.settings
    shared = settings.mode == "fixed-feature" and settings.parts.batchnorm == "frozen"
    # The features of the clean test images have the same precision.
    precision = settings.precision if settings.parts.probe == "logistic" else DEFAULT
    return Networks(models, shared, precision)


def _say(text: str) -> None:
    if distributed.rank() == 0:
        run_log.say(text)


def _attacks(task: Task, networks: Networks) -> tuple[list[Condition], list[dict]]:
    """Run PGD on all test images, then AutoAttack on a subset of them."""
    settings, everything = task.settings.conditions, torch.arange(len(task.test))
    tests: list[tuple[str, Tensor, list[int], tuple[str, ...]]] = [
        (PGD, everything, [settings.steps], ())
    ]
    if settings.autoattack:
        some = balanced(task.test.labels, settings.autoattack)
        tests.append((AUTOATTACK, some, [], autoattack_parts(task.train.classes)))
    found, warnings = [], {}
    for family, indices, steps, parts in tests:
        results: dict[tuple[str, float], list[AttackResult]] = {}
        for constraint in dict.fromkeys(norm for norm, _ in settings.attacks):
            radii = [eps for norm, eps in settings.attacks if norm == constraint]
            shape = (3, task.test.image_size, task.test.image_size)
            plan = make_plan(constraint, radii, steps, settings.restarts, parts, shape)
            for k, model in enumerate(networks.models):
                name = f"trial{k}_{constraint}_{family}"
                images, own = task.test.subset(indices), plan
                if k or family == AUTOATTACK:  # one check for masked gradients is enough
                    own = [attack for attack in plan if attack.family != UNBOUNDED]
                outcome = _attack(task, model, images, own, name, k)
                for doubt in find_warnings(outcome, task.train.classes, CAUSES):
                    message = f"{constraint}, trial {k + 1}: {doubt['message']}"
                    warnings[message] = doubt | {"message": message}
                last = {r.attack.eps: r for r in outcome if r.attack.family == family}
                for eps in radii:
                    results.setdefault((constraint, eps), []).append(last[eps])
        for each in settings.attacks:
            found.append(_attacked(task, indices, results[each]))
    return found, [*warnings.values()]


def _attack(
    task: Task, model: Classifier, images: ImageSplit, plan: list[Attack], name: str, trial: int
) -> list[AttackResult]:
    prefix = f"trial {trial + 1} of {len(task.trials)}, {plan[0].constraint} "
    return attack_images(
        model,
        images,
        plan,
        _journals(task, name),
        seed=task.settings.seed,
        batch_size=task.settings.conditions.attack_batch_size,
        workers=task.workers,
        say=lambda text: _say(prefix + text),
        stop=task.signals,
        prefix=prefix,
    )


def _attacked(task: Task, indices: Tensor, results: list[AttackResult]) -> Condition:
    """Return the outcome of one attack on the networks of all trials."""
    attack = results[0].attack
    title = {PGD: attack.title.upper().replace("X", "x"), AUTOATTACK: "AutoAttack"}[attack.family]
    names = ("family", "constraint", "eps", "steps", "restarts")
    return Condition(
        f"{attack.constraint} {show_eps(attack.constraint, attack.eps)}, {title}",
        "attack",
        task.test.labels[indices],
        indices,
        torch.tensor([result.right for result in results])[:, None],
        {"attack": {name: getattr(attack, name) for name in names}},
    )


def _corruptions(task: Task, networks: Networks) -> Iterator[Condition]:
    """Test all networks on all corrupted versions of the test images."""
    kinds, images = task.settings.conditions.corruptions, len(task.test)
    if not kinds:
        return
    versions = tuple((kind, severity) for kind in kinds for severity in SEVERITIES)

    def work(share: Share) -> None:
        source = CorruptedSplit.of(task.test, versions, share.images)
        batches = loader.load_batches(source, EVAL_BATCH, workers=task.workers, device=task.device)
        for batch, (x, y) in zip(share.batches, batches, strict=True):
            share.progress(0, "corruptions")
            with torch.no_grad():
                predictions = networks.logits(x.to(task.device, non_blocking=True)).argmax(2)
            right = (predictions == y.to(predictions)).int().tolist()
            share.add({"batch": batch, "right": right})
            share.progress(len(y), f"corruptions, {versions[batch * EVAL_BATCH // images][0]}")

    records = run_batches(
        _journals(task, "corruptions"),
        len(versions) * images,
        EVAL_BATCH,
        _missing,
        work,
        device=task.device,
        say=lambda text: _say(f"corruptions: {text}"),
        stop=task.signals,
    )
    by_batch = {record["batch"]: record["right"] for record in records}
    right = torch.cat([torch.tensor(by_batch[batch]) for batch in sorted(by_batch)], 1).bool()
    right = right.view(len(networks.models), len(versions), images)
    yield Condition(
        "corruptions",
        "corruptions",
        task.test.labels,
        torch.arange(images),
        right,
        versions=versions,
    )


def _missing(records: list[dict], batches: int) -> list[int]:
    known = {record["batch"] for record in records}
    return [batch for batch in range(batches) if batch not in known]


def _shift(task: Task, networks: Networks, trials: list[Trial], images: ImageSplit) -> Condition:
    """Test on further images. The networks choose among the classes that have images."""
    rank, world = distributed.rank(), distributed.world()
    line = ProgressLine(len(images))
    batches = loader.load_batches(
        images, EVAL_BATCH, rank=rank, world=world, workers=task.workers, device=task.device
    )
    shown = _shown(batches, lambda count: line.show(count * world, images.split), rank == 0)
    logits = collect_logits(networks.logits, shown, task.device, task.signals)
    line.clear()
    absent = torch.bincount(images.labels, minlength=images.classes) == 0
    logits[..., absent] = -torch.inf
    calibrations = [
        Calibration.of(row, images.labels, trial.calibration.temperature)
        for row, trial in zip(logits, trials, strict=True)
        if trial.calibration
    ]
    facts: dict[str, Any] = {"data": task.shift_data[images.split]}
    facts["classes"] = int((~absent).sum())
    facts["calibration"] = summarize_calibration(calibrations)
    right = (logits.argmax(2) == images.labels)[:, None]
    indices = torch.arange(len(images))
    return Condition(images.split, "shift", images.labels, indices, right, facts)


def _shown(
    batches: loader.Pairs, show: Callable[[int], None], first: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in batches:
        yield x, y
        if first:
            show(len(y))


def _journals(task: Task, name: str) -> Journals:
    return Journals(task.folder / FOLDER, name, task.recorded)


def remove_journals(task: Task) -> None:
    """Remove the journals of a finished run."""
    _journals(task, "*").remove()
