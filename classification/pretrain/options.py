"""Parse the options of `classification.pretrain`, and combine them with recipes into settings."""

import argparse
from dataclasses import replace

from classification.datasets.options import add_data, restrict_data
from classification.datasets.specs import DATASETS
from classification.pretrain.settings import PretrainSettings
from classification.training.options import (
    OPTIMIZATION,
    add_limits,
    add_optimization,
    add_running,
    given,
)
from classification.training.recipes import RECIPES, Recipe, scaled_lr, training_defaults
from classification.training.settings import METHOD_DEFAULTS, TrainSettings, evaluation_attack
from robust_backbones.archs import ARCHS, TIMM, check_name
from robust_backbones.core import cli
from robust_backbones.core.cli import Parser
from robust_backbones.core.eps import CONSTRAINTS, check_eps, show_eps
from robust_backbones.core.errors import UserError

# Default radius of the evaluation attack on a standard model.
STANDARD_EVAL_EPS = {"l2": 1.0, "linf": 8 / 255}
OTHER_EPS = {"l2": 3.0, "linf": 4 / 255}  # default radius for a norm that is not the recipe's
ATTACK = ("steps", "step_size", "random_start", "use_best")  # options of the training attack


def parser(description: str) -> Parser:
    """Build the parser.

    If the user omits an option whose default depends on the recipe or method, its value is None.
    """
    p = Parser(
        description=description.split("\n")[0],
        epilog="\n".join(f"recipe {name}: {_words(row)}" for name, row in RECIPES.items()),
    )
    for add in (_data_options, _training_options, _attack_options, _running_options):
        add(p)
    restrict_data(p)
    p.restrict("--beta", to="--method trades", when=lambda args: args.method == "trades")
    p.restrict(
        *("--steps", "--step-size", "--random-start", "--use-best"),
        to="an adversarial --method",
        when=lambda args: args.method != "standard" or args.eps,  # both: see `_method_and_eps`
    )
    return p


def _data_options(p: Parser) -> None:
    add = p.add_argument_group("network and data").add_argument
    add(
        "--arch",
        metavar="NAME",
        default="resnet50",
        help=f"network: {TIMM}NAME for timm's, or one of torchvision's: {', '.join(ARCHS)}",
    )
    add("--dataset", choices=tuple(DATASETS), default="imagenet", help="dataset to train on")
    add_data(add)
    add(
        "--image-size",
        type=cli.count,
        metavar="N",
        help="height and width of the images in pixels (default: the dataset's)",
    )
    cli.add_image_range(add)
    add_limits(add)
    add(
        "--held-out",
        type=cli.share,
        metavar="SHARE",
        default=0.0,
        help="fraction of each class of the training images, in [0, 1), to test on instead of the "
        "test images; use it to choose hyperparameters",
    )
    add("--output", type=cli.path, metavar="DIR", required=True, help="folder for this run")


def _training_options(p: Parser) -> None:
    add = p.add_argument_group("training").add_argument
    add(
        "--recipe",
        choices=tuple(RECIPES),
        help="source of the defaults below (default: the dataset's recipe)",
    )
    add(
        "--method",
        choices=tuple(METHOD_DEFAULTS),
        help="training method (default: pgd; standard with --eps 0)",
    )
    add(
        "--lr",
        type=cli.positive,
        help="peak learning rate (default: the recipe's, times --batch-size / its batch size)",
    )
    recipe = dict.fromkeys(OPTIMIZATION, "the recipe's")
    add_optimization(
        add,
        recipe
        | {
            "epochs": "the recipe's; --method free has the same number of updates in fewer passes",
            "lr_schedule": "the recipe's; cyclic for --method fast",
            "augmentation": "the dataset's",
            "accumulate": TrainSettings.accumulate,
        },
    )
    add(
        "--seed",
        type=cli.seed,
        metavar="N",
        default=0,
        help="random seed for weights, image order, augmentation and attacks",
    )


