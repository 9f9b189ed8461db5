"""Options of `classification.transfer`, and the settings that follow from them and the tables."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from classification import options
from classification.datasets.specs import DATASETS, METRIC_TITLES
from classification.training.recipes import SCHEDULES
from classification.training.settings import (
    AUGMENTATIONS,
    METHODS,
    PRECISIONS,
    TrainSettings,
    evaluation_attack,
)
from classification.transfer import protocols
from classification.transfer.settings import SgdSettings, SourceNetwork, TransferSettings
from robust_backbones.core.cli import Parser
from robust_backbones.core.eps import CONSTRAINTS, check_eps
from robust_backbones.core.errors import UserError

# The best settings that Salman et al. 2020 published for all tasks, and the learning rates that
# they chose from.
SGD = TrainSettings(
    method="standard",
    epochs=150,
    batch_size=64,
    lr_schedule="step",
    momentum=0.9,
    weight_decay=5e-4,
)
LRS = (0.01, 0.001)
EVAL_EVERY = 5
PGD_STEPS = METHODS["pgd"].steps  # adversarial fine-tuning uses the attack of the published models
EVAL_STEPS = 10
# A single trial does not show how much the seed matters. A verdict needs three or more.
SEEDED_TRIALS = 3
# Options that only one of the probes has. The first group are fields of `TrainSettings`.
SGD_FIELDS = (
    "epochs",
    "batch_size",
    "lr_schedule",
    "warmup",
    "momentum",
    "weight_decay",
    "augmentation",
    "label_smoothing",
    "ema",
    "accumulate",
    "compile",
)
ATTACK = ("constraint", "steps", "eval_steps")  # require --adversarial
OWN = {
    "logistic": ("penalty",),
    "knn": ("neighbors",),
    "sgd": (*SGD_FIELDS, "lr", "eval_every", "prune_margin", "adversarial", *ATTACK),
}


def parser(description: str) -> Parser:
    """Build the parser. Options with a default from a table have the value None unless given."""
    p = Parser(
        "python -m classification.transfer",
        description=description.split("\n")[0],
        epilog="To resume a stopped run, repeat the same command.",
    )
    for add in (_data_options, _protocol_options, _probe_options, _sgd_options, _running_options):
        add(p)
    return p


def _data_options(p: Parser) -> None:
    add = p.add_argument_group("network and data").add_argument
    add(
        "--weights",
        required=True,
        help="network: a path, a published name (robust://resnet50_l2_eps3) or a URL; its last "
        "layer is replaced",
    )
    add("--dataset", choices=tuple(DATASETS), required=True, help="dataset to transfer to")
    add(
        "--data",
        metavar="DIR",
        help="folder of the dataset, or the folder that contains it (default: "
        "$ROBUST_BACKBONES_DATA; embedded datasets need none)",
    )
    add(
        "--mode",
        choices=protocols.MODES,
        default=protocols.MODES[0],
        help="train the last layer only, or the full network",
    )
    add(
        "--trials",
        type=options.count,
        metavar="N",
        help="number of runs with different seeds for validation images, last layer and image "
        f"order (default: {SEEDED_TRIALS}; 1 with --penalty or --neighbors and without --shots, "
        "where nothing is random)",
    )
    add(
        "--image-size",
        type=options.count,
        metavar="N",
        help="height and width of the images in pixels (default: the weights')",
    )
    add(
        "--downscale",
        type=options.count,
        metavar="N",
        help="first reduce the shorter side of the images to N pixels, as in Section 4.3 of the "
        "paper (default: no)",
    )
    add(
        "--limit",
        type=options.count,
        metavar="N",
        help="train on at most N images, balanced over the classes (default: all)",
    )
    add(
        "--test-limit",
        type=options.count,
        metavar="N",
        help="test on at most N images, balanced over the classes (default: all)",
    )
    add(
        "--shots",
        type=options.count,
        metavar="N",
        help="train on N images of each class, drawn again in each trial (default: all)",
    )
    add(
        "--metric",
        choices=tuple(METRIC_TITLES),
        help="accuracy to report and to choose by (default: the dataset's; top1 for folder)",
    )
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for this run (default: output/transfer/<name from the settings>)",
    )


def _protocol_options(p: Parser) -> None:
    add = p.add_argument_group("protocol").add_argument
    add(
        "--protocol",
        choices=tuple(protocols.PROTOCOLS),
        default="clean",
        help="source of the defaults of the next four options",
    )
    for part, values in protocols.PARTS.items():
        meaning = "; ".join(f"{value}: {words}" for value, words in values.items())
        add(f"--{part}", choices=tuple(values), help=f"{meaning} (default: the protocol's)")
    add(
        "--held-out",
        type=options.fraction,
        metavar="SHARE",
        default=0.2,
        help="share of each class of the training images to choose on, in (0, 1)",
    )
    add("--seed", type=options.seed, metavar="N", default=0, help="random seed of the first trial")


def _probe_options(p: Parser) -> None:
    add = p.add_argument_group("--probe logistic and knn").add_argument
    add(
        "--penalty",
        type=options.positive,
        metavar="FACTOR",
        help="factor of half the squared weights, added to the sum of the losses (default: the "
        "best of 45 or more)",
    )
    add(
        "--neighbors",
        type=options.count,
        metavar="K",
        help="number of nearest neighbors (default: the best of 1 to 200)",
    )


def _sgd_options(p: Parser) -> None:
    add = p.add_argument_group("--probe sgd and --mode full-network").add_argument
    add(
        "--epochs",
        type=options.count,
        metavar="N",
        help=f"passes over the training images (default: {SGD.epochs})",
    )
    add(
        "--batch-size",
        type=options.batch,
        metavar="N",
        help=f"images per update over all processes (default: {SGD.batch_size})",
    )
    add(
        "--lr",
        type=options.positive,
        nargs="+",
        help="peak learning rates to choose from (default: 0.01 0.001)",
    )
    add(
        "--lr-schedule",
        choices=tuple(SCHEDULES),
        help=f"learning-rate schedule (default: {SGD.lr_schedule})",
    )
    add(
        "--warmup",
        type=options.radius,
        metavar="EPOCHS",
        help=f"epochs of linear learning-rate warm-up (default: {SGD.warmup})",
    )
    add(
        "--momentum",
        type=options.fraction,
        help=f"momentum of SGD, in (0, 1) (default: {SGD.momentum})",
    )
    add(
        "--weight-decay",
        type=options.radius,
        metavar="FACTOR",
        help=f"factor of the L2 penalty on all trained parameters (default: {SGD.weight_decay})",
    )
    add(
        "--augmentation",
        choices=AUGMENTATIONS,
        help="augmentation of the training images (default: the dataset's; imagenet_plain where "
        "mirrored images keep their class)",
    )
    add(
        "--label-smoothing",
        type=options.share,
        metavar="SHARE",
        help=f"label smoothing, in [0, 1) (default: {SGD.label_smoothing})",
    )
    add(
        "--ema",
        type=options.share,
        metavar="DECAY",
        help="decay per update of averaged weights, which are then evaluated; 0: off (default: "
        f"{SGD.ema})",
    )
    add(
        "--eval-every",
        type=options.count,
        metavar="N",
        help="evaluate the images that choose in every Nth epoch and the last one (default: "
        f"{EVAL_EVERY})",
    )
    add(
        "--accumulate",
        type=options.count,
        metavar="N",
        help="split each process's part of a batch into N parts, to save memory (default: "
        f"{SGD.accumulate})",
    )
    add("--compile", action="store_const", const=True, help="use torch.compile (default: no)")
    add(
        "--prune-margin",
        type=options.positive,
        metavar="POINTS",
        help="stop training with a learning rate that, after a third of its epochs, is more than "
        "this many percentage points behind an earlier one of its trial (default: never)",
    )
    add(
        "--adversarial",
        type=options.positive,
        metavar="EPS",
        help="train against PGD with this radius for images in [0, 1]: L2 norm over the image, or "
        "L-infinity such as 4/255 (default: no attack)",
    )
    add("--constraint", choices=CONSTRAINTS, help="norm of the ball (default: l2)")
    add(
        "--steps",
        type=options.count,
        metavar="N",
        help=f"gradient steps of the training attack (default: {PGD_STEPS})",
    )
    add(
        "--eval-steps",
        type=options.count,
        metavar="N",
        help=f"gradient steps of the attack on the test images (default: {EVAL_STEPS})",
    )


def _running_options(p: Parser) -> None:
    add = p.add_argument_group("running").add_argument
    add(
        "--save-classifier",
        action="store_true",
        help="save the network of trial N to classifier_trialN.pt",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="precision of the network; weights and probes are float32 or higher",
    )
    add(
        "--decode",
        choices=("exact", "fast"),
        default="exact",
        help="decoder of JPEG files; fast: decodes large images at reduced size, pixels differ by "
        "about 1 of 255",
    )
    options.add_running(add)


def settings(args: argparse.Namespace, network: SourceNetwork) -> TransferSettings:
    """Complete the options with the defaults of the dataset, the protocol and the network.

    Raises:
        UserError: options contradict each other.
    """
    row = DATASETS[args.dataset]
    parts = _parts(args)
    _refuse_foreign(args, parts.probe)
    return TransferSettings(
        network=network,
        dataset=args.dataset,
        metric=args.metric or row.metric,
        mode=args.mode,
        protocol=protocols.name_of(args.mode, args.protocol, parts),
        parts=parts,
        image_size=args.image_size or network.image_size or row.image_size,
        downscale=args.downscale,
        decode=args.decode,
        limit=args.limit,
        test_limit=args.test_limit,
        shots=args.shots,
        held_out=args.held_out if parts.selection == "validation" else 0.0,
        trials=trials(args),
        seed=args.seed,
        precision=args.precision,
        deterministic=args.deterministic,
        save_classifier=args.save_classifier,
        penalty=args.penalty,
        neighbors=args.neighbors,
        sgd=_sgd(args) if parts.probe == "sgd" else None,
    )


def trials(args: argparse.Namespace) -> int:
    """Number of trials: `--trials`, or the default that its help describes."""
    if args.trials is not None:
        return args.trials
    probe = _parts(args).probe
    value = {"logistic": args.penalty, "knn": args.neighbors, "sgd": None}[probe]
    # A choice depends on validation images that the seed draws.
    return SEEDED_TRIALS if value is None or args.shots else 1


def _parts(args: argparse.Namespace) -> protocols.Protocol:
    given = {name: value for name, value in _given(args).items() if name in protocols.PARTS}
    return protocols.compose(args.mode, args.protocol, given)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Options with a value."""
    return {name: value for name, value in vars(args).items() if value is not None}


