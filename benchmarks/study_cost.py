"""GPU hours that a study of transfer would take, counted in multiplications, not measured.

python benchmarks/study_cost.py configs/studies/table1.yaml --tflops 40
python benchmarks/study_cost.py configs/studies/table1.yaml --tflops 40 --set protocol=clean

Passes over images times what the network computes for one (counted by PyTorch at 224 pixels, an
addition and a multiplication are two), forward once, backward twice that where all of it is
trained; divided by the `--tflops` that a GPU is assumed to reach. Reading images, which can be
slower, is not in it. `classification.study plan` judges by real runs instead.
"""

import argparse
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
from robust_backbones import zoo  # noqa: E402
from robust_backbones.checkpoint.architectures import build_network  # noqa: E402

PIXELS = 224
TRAINED = 3  # forward, and backward for inputs and for weights


@functools.cache
def forward(arch: str) -> float:
    """Floating-point operations for one image."""
    with torch.device("meta"):
        network = build_network(arch, 1000).eval()
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            network(torch.zeros(1, 3, PIXELS, PIXELS))
    return float(counter.get_total_flops())


def cost(run, parser) -> float:
    """Floating-point operations of a run."""
    arch = zoo.find(run.options["weights"]).arch
    words = run.lines[0][2:]
    settings = transfer_options.settings(parser.parse_args(words), SourceNetwork(arch, None, ""))
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
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("study", type=Path)
    p.add_argument("--tflops", type=float, default=40.0, help="10^12 operations a second of a GPU")
    p.add_argument("--set", nargs="+", default=[], metavar="OPTION=VALUE")
    args = p.parse_args(argv)
    runs = read_study(args.study, dict(pair.split("=", 1) for pair in args.set))
    parser, hours, counts = transfer_options.parser(""), defaultdict(float), defaultdict(int)
    for run in runs:
        if run.command == "transfer" and run.options["weights"].startswith(zoo.SCHEME):
            mode = run.options.get("mode", "fixed-feature")
            hours[mode] += cost(run, parser) / (args.tflops * 1e12) / 3600
            counts[mode] += 1
    print(f"| {args.study.stem} | runs | GPU hours at {args.tflops:g} TFLOP/s |")
    print("|---|---|---|")
    for mode, value in hours.items():
        print(f"| {mode} | {counts[mode]} | {value:.0f} |")


if __name__ == "__main__":
    main()
