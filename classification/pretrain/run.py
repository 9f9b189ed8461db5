"""Pretraining: what `training` runs, tested after each epoch, and a result at the end."""

from functools import partial
from pathlib import Path

from classification import progress
from classification.datasets.split import Split
from classification.training import distributed, overfitting
from classification.training.learner import Learner
from classification.training.trainer import LAST_GOOD, Training, identity
from robust_backbones.core import results

MONITORED = 1000  # test images that are attacked after each epoch


def pretraining(
    learner: Learner,
    train: Split,
    test: Split,
    settings: dict,
    metadata: dict,
    folder: Path,
    workers: int = 0,
    save_seconds: float = 600,
) -> Training:
    """A run from nothing to `result.json`; the arguments are `Training`'s.

    Args:
        test: the images that each epoch and the result are measured on.
    """
    return Training(
        learner,
        train,
        settings,
        metadata,
        folder,
        data=identity(train, test),
        examine=partial(examine, test),
        finish=partial(_finish, test),
        monitored=test.split,
        workers=workers,
        save_seconds=save_seconds,
    )


def examine(test: Split, run: Training) -> dict:
    """Numbers of the present weights: the clean test images; if they are trained against, the
    training attack on some test images, and the guard's attack on some training images."""
    settings = run.settings
    clean = run.evaluate(test, None)
    found = {"clean_loss": clean.loss, "clean_top1": clean.top1}
    if settings["eps"]:
        attacked = run.evaluate(test, settings, MONITORED)
        found |= {"adversarial_loss": attacked.loss, "adversarial_top1": attacked.top1}
    if run.learner.method.guarded:
        guarded = run.evaluate(run.train, overfitting.attack(settings), overfitting.IMAGES)
        found["guard_top1"] = guarded.top1
    return found


def _finish(test: Split, run: Training) -> None:
    """Measure the robust accuracy and write the result, which marks the run as finished."""
    settings = run.settings
    attack = settings["evaluation"]
    robust = run.evaluate(test, attack)
    if distributed.rank():
        return
    last = next(r for r in reversed(run.history) if "rolled_back" not in r)
    last |= {"robust_top1": robust.top1, "robust_loss": robust.loss}
    run.show_history()
    title = f"{settings['arch']}, {settings['method']}, {settings['dataset']}"
    progress.draw_curves(run.folder / "curves.png", run.history, title, run.monitored)
    names = (
        "clean_top1",
        "clean_loss",
        "robust_top1",
        "robust_loss",
        "train_top1",
        "train_loss",
        "epoch",
    )
    results.write(
        run.folder / "result.json",
        kind="pretrain",
        metrics={name: last[name] for name in names},
        settings=settings,
        weights_sha256=None,
        data=run.data,
        seed=settings["seed"],
        seconds=run.elapsed(),
        processes=distributed.world(),
    )
    (run.folder / LAST_GOOD).unlink(missing_ok=True)
    print(
        f"clean {last['clean_top1']:.2f} %, robust {robust.top1:.2f} % ({attack['steps']}"
        f"-step PGD, {attack['constraint']} eps {attack['eps']:g}), "
        f"{progress.clock(run.elapsed())} -> {run.folder}"
    )
