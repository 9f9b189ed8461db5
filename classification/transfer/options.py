"""The options of `classification.transfer`, and what they decide together with the tables."""

import argparse
from pathlib import Path

# torch, and what imports it, waits for the run: --help is to come at once.
from classification import options
from classification.datasets.specs import DATASETS, METRIC_TITLES, DatasetSpec
from classification.pretrain.options import AUGMENTATIONS, PRECISIONS, STANDARD_EVAL_EPS
from classification.training.schedules import SCHEDULES
from classification.transfer import protocols
from robust_backbones.core.cli import Parser
from robust_backbones.core.eps import STEP_FACTOR, check_eps
from robust_backbones.core.errors import UserError

# Salman et al. 2020, as their published list of best settings has it for all tasks; the rates are
# those among which it chooses.
SGD = {
    "epochs": 150,
    "batch_size": 64,
    "lr": [0.01, 0.001],
    "lr_schedule": "step",
    "warmup": 0.0,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "label_smoothing": 0.0,
    "ema": 0.0,
    "eval_every": 5,
    "accumulate": 1,
    "compile": False,
    "stop_hopeless": None,
}
# A single trial does not show how much the seed matters. A verdict needs three or more.
SEEDED_TRIALS = 3
ATTACK = {"constraint": "l2", "steps": 3, "eval_steps": 10}
LOGISTIC, NEAREST = ("penalty",), ("neighbours",)
# Of each probe: the options that only it understands.
OWN = {
    "logistic": LOGISTIC,
    "nearest": NEAREST,
    "sgd": (*SGD, "augmentation", "adversarial", *ATTACK),
}


def parser(description: str) -> Parser:
    """Options without a default of their own are absent unless given: a table decides on them."""
    p = Parser(
        "python -m classification.transfer",
        description=description.split("\n")[0],
        argument_default=argparse.SUPPRESS,
        epilog="A run that was stopped goes on where it was: give the same command again.",
    )
    what = p.add_argument_group("what").add_argument
    what(
        "--weights",
        required=True,
        help="the network: a path, a published name (robust://resnet50_l2_eps3) or a URL; its "
        "last layer is replaced",
    )
    what("--dataset", choices=tuple(DATASETS), required=True, help="the task")
    what(
        "--data",
        help="where the data set lies: its folder or the one above it (default: "
        "$ROBUST_BACKBONES_DATA; embedded ones need none)",
    )
    what(
        "--mode",
        choices=protocols.MODES,
        default=protocols.MODES[0],
        help="train the last layer only, or everything",
    )
    what(
        "--trials",
        type=options.count,
        metavar="N",
        help="runs with different seeds: validation images, head and order (default: "
        f"{SEEDED_TRIALS}; 1 with a given --penalty or --neighbours and without --shots, where "
        "nothing is random)",
    )
    what(
        "--image-size",
        type=options.count,
        help="height and width of the images, pixels (default: the weights')",
    )
    what(
        "--downscale",
        type=options.count,
        help="first take the images down to so many pixels, shorter side: the paper's Section 4.3 "
        "(default: no)",
    )
    what(
        "--limit",
        type=options.count,
        help="train on so many images only, balanced over the classes (default: all)",
    )
    what(
        "--test-limit",
        type=options.count,
        help="test on so many images only, balanced over the classes (default: all)",
    )
    what(
        "--shots",
        type=options.count,
        help="train on so many images of each class, drawn anew in each trial (default: all)",
    )
    what(
        "--metric",
        choices=tuple(METRIC_TITLES),
        help="accuracy to choose by and to report (default: the dataset's; for folder top1)",
    )
    what(
        "--output",
        type=Path,
        help="folder for this run, a path (default: output/transfer/<named by the settings>)",
    )
    how = p.add_argument_group("protocol").add_argument
    how(
        "--protocol",
        choices=tuple(protocols.PROTOCOLS),
        default="clean",
        help="decides on the four below",
    )
    for part, values in protocols.PARTS.items():
        meant = "; ".join(f"{value}: {words}" for value, words in values.items())
        how(f"--{part}", choices=tuple(values), help=f"{meant} (default: the protocol's)")
    how(
        "--held-out",
        type=options.fraction,
        default=0.2,
        help="part of each class of the training images to choose on, in (0, 1)",
    )
    how("--seed", type=options.seed, default=0, help="of the first trial, a number")
    _probe_options(p)
    _sgd_options(p)
    _running_options(p)
    return p