def _refuse_foreign(args: argparse.Namespace, probe: str) -> None:
    """Refuse options of other probes."""
    foreign = {name for names in OWN.values() for name in names} - set(OWN[probe])
    for name in sorted(foreign & set(_given(args))):
        full = args.mode == "full-network"
        where = "--mode full-network" if full else f"--probe {probe}"
        raise UserError(
            f"--{name.replace('_', '-')} does not apply to {where}. Leave it out, or choose "
            "another --probe."
        )


def _sgd(args: argparse.Namespace) -> SgdSettings:
    given = _given(args)
    eps, constraint = given.get("adversarial", 0.0), given.get("constraint", "l2")
    check_eps("--adversarial", constraint, eps)
    if not eps and (useless := [name for name in ATTACK if name in given]):
        raise UserError(f"--{useless[0].replace('_', '-')} requires --adversarial. Add a radius.")
    method = "pgd" if eps else "standard"
    attack = replace(METHODS[method].attack(constraint, eps), steps=given.get("steps", PGD_STEPS))
    lrs = tuple(sorted(set(given.get("lr", LRS)), reverse=True))
    chosen: dict[str, Any] = {"augmentation": DATASETS[args.dataset].transfer_augmentation}
    chosen |= {name: given[name] for name in SGD_FIELDS if name in given}
    return SgdSettings(
        train=replace(
            SGD,
            method=method,
            attack=attack,
            lr=lrs[0],
            seed=args.seed,
            precision=args.precision,
            **chosen,
        ),
        lrs=lrs,
        eval_every=given.get("eval_every", EVAL_EVERY),
        prune_margin=args.prune_margin,
        evaluation=(
            evaluation_attack(constraint, eps, given.get("eval_steps", EVAL_STEPS)) if eps else None
        ),
    )
