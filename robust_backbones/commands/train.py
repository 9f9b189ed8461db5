"""Train or evaluate a detector on a robust backbone.

Examples:
  robust-backbones train --config coco_mask_rcnn_robust_eps3.yaml --num-gpus 8
  robust-backbones train --config coco_mask_rcnn_robust_eps3.yaml --num-gpus 8 --resume
  robust-backbones train --config voc_faster_rcnn_standard.yaml \\
      MODEL.WEIGHTS robust://resnet50_l2_eps1

Exit codes: 0 success, 2 invalid input, 75 interrupted and resumable with --resume.
"""

import argparse
import itertools
import re

from robust_backbones.commands.detector_options import INSTEAD, KEY
from robust_backbones.core.addresses import is_own_address
from robust_backbones.core.cli import Parser, count, location, whole
from robust_backbones.core.dataset_forms import LAYOUTS, SYNTAX
from robust_backbones.core.errors import user_errors
from robust_backbones.core.resources import require_config

_URL = re.compile(r"tcp://(?P<host>[^/]+):\d+|file:///?\S+|env://")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Options that Detectron2 also has have the same names as there."""
    parser = Parser(instead=INSTEAD, description=__doc__, epilog=LAYOUTS)
    add = parser.add_argument
    add(
        "--config",
        "--config-file",
        dest="config",
        required=True,
        type=location,
        metavar="FILE",
        help="YAML file of the detector, or the name of a packaged one",
    )
    for split, use in (("train", "train on"), ("test", "evaluate on")):
        add(
            f"--dataset-{split}",
            action="append",
            default=[],
            metavar="DATA",
            help=f"{use} a registered dataset, or {SYNTAX} (repeatable)",
        )
    add(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in OUTPUT_DIR, if there is one",
    )
    add(
        "--restart-schedule",
        action="store_true",
        help="with --resume: use the learning rates and number of steps of the current config "
        "instead of the original ones",
    )
    add(
        "--eval-only",
        action="store_true",
        help="evaluate MODEL.WEIGHTS (with --resume: the last checkpoint) without training",
    )
    add(
        "--choose-lr",
        action="extend",
        nargs="+",
        default=[],
        type=location,
        metavar="RUN",
        help="set SOLVER.BASE_LR to the learning rate of the finished run with the highest AP. The "
        "runs need DATASETS.HELD_OUT, and the same weights and settings as this one",
    )
    add(
        "--num-gpus",
        type=whole,
        default=1,
        help="number of GPUs on this machine; without a GPU, the CPU is used (default: 1)",
    )
    add("--num-machines", type=count, default=1, help="number of machines")
    add("--machine-rank", type=whole, default=0, help="rank of this machine, starting at 0")
    add(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="address at which the processes meet, such as tcp://HOST:PORT of the first machine "
        "(default: a free port; required with several machines)",
    )
    add(
        "opts",
        nargs="*",
        default=[],
        metavar="KEY VALUE",
        help="changes to the config, such as OUTPUT_DIR output/mine SEED 1",
    )
    parser.restrict("--restart-schedule", to="--resume", when=lambda args: args.resume)
    parser.restrict("--choose-lr", to="training", when=lambda args: not args.eval_only)
    args = parser.parse_intermixed_args(argv)
    # Config keys after the runs are not runs.
    runs = list(itertools.takewhile(lambda word: not KEY.fullmatch(word), args.choose_lr))
    args.choose_lr, args.opts = runs, args.choose_lr[len(runs) :] + args.opts
    if problem := _problem(args):
        parser.error(problem)
    return args


def _problem(args: argparse.Namespace) -> str:
    """Return why the processes could not meet; empty if nothing is wrong.

    Without these checks, the processes would wait for each other for half an hour.
    """
    machines, url = args.num_machines, args.dist_url
    if args.machine_rank >= machines:
        return f"--machine-rank {args.machine_rank} must be below --num-machines {machines}"
    host = _URL.fullmatch(url)
    if url != "auto" and not host:
        return f"--dist-url {url} is invalid. Give tcp://HOST:PORT or file://PATH"
    if machines > 1 and (url == "auto" or host and is_own_address(host["host"] or "")):
        return (
            f"--num-machines {machines}: --dist-url {url} is not an address that other machines "
            "reach. On every machine, give the address of the first one, such as --dist-url "
            "tcp://10.0.0.1:29500"
        )
    return ""


def main(argv: list[str] | None = None) -> None:
    """Check the input, then start one process per GPU."""
    args = parse(argv)
    with user_errors():
        require_config(args.config)
        from robust_backbones.detection import launch

        launch.launch(
            args.config,
            args.opts,
            {"TRAIN": args.dataset_train, "TEST": args.dataset_test},
            launch.Mode(args.resume, args.restart_schedule, args.eval_only),
            launch.Processes(args.num_gpus, args.num_machines, args.machine_rank, args.dist_url),
            args.choose_lr,
        )
