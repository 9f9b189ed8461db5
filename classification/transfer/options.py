"""Command-line options of `classification.transfer`, and their conversion to settings."""

import argparse
import re
from dataclasses import replace

from classification.datasets.options import add_data, by_dataset, dataset_name, restrict_data
from classification.datasets.specs import DATASETS, METRIC_TITLES
from classification.training.options import (
    OPTIMIZATION,
    add_limits,
    add_optimization,
    add_running,
    given,
    recipe_defaults,
)
from classification.training.recipes import TRANSFER_RECIPES, training_defaults
from classification.training.settings import METHOD_DEFAULTS, TrainSettings
from classification.transfer import protocols
from classification.transfer.settings import (
    ConditionSettings,
    SgdSettings,
    SourceNetwork,
    TransferSettings,
)
from robust_backbones import corruptions
from robust_backbones.core import cli, input_statistics
from robust_backbones.core.cli import Parser
from robust_backbones.core.eps import CONSTRAINTS, check_eps, parse_number
from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import DATASET, IMAGENET, PRESETS, InputStatistics

EVAL_EVERY = 5
PGD_STEPS = METHOD_DEFAULTS["pgd"].steps  # gradient steps of the attack in adversarial fine-tuning
# A single trial does not show the effect of the seed. A verdict needs three or more trials.
SEEDED_TRIALS = 3
# Options that apply to only one of the probes.
ATTACK = ("constraint", "steps")  # options that require --eps
# Options that require --attack
TEST_ATTACK = ("attack_steps", "attack_restarts", "attack_batch_size", "autoattack")
# Tests of a classifier with logits
TESTS = ("attack", *TEST_ATTACK, "corruptions", "also_test")
OWN = {
    "logistic": ("penalty", *TESTS),
    "knn": ("neighbors",),
    "sgd": (*OPTIMIZATION, "recipe", "lr", "eval_every", "prune_margin", "eps", *ATTACK, *TESTS),
}
SPLIT_NAMES = ("train", "val", "test")


def parser(description: str) -> Parser:
    """Build the parser. Options that `make_settings` completes have the default None."""
    p = Parser(description=description)
    for add in (
        _data_options,
        _protocol_options,
        _probe_options,
        _sgd_options,
        _test_options,
        _running_options,
    ):
        add(p)
    restrict_data(p)
    p.restrict(
        *map(cli.option_name, TEST_ATTACK),
        to="--attack",
        when=lambda args: bool(args.attack or args.eps),
    )
    p.restrict("--held-out", to="--selection validation", when=_holds_out)
    return p


def _holds_out(args: argparse.Namespace) -> bool:
    try:
        return _parts(args).selection == "validation"
    except UserError:  # `make_settings` reports it
        return True


def _data_options(p: Parser) -> None:
    add = p.add_argument_group("network and data").add_argument
    add(
        "--weights",
        type=cli.location,
        required=True,
        help="network: a path, a published name (robust://resnet50_l2_eps3) or a URL; its last "
        "layer is replaced",
    )
    input_statistics.add_options(add)
    add(
        "--dataset",
        type=dataset_name,
        choices=tuple(DATASETS),
        required=True,
        help="dataset to transfer to",
    )
    add_data(add)
    add(
        "--mode",
        choices=protocols.MODES,
        default=protocols.MODES[0],
        help="train the last layer only, or the full network",
    )
    add(
        "--trials",
        type=cli.count,
        help="number of runs with different seeds for validation images, last layer and image "
        f"order (default: {SEEDED_TRIALS}; 1 with --penalty or --neighbors and all images, which "
        "is deterministic)",
    )
    add(
        "--image-size",
        type=cli.count,
        help="height and width of the images in pixels (default: from the weights)",
    )
    add(
        "--downscale",
        type=cli.count,
        help="first downscale the shorter side of the images to N pixels, as in Section 4.3 of the "
        "paper (default: no)",
    )
    cli.add_image_range(add)
    add_limits(add)
    add(
        "--shots",
        type=cli.count,
        help="train on N images of each class, drawn again in each trial (default: all)",
    )
    add(
        "--fraction",
        type=cli.part,
        help="train on this fraction of the images of each class, in (0, 1], at least one image of "
        "each class, drawn again in each trial (default: 1)",
    )
    add(
        "--metric",
        choices=tuple(METRIC_TITLES),
        help=f"accuracy to report and to select by (default: {by_dataset('metric')})",
    )
    add(
        "--output",
        type=cli.path,
        metavar="DIR",
        help="folder for this run (default: output/transfer/<name from the settings>)",
    )


