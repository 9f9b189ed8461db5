"""Train a classifier, standard or adversarial -> checkpoint.pt, metrics.jsonl, result.json.

python -m classification.pretrain --data /data/imagenet --output output/pretrain/resnet50_l2_eps3
python -m classification.pretrain --dataset digits --arch resnet18 --output output/pretrain/digits
torchrun --nproc-per-node 8 -m classification.pretrain --data /data/imagenet --output ...

Exit codes: 0 finished, 2 a mistake of the user, 75 stopped by SIGTERM or Ctrl-C with all saved
(the same command with --resume goes on).
"""

import argparse
from functools import partial
from typing import TYPE_CHECKING

from classification.datasets.specs import locate
from classification.pretrain import options as pretrain_options

# torch, and what imports it, waits for `main`: --help is to come at once.
from robust_backbones.core import resources as clone
from robust_backbones.core.errors import UserError, user_errors

if TYPE_CHECKING:
    import torch

    from classification.datasets.split import Split
    from classification.models import Classifier
    from classification.training.trainer import Training


def main(argv: list[str] | None = None) -> None:
    """Parse, train, write. Exit codes as said above."""
    args = pretrain_options.parser(__doc__).parse_args(argv)
    with user_errors():
        locate(args.dataset, getattr(args, "data", None))  # what is wrong most often
        settings = pretrain_options.settings(args)
        from classification.training import launch

        with launch.processes(getattr(args, "device", None), args.deterministic) as device:
            work = partial(_train, args, settings, device)
            launch.once(args.output, settings, work, "Go on with --resume.")


def _train(args: argparse.Namespace, settings: dict, device: "torch.device") -> None:
    from classification.training import distributed

    started = (args.output / "checkpoint.pt").exists()
    if started and args.resume is None:
        raise UserError(
            f"{args.output} holds an unfinished run; pass --resume to go on with it, or choose "
            "another --output."
        )
    if not started and args.resume == "must" and distributed.rank() == 0:
        raise UserError(f"{args.output} holds no run to resume; leave --resume must out.")
    _training(args, settings, device).run()


def _training(args: argparse.Namespace, settings: dict, device: "torch.device") -> "Training":
    from classification.datasets.open import open_split
    from classification.pretrain.run import pretraining
    from classification.training.learner import Learner

    where = dict(
        root=getattr(args, "data", None),
        image_size=settings["image_size"],
        held_out=settings["held_out"],
    )
    train = open_split(args.dataset, "train", limit=settings["limit"], **where)
    tested = "val" if settings["held_out"] else "test"
    test = open_split(args.dataset, tested, limit=settings["test_limit"], **where)
    _check_batch(settings)
    learner = Learner(_model(settings, train, device), settings)
    return pretraining(
        learner,
        train,
        test,
        settings,
        _metadata(settings, train),
        args.output,
        args.workers,
        args.save_seconds,
    )


def _check_batch(settings: dict) -> None:
    from classification.training import distributed

    pieces = distributed.world() * settings["accumulate"]
    if settings["batch_size"] % pieces or settings["batch_size"] < 2 * pieces:
        raise UserError(
            f"--batch-size {settings['batch_size']} cannot be cut into {pieces} equal pieces of at "
            f"least 2 images ({distributed.world()} processes, --accumulate "
            f"{settings['accumulate']}); choose a multiple of {pieces}."
        )


def _model(settings: dict, source: "Split", device: "torch.device") -> "Classifier":
    """The classifier with the seed's initial weights."""
    import torch

    from classification.models import Classifier
    from classification.training import distributed

    with torch.random.fork_rng(devices=[]):  # torch initialises layers from its global generator
        torch.manual_seed(settings["seed"])
        model = Classifier(settings["arch"], source.classes, source.mean, source.std)
    # Suits the convolutions of CPUs and GPUs; benchmarks/adversarial_step.py times it.
    model = model.to(device).to(memory_format=torch.channels_last)
    return distributed.sync_batchnorm(model, device) if settings["sync_bn"] else model


def _metadata(settings: dict, source: "Split") -> dict:
    """What the weights' later users need to know; the format is in docs/formats.md."""
    names = (
        "arch",
        "dataset",
        "method",
        "constraint",
        "eps",
        "steps",
        "step_size",
        "random_start",
        "use_best",
        "epochs",
        "seed",
    )
    return {name: settings[name] for name in names} | {
        "classes": source.classes,
        "image_size": source.image_size,
        "mean": list(source.mean),
        "std": list(source.std),
        "code_version": clone.version(),
    }


if __name__ == "__main__":
    main()
