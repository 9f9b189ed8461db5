"""Pretrain a classifier: open the data, build the network, train, and write the result."""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from classification import metrics, progress
from classification.datasets.open import open_split
from classification.datasets.split import Split
from classification.models import Classifier
from classification.pretrain.settings import PretrainSettings
from classification.training import distributed, launch, overfitting
from classification.training.learner import Learner
from classification.training.settings import TrainSettings, evaluation_attack
from classification.training.trainer import LAST_GOOD, Training, identity
from robust_backbones import timm_networks
from robust_backbones.core import resources, results, run_log
from robust_backbones.core.eps import show_eps
from robust_backbones.core.errors import UserError
from robust_backbones.core.images import Decoding

MONITORED = 1000  # number of test images to attack after each epoch
METRICS = (  # metrics of the last epoch that the result contains
    "clean_top1",
    "clean_loss",
    "robust_top1",
    "robust_loss",
    "train_top1",
    "train_loss",
    "epoch",
)
METADATA = ("method", "constraint", "eps", "steps", "step_size", "random_start", "use_best")


def main(args: argparse.Namespace, settings: PretrainSettings) -> None:
    """Train with the parsed options, unless the output folder contains the finished run.

    Args:
        args: parsed options.
        settings: output of `options.make_settings` for `args`.
    """
    timm_networks.check_size(settings.arch, settings.image_size)
    with launch.processes(args.device, args.deterministic, args.precision) as device:
        work = partial(_train, args, settings, device)
        recorded, resume = settings.to_json(), "Continue with --resume."
        launch.once(args.output, recorded, settings.train, device, work, resume)


def _train(args: argparse.Namespace, settings: PretrainSettings, device: torch.device) -> None:
    started = (args.output / "checkpoint.pt").exists()
    if started and args.resume is None:
        raise UserError(
            f"{args.output} has an unfinished run. Add --resume to continue it, or choose another "
            "--output."
        )
    if not started and args.resume == "must" and distributed.rank() == 0:
        raise UserError(f"{args.output} has no run to resume. Omit --resume must.")
    open_part = partial(
        open_split,
        args.dataset,
        root=args.data,
        image_size=settings.image_size,
        held_out=settings.held_out,
        decoding=Decoding(args.image_range),
    )
    train = open_part("train", limit=settings.limit)
    test = open_part("val" if settings.held_out else "test", limit=settings.test_limit)
    _check_batch(settings.train)
    workers = launch.loading_workers(args.workers, device, train.most_workers(distributed.world()))
    rows = _introduction(settings, train, test)
    launch.announce(rows, device, workers, settings.train.precision, args.output)
    pretraining(
        Learner(_model(settings, train, device), settings.train),
        train,
        test,
        settings,
        _metadata(settings, train),
        args.output,
        workers,
        args.save_seconds,
    ).run()


def _introduction(settings: PretrainSettings, train: Split, test: Split) -> dict[str, str]:
    """Describe the run, its data and its weights in one line each."""
    attack, rates = settings.train.attack, settings.train
    against = f" {attack.constraint} eps {show_eps(attack.constraint, attack.eps)}"
    return {
        "training": f"{settings.arch}, {rates.method}{against if attack.eps else ''}, "
        f"{rates.epochs} epochs, batch size {rates.batch_size}, learning rate {rates.lr:.4g}",
        "data": f"{settings.dataset}: {len(train)} training images, {len(test)} {test.split} "
        f"images, {train.classes} classes, {settings.image_size} pixels",
        "weights": f"random, seed {rates.seed}",
    }


def _check_batch(train: TrainSettings) -> None:
    world = distributed.world()
    parts = world * train.accumulate
    if train.batch_size % parts or train.batch_size < 2 * parts:
        raise UserError(
            f"--batch-size {train.batch_size} cannot be split into {parts} equal parts of at least "
            f"2 images ({world} processes, --accumulate {train.accumulate}). Choose a multiple of "
            f"{parts}."
        )


def _model(settings: PretrainSettings, source: Split, device: torch.device) -> Classifier:
    """Build the classifier. The seed determines its initial weights."""
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(settings.train.seed)
        model = Classifier.build(
            settings.arch, source.classes, settings.statistics, settings.train.drop_path
        )
    # Convolutions are faster in this memory format; see benchmarks/adversarial_step.py.
    model = model.to(device).to(memory_format=torch.channels_last)
    return distributed.sync_batchnorm(model, device) if settings.sync_bn else model


