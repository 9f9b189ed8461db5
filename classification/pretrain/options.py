"""Parse the options of `classification.pretrain`, and combine them with recipes into settings."""

import argparse
from dataclasses import replace

from classification.datasets.options import add_data, by_dataset, dataset_name, restrict_data
from classification.datasets.specs import DATASETS
from classification.pretrain.settings import PretrainSettings
from classification.training.options import (
    OPTIMIZATION,
    add_limits,
    add_optimization,
    add_running,
    given,
    recipe_defaults,
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
    p = Parser(description=description)
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
    add(
        "--dataset",
        type=dataset_name,
        choices=tuple(DATASETS),
        default="imagenet",
        help="dataset to train on",
    )
    add_data(add)
    add(
        "--image-size",
        type=cli.count,
        help=f"height and width of the images in pixels (default: {by_dataset('image_size')})",
    )
    cli.add_image_range(add)
    add_limits(add)
    add(
        "--held-out",
        type=cli.share,
        default=0.0,
        help="fraction of the training images of each class, in [0, 1), to test on instead of the "
        "test images; use it to choose hyperparameters",
    )
    add("--output", type=cli.path, metavar="DIR", required=True, help="folder for this run")


def _training_options(p: Parser) -> None:
    add = p.add_argument_group("training").add_argument
    add(
        "--recipe",
        choices=tuple(RECIPES),
        help=f"source of the defaults below (default: {by_dataset('recipe')})",
    )
    add(
        "--method",
        choices=tuple(METHOD_DEFAULTS),
        help="training method (default: pgd; standard with --eps 0)",
    )
    add(
        "--lr",
        type=cli.positive,
        help=f"peak learning rate (default: {_by_recipe('lr')}, each times --batch-size / the "
        "recipe's batch size)",
    )
    add_optimization(
        add,
        recipe_defaults(RECIPES)
        | {
            "epochs": f"{_by_recipe('epochs')}. --method free has the same number of updates in "
            "fewer passes",
            "lr_schedule": f"{_by_recipe('lr_schedule')}, cyclic for --method fast",
            "augmentation": by_dataset("augmentation"),
        },
    )
    add(
        "--seed",
        type=cli.seed,
        default=0,
        help="random seed for weights, image order, augmentation and attacks",
    )


def _attack_options(p: Parser) -> None:
    add = p.add_argument_group("training attack").add_argument
    add(
        "--constraint",
        choices=CONSTRAINTS,
        help=f"norm of the ball (default: {_by_recipe('constraint')})",
    )
    add(
        "--eps",
        type=cli.eps,
        help="radius of the ball for images in [0, 1]: L2 norm over the image, or L-infinity such "
        "as 4/255; 0: standard training (default: "
        + cli.by_kind({name: show_eps(row.constraint, row.eps) for name, row in RECIPES.items()})
        + ". With another --constraint than the recipe's: 3 for l2, 4/255 for linf)",
    )
    add(
        "--steps",
        type=cli.count,
        help="gradient steps; for --method free the updates per batch "
        f"(default: {_by_method('steps')})",
    )
    add(
        "--step-size",
        type=cli.positive_eps,
        help="length of one step, in the unit of --eps (default: eps times "
        f"{_by_method('step_size')})",
    )
    add(
        "--random-start",
        action=argparse.BooleanOptionalAction,
        help=f"start at a random point of the ball (default: {_by_method('random_start')})",
    )
    add(
        "--use-best",
        action=argparse.BooleanOptionalAction,
        help="train on the step with the highest loss instead of the last one "
        f"(default: {_by_method('use_best')})",
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
        type=cli.positive_eps,
        help="radius of the ball, in the unit of --eps (default: --eps; for a standard model 1 for "
        "l2 and 8/255 for linf)",
    )
    add(
        "--eval-steps",
        type=cli.count,
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


def _by_recipe(name: str) -> str:
    return recipe_defaults(RECIPES)[name]


def _by_method(name: str) -> str:
    """Return the defaults of a setting of the training attack, for the help."""
    values = {method: getattr(row, name) for method, row in METHOD_DEFAULTS.items()}
    values |= {f"--recipe {key}": getattr(row, name, None) for key, row in RECIPES.items()}
    del values["standard"]
    return cli.by_kind({key: value for key, value in values.items() if value is not None})


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
            f"--method {method} with --eps {eps:g}: standard training needs eps 0, and the other "
            "methods need an eps above 0. Omit one of the two options."
        )
    return method, eps
