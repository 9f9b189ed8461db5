"""Train a classifier, standard or adversarial -> checkpoint.pt, metrics.jsonl, result.json.

python -m classification.pretrain --constraint l2 --eps 1.0 --output output/pretrain/digits_l2
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

# torch, and what imports it, waits for `main`: --help is to come at once.
from classification import options, runs
from classification.datasets import DATASETS
from robust_backbones import __version__, results
from robust_backbones.errors import UserError, user_errors
from robust_backbones.files import atomic
from robust_backbones.zoo import ARCHS

# Radius at which a standard model's robust accuracy is measured, where --eval-eps does not say.
STANDARD_EVAL_EPS = {"l2": 1.0, "linf": 8 / 255}
EVAL_BATCH = 200  # images at once
MAX_SHIFT = 2  # training augmentation, pixels


def parser() -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    p = argparse.ArgumentParser(
        "python -m classification.pretrain", description=__doc__.split("\n")[0],
        formatter_class=partial(formatter, width=100))  # fmt: skip
    add = p.add_argument
    add("--arch", choices=tuple(ARCHS), default="resnet18", help="network")
    add("--dataset", choices=tuple(DATASETS), default="digits", help="what to train on")
    add("--constraint", choices=tuple(STANDARD_EVAL_EPS), default="l2", help="norm of the ball")
    add("--eps", type=options.radius, default=1.0,
        help="radius of the training attack, pixels in [0, 1] (L2: whole image); 4/255 is "
        "understood; 0: standard training")  # fmt: skip
    add("--steps", type=options.count, default=3, help="steps of the training attack, a count")
    add("--step-size", type=options.positive, default=argparse.SUPPRESS,
        help="length of one such step, unit of --eps (default: 2*eps/3)")  # fmt: skip
    add("--epochs", type=options.count, default=5, help="passes over the training images, a count")
    add("--batch-size", type=options.batch, default=64, help="images per step, at least 2")
    add("--lr", type=options.positive, default=0.03, help="highest learning rate, per step")
    add("--momentum", type=options.fraction, default=0.9, help="Nesterov momentum, in (0, 1)")
    add(
        "--weight-decay",
        type=options.radius,
        default=5e-4,
        help="L2 penalty on the weights, a factor",
    )
    add(
        "--seed",
        type=options.seed,
        default=0,
        help="of weights, order, shifts and attack, a number",
    )
    add("--device", default=argparse.SUPPRESS,
        help="torch device (default: cuda if there is one, else cpu)")  # fmt: skip
    add("--output", type=Path, default=argparse.SUPPRESS, required=True,
        help="folder for this run, a path (no default)")  # fmt: skip
    add("--resume", action="store_true",
        help="go on with an unfinished run in --output, if there is one")  # fmt: skip
    add("--eval-eps", type=options.positive, default=argparse.SUPPRESS,
        help="radius of the test attack, unit of --eps (default: --eps; for a standard model 1.0 "
        "for l2, 8/255 for linf)")  # fmt: skip
    add("--eval-steps", type=options.count, default=10,
        help="steps of the test attack, a count; each is 2.5*radius/steps long")  # fmt: skip
    return p


def main(argv=None) -> None:
    """Parse, train, write. Exit code 2 and one line for user mistakes."""
    args = parser().parse_args(argv)
    with user_errors():
        settings = _settings(args)
        if not runs.finished(args.output, settings):
            _run(args, settings)


def _settings(args) -> dict:
    """All that decides the numbers of the run, in plain JSON types."""
    options.check_radius("--eps", args.constraint, args.eps)
    step_size = getattr(args, "step_size", 2 * args.eps / 3)
    eval_eps = getattr(args, "eval_eps", args.eps or STANDARD_EVAL_EPS[args.constraint])
    return {
        "arch": args.arch,
        "dataset": args.dataset,
        "constraint": args.constraint,
        "eps": args.eps,
        "steps": args.steps,
        "step_size": step_size,
        "random_start": False,
        "use_best": True,  # as the library that made the published models does
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "optimizer": "sgd-nesterov",
        "lr": args.lr,
        "lr_schedule": "one-cycle",
        "momentum": args.momentum,
        "weight_decay": args.weight_decay,
        "augmentation": f"shift {MAX_SHIFT}",
        "seed": args.seed,
        "evaluation": {
            "attack": "pgd",
            "constraint": args.constraint,
            "eps": eval_eps,
            "steps": args.eval_steps,
            "step_size": 2.5 * eval_eps / args.eval_steps,
            # A confident model's gradient can vanish at the clean image; elsewhere it need not.
            "random_start": True,
            "use_best": True,
        },
    }


def _run(args, settings: dict) -> None:
    from classification import datasets, engine

    path = args.output / "checkpoint.pt"
    if path.exists() and not args.resume:
        raise UserError(
            f"{args.output} holds an unfinished run; pass --resume to go on with it, or choose "
            "another --output."
        )
    device = engine.choose_device(getattr(args, "device", None))
    train, test = (datasets.load(args.dataset, split) for split in ("train", "test"))
    model, optimizer = _model(settings, device)
    done, history = 0, []
    if path.exists():
        done, history = engine.load_checkpoint(
            path, model=model, optimizer=optimizer, settings=settings
        )
        print(f"resuming after epoch {done} of {args.epochs}", flush=True)
    _write_history(args.output, history)  # a folder that cannot be written to is told of now
    for epoch in range(done, args.epochs):
        record = _epoch(epoch, model, optimizer, train, test, settings)
        history.append(record)
        engine.save_checkpoint(
            path, model=model, optimizer=optimizer, epoch=epoch + 1, history=history,
            metadata=_metadata(settings), settings=settings)  # fmt: skip
        _write_history(args.output, history)
        print(
            f"epoch {epoch + 1}/{args.epochs}: loss {record['train_loss']:.3f}, training accuracy "
            f"{record['train_top1']:.1f} %, clean test accuracy {record['clean_top1']:.1f} %, "
            f"{record['seconds']:.1f} s",
            flush=True,
        )
    _finish(args.output, model, train, test, history, settings, device)


def _finish(output: Path, model, train, test, history: list[dict], settings, device) -> None:
    """Measure the robust accuracy and write the result, which marks the run as finished."""
    import torch

    from classification import datasets, engine

    start = time.perf_counter()
    attack = settings["evaluation"]
    generator = torch.Generator().manual_seed(settings["seed"])
    robust = engine.evaluate(model, *test, EVAL_BATCH, _adversary(attack, generator))
    last = history[-1] | {"robust_top1": robust}
    _write_history(output, [*history[:-1], last])
    seconds = sum(record["seconds"] for record in history) + time.perf_counter() - start
    metrics = {key: last[key] for key in ("clean_top1", "robust_top1", "train_top1", "train_loss")}
    data = {
        split: {"name": settings["dataset"], "images": len(y),
                "fingerprint": datasets.fingerprint(x, y)}
        for split, (x, y) in {"train": train, "test": test}.items()
    }  # fmt: skip
    results.write(
        output / "result.json", kind="pretrain", metrics=metrics,
        settings=settings | {"device": str(device)}, weights_sha256=None, data=data,
        seed=settings["seed"], seconds=seconds)  # fmt: skip
    print(
        f"clean {last['clean_top1']:.2f} %, robust {robust:.2f} % ({attack['steps']}-step PGD, "
        f"{attack['constraint']} eps {attack['eps']:g}), {seconds:.0f} s -> {output}"
    )


def _model(settings: dict, device):
    """The classifier with the seed's initial weights, and its optimizer."""
    import torch

    from classification.models import Classifier

    row = DATASETS[settings["dataset"]]
    with torch.random.fork_rng(devices=[]):  # torch initialises layers from its global generator
        torch.manual_seed(settings["seed"])
        model = Classifier(settings["arch"], row.classes, row.mean, row.std)
    # Suits the convolutions of CPUs and GPUs; benchmarks/adversarial_step.py times it.
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), settings["lr"], momentum=settings["momentum"],
        weight_decay=settings["weight_decay"], nesterov=True)  # fmt: skip
    return model, optimizer