def _protocol_options(p: Parser) -> None:
    add = p.add_argument_group("protocol").add_argument
    add(
        "--protocol",
        choices=tuple(protocols.PROTOCOLS),
        default="clean",
        help="protocol that sets the defaults of the next five options",
    )
    for part, values in protocols.PARTS.items():
        meaning = "; ".join(f"{value}: {words}" for value, words in values.items())
        rows = {name: getattr(row, part) for name, row in protocols.PROTOCOLS.items()}
        default = f"{meaning} (default: {cli.by_kind(rows)})"
        add(f"--{part}", choices=tuple(values), help=default)
    add(
        "--held-out",
        type=cli.fraction,
        default=0.2,
        help="fraction of the training images of each class to select on, in (0, 1)",
    )
    add("--seed", type=cli.seed, default=0, help="random seed of the first trial")


def _probe_options(p: Parser) -> None:
    add = p.add_argument_group("--probe logistic and knn").add_argument
    add(
        "--penalty",
        type=cli.positive,
        help="factor of half the squared weights, added to the sum of the losses (default: the "
        "best of 45 or more)",
    )
    add(
        "--neighbors",
        type=cli.count,
        help="number of nearest neighbors (default: the best of 1 to 200)",
    )


def _sgd_options(p: Parser) -> None:
    add = p.add_argument_group("--probe sgd and --mode full-network").add_argument
    add(
        "--recipe",
        choices=tuple(TRANSFER_RECIPES),
        help="source of the defaults below; convnext: AdamW with layer-wise learning-rate decay "
        "and drop path, for timm networks (default: paper)",
    )
    add_optimization(
        add,
        recipe_defaults(TRANSFER_RECIPES) | {"augmentation": by_dataset("transfer_augmentation")},
    )
    add(
        "--lr",
        type=cli.positive,
        nargs="+",
        help="peak learning rates to choose from (default: 0.01 0.001 (paper), 0.0005 "
        "5e-05 (convnext))",
    )
    add(
        "--eval-every",
        type=cli.count,
        help="evaluate the selection images in every Nth epoch and the last epoch (default: "
        f"{EVAL_EVERY})",
    )
    add(
        "--prune-margin",
        type=cli.positive,
        metavar="POINTS",
        help="stop training with a learning rate if, after a third of its epochs, its accuracy is "
        "more than this many percentage points below an earlier learning rate's (default: never)",
    )
    add(
        "--eps",
        type=cli.positive_eps,
        help="radius of PGD in training, for images in [0, 1]: L2 norm over the image, or "
        "L-infinity such as 4/255 (default: no attack)",
    )
    add("--constraint", choices=CONSTRAINTS, help="norm of the ball (default: l2)")
    add(
        "--steps",
        type=cli.count,
        help=f"gradient steps of the training attack (default: {PGD_STEPS})",
    )