def _probe_options(p: argparse.ArgumentParser) -> None:
    probe = p.add_argument_group("--probe logistic, nearest").add_argument
    probe(
        "--penalty",
        type=options.positive,
        help="factor of half the squared weights in the sum of losses (default: chosen of 45 or "
        "more)",
    )
    probe("--neighbours", type=options.count, help="k, a count (default: chosen)")


def _sgd_options(p: argparse.ArgumentParser) -> None:
    sgd = p.add_argument_group("--probe sgd, and --mode full-network").add_argument
    sgd("--epochs", type=options.count, help=_default("passes over the training images", "epochs"))
    sgd(
        "--batch-size",
        type=options.batch,
        help=_default("images per update, all processes together", "batch_size"),
    )
    sgd(
        "--lr",
        type=options.positive,
        nargs="+",
        help="highest learning rate; of several the best is chosen (default: 0.01 0.001)",
    )
    sgd("--lr-schedule", choices=tuple(SCHEDULES), help=_default("", "lr_schedule"))
    sgd("--warmup", type=options.radius, help=_default("epochs of rising rate", "warmup"))
    sgd("--momentum", type=options.fraction, help=_default("of SGD, in (0, 1)", "momentum"))
    sgd(
        "--weight-decay",
        type=options.radius,
        help=_default("L2 penalty on all that is trained, a factor", "weight_decay"),
    )
    sgd(
        "--augmentation",
        choices=AUGMENTATIONS,
        help="default: imagenet_plain, where mirrored images keep their class",
    )
    sgd("--label-smoothing", type=options.share, help=_default("in [0, 1)", "label_smoothing"))
    sgd(
        "--ema",
        type=options.share,
        help=_default("decay per update of averaged weights, which then count; 0: none", "ema"),
    )
    sgd(
        "--eval-every",
        type=options.count,
        help=_default("epochs from one look at the accuracy to the next", "eval_every"),
    )
    sgd(
        "--accumulate",
        type=options.count,
        help=_default("pieces to cut a process's part of a mini-batch into", "accumulate"),
    )
    sgd("--compile", action="store_true", help="use torch.compile")
    sgd(
        "--stop-hopeless",
        type=options.positive,
        metavar="POINTS",
        help="give a learning rate up that, after a third of its epochs, is so many percent behind "
        "an earlier one of its trial; the result says so (default: none is)",
    )
    sgd(
        "--adversarial",
        type=options.positive,
        metavar="EPS",
        help="train against attacks of that radius, pixels in [0, 1]; 4/255 is understood "
        "(default: none)",
    )
    sgd(
        "--constraint",
        choices=tuple(STANDARD_EVAL_EPS),
        help=_default("norm of the ball", "constraint", ATTACK),
    )
    sgd("--steps", type=options.count, help=_default("of the training attack", "steps", ATTACK))
    sgd(
        "--eval-steps",
        type=options.count,
        help=_default("of the attack on the test images", "eval_steps", ATTACK),
    )


def _running_options(p: argparse.ArgumentParser) -> None:
    run = p.add_argument_group("running").add_argument
    run(
        "--save-classifier",
        action="store_true",
        default=False,
        help="keep the network of each trial: classifier_trial<number>.pt",
    )
    run(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of the network; weights and probes are float32 and up",
    )
    run(
        "--decode",
        choices=("exact", "fast"),
        default="exact",
        help="of JPEG files; fast: other decoder and resizing, large ones at a part of their "
        "size; about a level of 255 away",
    )
    run(
        "--save-seconds",
        type=options.radius,
        default=600.0,
        help="longest time between two checkpoints, seconds",
    )
    run("--device", help="torch device (default: cuda if there is one, else cpu)")
    run(
        "--workers",
        type=options.whole,
        default=0,
        help="processes that read images, for each process; 0: it reads itself",
    )
    run(
        "--deterministic",
        action="store_true",
        default=False,
        help="equal numbers in each run on the same GPUs too, slower",
    )