def _metadata(settings: PretrainSettings, source: Split) -> dict:
    """Return the metadata that is saved with the weights; see docs/reference/formats.md."""
    recorded = settings.to_json()
    names = ("arch", "dataset", *METADATA, "epochs", "seed")
    scaled = {"image_range": settings.image_range} if settings.image_range else {}
    return (
        {name: recorded[name] for name in names}
        | scaled
        | {
            "classes": source.classes,
            "class_names": list(source.class_names),
            "image_size": source.image_size,
            "mean": list(settings.statistics.mean),
            "std": list(settings.statistics.std),
            "code_version": resources.version(),
        }
    )


def pretraining(
    learner: Learner,
    train: Split,
    test: Split,
    settings: PretrainSettings,
    metadata: dict,
    folder: Path,
    workers: int = 0,
    save_seconds: float = 600,
) -> Training:
    """Create a training run, which writes `result.json` at its end.

    Args:
        learner: model, optimizer and training settings.
        train: training images.
        test: images for the evaluation after each epoch and at the end.
        settings: all settings of the run.
        metadata, folder, workers, save_seconds: as for `Training`.
    """
    return Training(
        learner,
        train,
        settings.to_json(),
        metadata,
        folder,
        data=identity(train, test),
        examine=partial(_examine, test),
        finish=partial(_finish, test, settings),
        monitored=test.split,
        workers=workers,
        save_seconds=save_seconds,
    )


def _examine(test: Split, run: Training) -> dict:
    """Evaluate the current weights.

    Every method is evaluated on clean test images. Adversarial training is also evaluated on
    at most `MONITORED` test images under the training attack. The check for catastrophic
    overfitting attacks some training images.
    """
    attack = run.settings.attack
    clean = run.evaluate(test, None)
    found = {"clean_loss": clean.loss, "clean_top1": clean.top1}
    if attack.eps:
        attacked = run.evaluate(test, attack, MONITORED)
        found |= {"adversarial_loss": attacked.loss, "adversarial_top1": attacked.top1}
    if run.guarded:
        stronger = evaluation_attack(attack.constraint, attack.eps, overfitting.STEPS)
        found["guard_top1"] = run.evaluate(run.train, stronger, overfitting.IMAGES).top1
    return found


def _finish(test: Split, settings: PretrainSettings, run: Training) -> None:
    """Measure the robust accuracy and write the result, which marks the run as finished."""
    attack = settings.evaluation
    robust = run.evaluate(test, attack)
    if distributed.rank():
        return
    last = next(r for r in reversed(run.history) if "rolled_back" not in r)
    last |= {"robust_top1": robust.top1, "robust_loss": robust.loss}
    run.write_history()
    title = f"{settings.arch}, {settings.train.method}, {settings.dataset}"
    progress.draw_curves(run.folder / "curves.png", run.history, title, run.monitored)
    warnings = _warnings(last["clean_top1"], len(test), test.classes)
    for warning in warnings:
        print(f"warning: {warning['message']}", file=sys.stderr)
        run_log.note(f"warning: {warning['message']}")
    results.write(
        run.folder / "result.json",
        kind="pretrain",
        metrics={name: last[name] for name in METRICS},
        settings=run.recorded,
        weights_sha256=None,
        data=run.data,
        seed=settings.train.seed,
        seconds=run.elapsed(),
        device=run.learner.device,
        precision=settings.train.precision,
        processes=distributed.world(),
        warnings=warnings,
    )
    (run.folder / LAST_GOOD).unlink(missing_ok=True)
    run_log.say(
        f"clean {last['clean_top1']:.2f} %, robust {robust.top1:.2f} % ({attack.steps}-step PGD, "
        f"{attack.constraint} eps {attack.eps:g}), {progress.clock(run.elapsed())} -> {run.folder}"
    )


def _warnings(top1: float, images: int, classes: int) -> list[dict]:
    """Return a warning if the trained network is no better than random guesses."""
    if not metrics.at_chance(round(top1 * images / 100), images, classes):
        return []
    message = (
        f"clean accuracy is {top1:.2f} %, not above the chance level of {classes} classes "
        f"({100 / classes:.2f} %). The network has learned nothing. Likely causes, in this order: "
        "--lr is too high; too few --epochs; the radius --eps is too large; wrong labels."
    )
    return [{"check": metrics.AT_CHANCE, "message": message}]