def _test_options(p: Parser) -> None:
    add, defaults = p.add_argument_group("further tests").add_argument, ConditionSettings()
    add(
        "--attack",
        type=_radius,
        nargs="+",
        metavar="CONSTRAINT:EPS",
        help="test under PGD at these radii, such as l2:0.5 linf:4/255 (default: the "
        "radius of --eps, or no attack without --eps)",
    )
    add(
        "--attack-steps",
        type=cli.count,
        help=f"gradient steps of PGD in the test (default: {defaults.steps})",
    )
    add(
        "--attack-restarts",
        type=cli.count,
        help=f"PGD runs per image, each from its own random start (default: {defaults.restarts})",
    )
    add(
        "--attack-batch-size",
        type=cli.count,
        help="images per batch of --attack; the random starts depend on it (default: "
        f"{defaults.attack_batch_size})",
    )
    add(
        "--autoattack",
        type=cli.count,
        help="also run AutoAttack on N test images, balanced over the classes, at each radius",
    )
    add(
        "--corruptions",
        nargs="*",
        metavar="NAME",
        help="kinds of corruption to test at severities 1 to 5, or the groups "
        f"{', '.join(corruptions.GROUPS)}. Without a name: all {len(corruptions.KINDS)} kinds "
        "(default: none)",
    )
    add(
        "--also-test",
        type=_test_folder,
        nargs="+",
        metavar="NAME=DIR",
        help="further test images of the same classes, DIR/<class>/<image>. NAME is their "
        "name in the result. A folder may contain only some of the classes",
    )


def _radius(text: str) -> tuple[str, float]:
    """Convert an argument of `--attack`, such as `linf:4/255`, to constraint and radius.

    Raises:
        argparse.ArgumentTypeError: the text has a different form.
    """
    constraint, _, radius = text.partition(":")
    try:
        eps = parse_number(radius)
    except (ValueError, ArithmeticError):
        eps = 0.0
    if constraint not in CONSTRAINTS or not eps > 0:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not CONSTRAINT:EPS, such as l2:0.5 or linf:4/255"
        )
    try:
        check_eps("eps", constraint, eps)
    except UserError as error:
        raise argparse.ArgumentTypeError(f"'{text}': {error}") from None
    return constraint, eps


def _test_folder(text: str) -> tuple[str, str]:
    """Convert an argument of `--also-test` to name and path.

    Raises:
        argparse.ArgumentTypeError: the text has a different form, or the name is reserved.
    """
    name, equals, folder = text.partition("=")
    if not equals or not folder or not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=DIR, such as sketch=data/sketch")
    if name in (*SPLIT_NAMES, "corruptions"):
        raise argparse.ArgumentTypeError(f"'{name}' is reserved. Choose another name")
    return name, str(cli.path(folder))


def _running_options(p: Parser) -> None:
    add = p.add_argument_group("running").add_argument
    add(
        "--save-classifier",
        action="store_true",
        help="save the network of trial N to classifier_trialN.pt",
    )
    add(
        "--decode",
        choices=("exact", "fast"),
        default="exact",
        help="JPEG decoder. fast: decode large images at reduced size, which changes pixels by "
        "about 1/255",
    )
    add_running(add)


def make_settings(args: argparse.Namespace, network: SourceNetwork) -> TransferSettings:
    """Build the settings from the options and the defaults of dataset, protocol and network.

    Raises:
        UserError: options contradict each other.
    """
    row = DATASETS[args.dataset]
    parts = _parts(args)
    _refuse_foreign(args, parts.probe)
    image_size = args.image_size or network.image_size or row.image_size
    own = parts.normalization == "weights"
    return TransferSettings(
        network=network,
        statistics=network.statistics if own else target_statistics(args.dataset),
        dataset=args.dataset,
        metric=args.metric or row.metric,
        mode=args.mode,
        protocol=protocols.name_of(args.mode, args.protocol, parts),
        parts=parts,
        image_size=image_size,
        downscale=args.downscale,
        image_range=args.image_range,
        decode=args.decode,
        limit=args.limit,
        test_limit=args.test_limit,
        shots=args.shots,
        fraction=_fraction(args),
        held_out=args.held_out if parts.selection == "validation" else 0.0,
        trials=trials(args),
        seed=args.seed,
        precision=args.precision,
        deterministic=args.deterministic,
        save_classifier=args.save_classifier,
        penalty=args.penalty,
        neighbors=args.neighbors,
        sgd=_sgd(args) if parts.probe == "sgd" else None,
        conditions=_conditions(args, image_size),
    )