def _attack_options(p: Parser) -> None:
    add = p.add_argument_group("training attack").add_argument
    add("--constraint", choices=CONSTRAINTS, help="norm of the ball (default: the recipe's)")
    add(
        "--eps",
        type=cli.radius,
        help="radius of the ball for images in [0, 1]: L2 norm over the image, or L-infinity such "
        "as 4/255; 0: standard training (default: the recipe's; for its other norm 3 or 4/255)",
    )
    add(
        "--steps",
        type=cli.count,
        metavar="N",
        help="gradient steps; for --method free the updates per batch (default: the method's)",
    )
    add(
        "--step-size",
        type=cli.positive,
        metavar="SIZE",
        help="length of one step, in the unit of --eps (default: the method's)",
    )
    add(
        "--random-start",
        action=argparse.BooleanOptionalAction,
        help="start at a random point of the ball (default: the method's)",
    )
    add(
        "--use-best",
        action=argparse.BooleanOptionalAction,
        help="train on the step with the highest loss instead of the last one (default: the "
        "method's)",
    )
    add(
        "--beta",
        type=cli.positive,
        default=6.0,
        help="weight of the KL divergence in --method trades",
    )
    add = p.add_argument_group("evaluation attack").add_argument
    add(
        "--eval-eps",
        type=cli.positive,
        metavar="EPS",
        help="radius of the ball, in the unit of --eps (default: --eps; for a standard model 1.0 "
        "for l2 and 8/255 for linf)",
    )
    add(
        "--eval-steps",
        type=cli.count,
        metavar="N",
        default=10,
        help="gradient steps, each of length 2.5 * radius / steps",
    )


def _running_options(p: Parser) -> None:
    add = p.add_argument_group("running").add_argument
    add(
        "--resume",
        choices=("auto", "must"),
        nargs="?",
        const="auto",
        help="resume the unfinished run in --output; auto: start a new run if nothing is there",
    )
    add_running(add)
    add("--sync-bn", action="store_true", help="share BatchNorm statistics between processes")


def _words(row: Recipe) -> str:
    return (
        f"{row.constraint} eps {show_eps(row.constraint, row.eps)}, {row.epochs} epochs, "
        f"batch size {row.batch_size}, lr {row.lr:g} {row.lr_schedule}, {row.optimizer}, "
        f"weight decay {row.weight_decay:g}"
    )


def make_settings(args: argparse.Namespace) -> PretrainSettings:
    """Complete the options with the defaults of the dataset, the recipe and the method.

    Raises:
        UserError: options contradict each other.
    """
    row = DATASETS[args.dataset]
    recipe_name = args.recipe or row.recipe
    recipe = RECIPES[recipe_name]
    method_name, eps = _method_and_eps(args, recipe)
    constraint = args.constraint or recipe.constraint
    check_eps("--eps", constraint, eps)
    method = METHOD_DEFAULTS[method_name]
    if method_name == "pgd" and recipe.steps and recipe.step_size:
        method = replace(method, steps=recipe.steps, step_size=recipe.step_size)
    batch_size = args.batch_size or recipe.batch_size
    train = TrainSettings(
        method=method_name,
        attack=replace(method.attack(constraint, eps), **given(args, ATTACK)),
        beta=args.beta,
        lr=args.lr or scaled_lr(recipe, batch_size),
        augmentation=row.augmentation,
        seed=args.seed,
        precision=args.precision,
        **training_defaults(recipe)
        | {"batch_size": batch_size, "lr_schedule": method.lr_schedule or recipe.lr_schedule},
    )
    eval_eps = args.eval_eps or eps or STANDARD_EVAL_EPS[constraint]
    check_eps("--eval-eps", constraint, eval_eps)
    return PretrainSettings(
        arch=check_name(args.arch),
        dataset=args.dataset,
        image_size=args.image_size or row.image_size,
        image_range=args.image_range,
        statistics=row.statistics,
        limit=args.limit,
        test_limit=args.test_limit,
        held_out=args.held_out,
        recipe=recipe_name,
        train=replace(train, **given(args, OPTIMIZATION)),
        evaluation=evaluation_attack(constraint, eval_eps, args.eval_steps),
        sync_bn=args.sync_bn,
        deterministic=args.deterministic,
    )


def _method_and_eps(args: argparse.Namespace, recipe: Recipe) -> tuple[str, float]:
    """Return the method and eps. Standard training and eps 0 require each other."""
    method, eps = args.method, args.eps
    if method is None:
        method = "standard" if eps == 0 else "pgd"
    if eps is None:
        usual = (OTHER_EPS | {recipe.constraint: recipe.eps})[args.constraint or recipe.constraint]
        eps = 0.0 if method == "standard" else usual
    if (method == "standard") != (eps == 0):
        raise UserError(
            f"--method {method} with --eps {eps:g}: standard training has eps 0, the other methods "
            "an eps above 0. Omit one of the two options."
        )
    return method, eps
