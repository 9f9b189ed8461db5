"""Estimate the GPU hours of a transfer study from its floating-point operations.

python benchmarks/study_cost.py configs/studies/table1.yaml --tflops 40
python benchmarks/study_cost.py configs/studies/table1.yaml --tflops 40 --set protocol=clean

The estimate is the number of image passes times the operations of the network at 224 pixels,
divided by the assumed speed of the GPU. A backward pass through all layers counts as two forward
passes. The time for reading images is not included. `classification.study plan` extrapolates from
finished runs instead.
"""

import functools
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from classification.datasets.specs import DATASETS  # noqa: E402
from classification.study.file import read_study  # noqa: E402
from classification.transfer import options as transfer_options  # noqa: E402
from classification.transfer.settings import SourceNetwork  # noqa: E402
from robust_backbones import sources  # noqa: E402
from robust_backbones.checkpoint.architectures import build_network  # noqa: E402
from robust_backbones.core.cli import Parser  # noqa: E402
from robust_backbones.core.input_statistics import IMAGENET  # noqa: E402

PIXELS = 224
TRAINED = 3  # forward pass, backward pass for inputs, backward pass for weights


@functools.cache
def forward(arch: str) -> float:
    """Floating-point operations of a forward pass with one image."""
    with torch.device("meta"):
        network = build_network(arch, 1000).eval()
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            network(torch.zeros(1, 3, PIXELS, PIXELS))
    return float(counter.get_total_flops())


def arch_of(run) -> str | None:
    """Architecture that the run's weights state without their file; None if they state none."""
    weights = run.options["weights"]
    return sources.stated(weights, Path(weights)).arch


def cost(run, parser) -> float:
    """Floating-point operations of a run."""
    arch = arch_of(run)
    words = run.lines(1)[0][2:]
    settings = transfer_options.make_settings(
        parser.parse_args(words), SourceNetwork(arch, None, IMAGENET, "", {})
    )
    images, sgd = DATASETS[settings.dataset].images, settings.sgd
    train, test = images["train"], images["test"]
    if sgd is None:
        return forward(arch) * (train + test)
    step = TRAINED if settings.mode == "full-network" else 1
    epochs, lrs = sgd.train.epochs, len(sgd.lrs)
    evaluations = epochs / sgd.eval_every
    if settings.parts.selection == "test":
        one = epochs * train * step + evaluations * test
        return forward(arch) * one * lrs * settings.trials
    held = settings.held_out
    one = epochs * (1 - held) * train * step + evaluations * held * train
    last = epochs * train * step + test
    return forward(arch) * settings.trials * (lrs * one + last)


def main(argv=None) -> None:
    p = Parser(description=__doc__)
    p.add_argument("study", type=Path, metavar="FILE", help="study file")
    p.add_argument(
        "--tflops",
        type=float,
        default=40.0,
        help="assumed speed of the GPU in 10^12 operations per second",
    )
    p.add_argument(
        "--set", nargs="+", default=[], metavar="OPTION=VALUE", help="options to change in all runs"
    )
    args = p.parse_args(argv)
    runs = read_study(args.study, dict(pair.split("=", 1) for pair in args.set))
    parser, hours, counts = transfer_options.parser(""), defaultdict(float), defaultdict(int)
    for run in runs:
        if run.command == "transfer" and arch_of(run):
            mode = run.options.get("mode", "fixed-feature")
            hours[mode] += cost(run, parser) / (args.tflops * 1e12) / 3600
            counts[mode] += 1
    print(f"| {args.study.stem} | runs | GPU hours at {args.tflops:g} TFLOP/s |")
    print("|---|---|---|")
    for mode, value in hours.items():
        print(f"| {mode} | {counts[mode]} | {value:.0f} |")


if __name__ == "__main__":
    main()