def _conditions(args: argparse.Namespace, image_size: int) -> ConditionSettings:
    names = [name for name, _ in args.also_test or ()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--also-test: two folders are named '{twice[0]}'. Rename one.")
    kinds = () if args.corruptions is None else tuple(corruptions.choose(args.corruptions))
    if kinds and image_size < corruptions.SMALLEST:
        raise UserError(
            f"--corruptions: the images have {image_size} x {image_size} pixels, but corruptions "
            f"need at least {corruptions.SMALLEST}. Use --image-size {corruptions.SMALLEST} or "
            "more."
        )
    training = [(args.constraint or "l2", args.eps)] if args.eps else []
    return ConditionSettings(
        attacks=tuple(dict.fromkeys(args.attack or training)),
        steps=args.attack_steps or ConditionSettings.steps,
        restarts=args.attack_restarts or ConditionSettings.restarts,
        attack_batch_size=args.attack_batch_size or ConditionSettings.attack_batch_size,
        autoattack=args.autoattack,
        corruptions=kinds,
        also_test=tuple(args.also_test or ()),
    )


def target_statistics(dataset: str) -> InputStatistics:
    """Return the statistics of a dataset as in the paper's code: its own, or no normalization.

    Only CIFAR-10 and CIFAR-100 among the twelve tasks have their own statistics. The paper's code
    does not normalize the images of the other tasks. `DATASETS` has ImageNet's statistics for them.
    """
    own = DATASETS[dataset].statistics
    return PRESETS["none"].of(DATASET) if own.equal(IMAGENET) else own


def trials(args: argparse.Namespace) -> int:
    """Return the number of trials: `--trials`, or the default that its help describes."""
    if args.trials is not None:
        return args.trials
    probe = _parts(args).probe
    value = {"logistic": args.penalty, "knn": args.neighbors, "sgd": None}[probe]
    # Automatic selection depends on the validation images, which depend on the seed.
    return SEEDED_TRIALS if value is None or args.shots or _fraction(args) else 1


def _fraction(args: argparse.Namespace) -> float | None:
    """Return the fraction of the training images; None: all images.

    Raises:
        UserError: `--shots` is given, too.
    """
    if args.fraction and args.shots:
        raise UserError(
            "--fraction and --shots: both set the number of training images. Remove one of them."
        )
    return None if args.fraction == 1 else args.fraction


def has_sgd(args: argparse.Namespace) -> bool:
    """Return whether the run trains with SGD, which several processes can share."""
    return _parts(args).probe == "sgd"


def _parts(args: argparse.Namespace) -> protocols.Protocol:
    return protocols.compose(args.mode, args.protocol, given(args, tuple(protocols.PARTS)))


def _refuse_foreign(args: argparse.Namespace, probe: str) -> None:
    """Raise a UserError if an option of another probe is given."""
    foreign = {name for names in OWN.values() for name in names} - set(OWN[probe])
    for name in sorted(given(args, tuple(foreign))):
        full = args.mode == "full-network"
        where = "--mode full-network" if full else f"--probe {probe}"
        raise UserError(
            f"--{name.replace('_', '-')} does not apply to {where}. Omit it, or choose "
            "another --probe."
        )


def _sgd(args: argparse.Namespace) -> SgdSettings:
    eps, constraint = args.eps or 0.0, args.constraint or "l2"
    check_eps("--eps", constraint, eps)
    if not eps and (useless := list(given(args, ATTACK))):
        raise UserError(f"--{useless[0].replace('_', '-')} requires --eps. Add a radius.")
    method = "pgd" if eps else "standard"
    attack = METHOD_DEFAULTS[method].attack(constraint, eps)
    recipe = TRANSFER_RECIPES[args.recipe or "paper"]
    lrs = tuple(sorted(set(args.lr or (recipe.lr, recipe.lr / 10)), reverse=True))
    augmentation = DATASETS[args.dataset].transfer_augmentation
    return SgdSettings(
        train=TrainSettings(
            method=method,
            attack=replace(attack, steps=args.steps or PGD_STEPS),
            lr=lrs[0],
            seed=args.seed,
            precision=args.precision,
            **training_defaults(recipe)
            | {"augmentation": augmentation}
            | given(args, OPTIMIZATION),
        ),
        lrs=lrs,
        eval_every=args.eval_every or EVAL_EVERY,
        prune_margin=args.prune_margin,
    )
