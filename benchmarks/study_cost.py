"""Estimate the GPU hours of a study of transfer or detectors from its floating-point operations.

python benchmarks/study_cost.py configs/studies/table1.yaml --tflops 40
python benchmarks/study_cost.py configs/studies/table1.yaml --tflops 40 --set protocol=clean
python benchmarks/study_cost.py configs/studies/modern_figure4.yaml

The estimate is the number of image passes times the operations of the network, divided by the
assumed speed of the GPU. A backward pass through all layers counts as two forward passes. The time
for reading images is not included. Classifiers have images of 224 pixels. Detectors have images of
the mean training size with the aspect ratio 4:3, and their evaluations are not included.
`classification.study plan` extrapolates from finished runs instead.
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
from robust_backbones.meta_device import meta_device  # noqa: E402

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


def detector_cost(run) -> float:
    """Floating-point operations of the training of a detector."""
    from robust_backbones.detection.config import load_config  # imports Detectron2

    keys = {key: value for key, value in run.options.items() if key.isupper() or "." in key}
    cfg = load_config(run.options["config"], [str(x) for pair in keys.items() for x in pair])
    trained = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
    cfg.merge_from_list(["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", "", "OUTPUT_DIR", "", "SEED", 0])
    return TRAINED * trained * detector_forward(cfg.dump())


@functools.cache
def detector_forward(config: str) -> float:
    """Floating-point operations of a forward pass of a detector with one training image."""
    from detectron2.config import CfgNode
    from detectron2.modeling import build_model

    cfg = CfgNode.load_cfg(config)
    short = sum(cfg.INPUT.MIN_SIZE_TRAIN) / len(cfg.INPUT.MIN_SIZE_TRAIN)
    boxes = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    objects = int(boxes * cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION)
    with meta_device():
        model = build_model(cfg).eval()
        multiple = max(1, model.backbone.size_divisibility)
        height, width = (multiple * round(side / multiple) for side in (short, short * 4 / 3))
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            maps = model.backbone(torch.zeros(1, 3, height, width))
            channels = next(iter(maps.values())).shape[1]
            model.proposal_generator.rpn_head([maps[name] for name in cfg.MODEL.RPN.IN_FEATURES])
            size = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
            model.roi_heads.box_head(torch.zeros(boxes, channels, size, size))
            if cfg.MODEL.MASK_ON:
                size = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
                model.roi_heads.mask_head.layers(torch.zeros(objects, channels, size, size))
    return float(counter.get_total_flops())


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
        if run.command == "train":
            kind, operations = "detectors", detector_cost(run)
        elif run.command == "transfer" and arch_of(run):
            kind, operations = run.options.get("mode", "fixed-feature"), cost(run, parser)
        else:
            continue
        hours[kind] += operations / (args.tflops * 1e12) / 3600
        counts[kind] += 1
    print(f"| {args.study.stem} | runs | GPU hours at {args.tflops:g} TFLOP/s |")
    print("|---|---|---|")
    for kind, value in hours.items():
        print(f"| {kind} | {counts[kind]} | {value:.0f} |")


if __name__ == "__main__":
    main()