def _default(words: str, name: str, table: dict = SGD) -> str:
    return f"{words} (default: {table[name]})".strip()


def settings(args: argparse.Namespace, weights: dict) -> dict:
    """All that decides the numbers of the run, in plain JSON types, but for the images.

    Args:
        weights: `arch`, `image_size` (None: unknown) and `weights_sha256` of the network.

    Raises:
        UserError: options that do not go together.
    """
    row = DATASETS[args.dataset]
    given = vars(args)
    wanted = {part: given[part] for part in protocols.PARTS if part in given}
    parts = protocols.parts(args.mode, args.protocol, wanted)
    _refuse_foreign(given, args.mode, parts["probe"])
    own = {"logistic": _logistic, "nearest": _nearest, "sgd": _sgd}[parts["probe"]]
    return {
        "weights_sha256": weights["weights_sha256"],
        "arch": weights["arch"],
        "dataset": args.dataset,
        "metric": given.get("metric", row.metric),
        "mode": args.mode,
        "protocol": protocols.name_of(args.mode, args.protocol, parts),
        **parts,
        "image_size": given.get("image_size") or weights["image_size"] or row.image_size,
        "downscale": given.get("downscale"),
        "decode": args.decode,
        "limit": given.get("limit"),
        "test_limit": given.get("test_limit"),
        "shots": given.get("shots"),
        "held_out": args.held_out if parts["selection"] == "validation" else 0.0,
        "trials": trials(given),
        "seed": args.seed,
        "precision": args.precision,
        "deterministic": args.deterministic,
        "save_classifier": args.save_classifier,
        **own(given, row),
    }


def trials(given: dict) -> int:
    """Number of trials: `--trials`, or the default that its help describes.

    Args:
        given: options by name; `mode`, `protocol`, `probe`, `shots`, `penalty` and `neighbours`
            decide on the default.
    """
    wanted = {part: given[part] for part in protocols.PARTS if part in given}
    parts = protocols.parts(given["mode"], given["protocol"], wanted)
    chosen = given.get(protocols.CHOICES[parts["probe"]]) is None  # on images that a seed draws
    seeded = parts["probe"] == "sgd" or chosen or given.get("shots")
    return given.get("trials", SEEDED_TRIALS if seeded else 1)


def _refuse_foreign(given: dict, mode: str, probe: str) -> None:
    foreign = {name for names in OWN.values() for name in names} - set(OWN[probe])
    for name in sorted(foreign & set(given)):
        place = f"--mode {mode}" if mode == "full-network" else f"--probe {probe}"
        raise UserError(
            f"--{name.replace('_', '-')} is not for {place}; leave it out, or choose "
            "another --probe."
        )


def _logistic(given: dict, row: DatasetSpec) -> dict:
    return {"penalty": given.get("penalty")}


def _nearest(given: dict, row: DatasetSpec) -> dict:
    return {"neighbours": given.get("neighbours")}


def _sgd(given: dict, row: DatasetSpec) -> dict:
    found = {name: given.get(name, value) for name, value in (SGD | ATTACK).items()}
    rates, eval_steps = sorted(set(found.pop("lr")), reverse=True), found.pop("eval_steps")
    eps, smoothing = given.get("adversarial", 0.0), found.pop("label_smoothing")
    check_eps("--adversarial", found["constraint"], eps)
    if not eps and (useless := sorted(set(ATTACK) & set(given))):
        raise UserError(f"--{useless[0].replace('_', '-')} without --adversarial; give a radius.")
    return found | {
        "rates": rates,
        "smoothing": smoothing,
        "passes": found["epochs"],
        "augmentation": given.get("augmentation", row.transfer_augmentation),
        "optimizer": "sgd",
        "nesterov": False,
        # As the paper's own networks were trained.
        "method": "pgd" if eps else "standard",
        "eps": eps,
        "step_size": 2 / 3 * eps,
        "random_start": False,
        "use_best": bool(eps),
        "beta": 0.0,
        "evaluation": eps
        and {
            "attack": "pgd",
            "constraint": found["constraint"],
            "eps": eps,
            "steps": eval_steps,
            "step_size": STEP_FACTOR * eps / eval_steps,
            "random_start": True,
            "use_best": True,
        },
    }