def _adversary(attack: dict, generator=None):
    """PGD bound to the `attack`'s parameters; None where eps is 0."""
    from classification.attacks import pgd

    if attack["eps"] == 0:
        return None
    names = ("constraint", "eps", "steps", "step_size", "random_start", "use_best")
    return partial(pgd, **{name: attack[name] for name in names}, generator=generator)


def _epoch(epoch: int, model, optimizer, train, test, settings: dict) -> dict:
    """Train for one epoch and test on clean images; what `metrics.jsonl` says about it."""
    from classification import engine
    from classification.transforms import random_shift

    start = time.perf_counter()
    generator = engine.epoch_generator(settings["seed"], epoch)
    augment = partial(random_shift, pad=MAX_SHIFT, generator=generator)
    batches = engine.train_batches(*train, settings["batch_size"], generator, augment)
    steps = len(train[1]) // settings["batch_size"]
    total = steps * settings["epochs"]
    trained = engine.train_one_epoch(
        model,
        batches,
        optimizer,
        adversary=_adversary(settings),
        lr=lambda step: engine.one_cycle(epoch * steps + step, total, settings["lr"]),
        progress=engine.progress_line(epoch, steps * settings["batch_size"], settings["epochs"]),
    )
    clean = engine.evaluate(model, *test, EVAL_BATCH)
    return {
        "epoch": epoch + 1,
        "train_loss": trained["loss"],
        "train_top1": trained["top1"],
        "clean_top1": clean,
        "lr": trained["lr"],
        "seconds": round(time.perf_counter() - start, 2),
    }


def _metadata(settings: dict) -> dict:
    """What the weights' later users need to know; the format is in docs/formats.md."""
    names = ("arch", "dataset", "constraint", "eps", "steps", "step_size", "random_start",
             "use_best", "epochs", "seed")  # fmt: skip
    row = DATASETS[settings["dataset"]]
    return {name: settings[name] for name in names} | {
        "classes": row.classes,
        "image_size": row.image_size,
        "mean": list(row.mean),
        "std": list(row.std),
        "code_version": __version__,
    }


def _write_history(output: Path, history: list[dict]) -> None:
    with atomic(output / "metrics.jsonl") as temporary:
        lines = (json.dumps(record) + "\n" for record in history)
        temporary.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
