"""Measure how well a network transfers to a task -> result.json, per_class.csv, confusion.csv.

python -m classification.transfer --weights robust://resnet50_l2_eps3 --dataset aircraft \\
    --data /data/fgvc-aircraft-2013b --mode fixed-feature --trials 3
python -m classification.transfer --weights output/pretrain/digits/checkpoint.pt --dataset faces
torchrun --nproc-per-node 8 -m classification.transfer --mode full-network --weights ...

Exit codes: 0 finished, 2 a mistake of the user, 75 stopped by SIGTERM or Ctrl-C with all saved
(the same command goes on).
"""

import argparse
import dataclasses
import hashlib
import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from classification import options
from classification.transfer import options as transfer_options

# torch, and what imports it, waits for `main`: --help is to come at once.
from robust_backbones.core.errors import UserError, user_errors

if TYPE_CHECKING:
    import torch

    from classification.datasets.split import ImageSplit
    from classification.transfer.task import Task
    from robust_backbones.checkpoint.io import Checkpoint

AGAIN = "Give the same command to go on."


def main(argv: list[str] | None = None) -> None:
    """Parse, measure, write. Exit codes as said above."""
    args = transfer_options.parser(__doc__).parse_args(argv)
    with user_errors():
        _run(args)


def _run(args: argparse.Namespace) -> None:
    from robust_backbones import weights

    path = weights.resolve(args.weights)
    from classification.training import launch
    from robust_backbones.checkpoint.io import read_checkpoint

    found = read_checkpoint(path)
    known = {
        "arch": found.arch,
        "image_size": found.metadata.get("image_size"),
        "weights_sha256": found.sha256,
    }
    settings = transfer_options.settings(args, known)
    with launch.processes(getattr(args, "device", None), args.deterministic) as device:
        task = _task(args, settings, found, device)
        launch.once(task.folder, task.settings, partial(_work, args, task), AGAIN)


def _task(
    args: argparse.Namespace, settings: dict, found: "Checkpoint", device: "torch.device"
) -> "Task":
    """The data opened, and all checked that can be."""
    from classification.training import distributed
    from classification.training.trainer import identity
    from classification.transfer.task import Task

    if distributed.world() > 1 and settings["probe"] != "sgd":
        raise UserError(
            f"--probe {settings['probe']} needs one process; start it without torchrun."
        )
    train, test = (_open(args, settings, split) for split in ("train", "test"))
    data = identity(train, test)
    settings = settings | {"data": {name: part["fingerprint"] for name, part in data.items()}}
    folder = getattr(args, "output", None) or _folder(args, settings)
    task = Task(found, train, test, settings, data, folder, device, args.workers, args.save_seconds)
    task.check()
    return task


def _open(args: argparse.Namespace, settings: dict, split: str) -> "ImageSplit":
    from classification.datasets.open import open_images

    limit = settings["limit" if split == "train" else "test_limit"]
    source = open_images(
        args.dataset,
        split,
        getattr(args, "data", None),
        image_size=settings["image_size"],
        limit=limit,
    )
    return dataclasses.replace(source, downscale=settings["downscale"], decode=settings["decode"])


def _folder(args: argparse.Namespace, settings: dict) -> Path:
    """One per settings, so that other settings never meet a finished run."""
    text = json.dumps(settings, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    parts = (args.dataset, args.mode, args.protocol, options.label(args.weights), digest)
    return Path("output", "transfer", "-".join(parts))


def _work(args: argparse.Namespace, task: "Task") -> None:
    from classification.training import distributed
    from classification.transfer import finetune, fixed_feature
    from classification.transfer import result as transfer_result

    began = time.perf_counter()
    with task.signals.watch():
        how = finetune if task.settings["probe"] == "sgd" else fixed_feature
        trials = how.run(task)
        if distributed.rank() == 0:
            seconds = time.perf_counter() - began
            print(
                transfer_result.write(task, trials, {"weights": args.weights}, seconds),
                f"-> {task.folder}",
                flush=True,
            )
            finetune.tidy(task)


if __name__ == "__main__":
    main()
