#!/usr/bin/env python
"""Train or evaluate a detector on a robust backbone.

tools/train_net.py --config configs/coco_mask_rcnn_robust_eps3.yaml --num-gpus 8

Exit codes: 0 finished, 2 a mistake of the user, 75 stopped by a signal (--resume goes on).
"""

import argparse
import multiprocessing
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone works uninstalled

from robust_backbones.core import resources as clone
from robust_backbones.core.cli import Parser
from robust_backbones.core.errors import user_errors
from robust_backbones.core.signals import EXIT_RESUMABLE, Stopped

if __name__ == "__mp_main__":  # one of several processes: before Detectron2 is unpickled in it
    import robust_backbones.detection  # noqa: F401


def parse(argv=None) -> argparse.Namespace:
    """The command line, with Detectron2's names where it has one."""
    parser = Parser(description=__doc__)

    add = parser.add_argument
    add(
        "--config",
        "--config-file",
        dest="config",
        required=True,
        metavar="FILE",
        help="YAML file, such as those in configs/",
    )
    for split in ("train", "test"):
        add(
            f"--dataset-{split}",
            action="append",
            default=[],
            metavar="NAME=DATA",
            help=f"{split} on your own data, NAME=coco:IMAGES:ANNOTATIONS.json or "
            "NAME=voc:ROOT:SPLIT, or on a registered data set, NAME; may be repeated",
        )
    add(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in OUTPUT_DIR, if there is one",
    )
    add(
        "--restart-schedule",
        action="store_true",
        help="with --resume: go on by the learning rates and steps given now, not by those that "
        "the run began with",
    )
    add(
        "--eval-only",
        action="store_true",
        help="evaluate MODEL.WEIGHTS (or, with --resume, the last checkpoint); do not train",
    )
    add(
        "--num-gpus",
        type=int,
        default=1,
        metavar="N",
        help="GPUs of this machine; the CPU is used if it has none (default: 1)",
    )
    add("--num-machines", type=int, default=1, metavar="N", help="machines (default: 1)")
    add(
        "--machine-rank",
        type=int,
        default=0,
        metavar="K",
        help="number of this machine, from 0 (default: 0)",
    )
    # Two users of one machine must not meet by accident: Detectron2's rule for the port.
    port = 2**15 + 2**14 + (os.getuid() if hasattr(os, "getuid") else 1) % 2**14
    add(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        metavar="URL",
        help="where the processes meet (default: %(default)s)",
    )
    add(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="overrides of the configuration, such as OUTPUT_DIR output/mine SEED 1",
    )

    args = parser.parse_intermixed_args(argv)
    if args.num_gpus < 0 or args.num_machines < 1 or not 0 <= args.machine_rank < args.num_machines:
        parser.error("--num-gpus is at least 0, --num-machines at least 1, --machine-rank below it")
    return args


def setup(args):
    """The configuration, with everything checked that can be before processes start."""
    clone.detector_config(args.config)
    from robust_backbones.detection import config

    chosen = {"TRAIN": args.dataset_train, "TEST": args.dataset_test}
    cfg = config.load_config(args.config, args.opts, datasets=chosen)
    notice = config.set_device(cfg, args.num_gpus, args.num_machines)
    config.check_inputs(cfg, train=not args.eval_only, resume=args.resume)
    if notice:
        print(notice, file=sys.stderr)
    cfg.freeze()
    return cfg


def run(cfg, args) -> None:
    """What each process does; user mistakes are one line, here too."""
    with user_errors():
        from robust_backbones.detection.training import run as process

        try:
            process.run(cfg, args)
        except Stopped:
            sys.exit(EXIT_RESUMABLE)


def forward_signals() -> None:
    """Pass SIGTERM on to the processes that this one started, one per GPU; it waits for them."""

    def forward(number, frame):
        for process in multiprocessing.active_children():
            os.kill(process.pid, number)

    signal.signal(signal.SIGTERM, forward)


def main(argv=None) -> None:
    """Check, then start one process per GPU."""
    args = parse(argv)
    with user_errors():
        cfg = setup(args)
    from detectron2.engine import launch
    from torch.multiprocessing import ProcessExitedException

    if args.num_gpus > 1:
        forward_signals()
    where = dict(machine_rank=args.machine_rank, dist_url=args.dist_url)
    try:
        launch(run, args.num_gpus, args.num_machines, **where, args=(cfg, args))
    except ProcessExitedException as error:
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
