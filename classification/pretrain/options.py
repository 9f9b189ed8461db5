"""The options of `classification.pretrain`, and what they decide together with the tables."""

import argparse
import math
from functools import partial
from pathlib import Path

# torch, and what imports it, waits for `settings`: --help is to come at once.
from classification import options
from classification.datasets.specs import DATASETS
from classification.training.recipes import RECIPES, Recipe, scaled_lr
from classification.training.schedules import SCHEDULES
from robust_backbones.core.cli import Parser
from robust_backbones.core.eps import STEP_FACTOR, check_eps
from robust_backbones.core.errors import UserError
from robust_backbones.zoo import ARCHS

# Radius at which a standard model's robust accuracy is measured, where --eval-eps does not say.
STANDARD_EVAL_EPS = {"l2": 1.0, "linf": 8 / 255}
METHODS = ("standard", "pgd", "free", "fast", "trades")
AUGMENTATIONS = ("none", "shift2", "crop4_flip", "crop4_flip_color", "imagenet", "imagenet_plain")
PRECISIONS = ("float32", "bfloat16", "float16")
RECIPE = "the recipe's"


def parser(description: str) -> Parser:
    """Options without a default of their own are absent unless given: a table decides on them."""
    p = Parser(
        "python -m classification.pretrain",
        description=description.split("\n")[0],
        argument_default=argparse.SUPPRESS,
        epilog="\n".join(f"recipe {name}: {_words(row)}" for name, row in RECIPES.items()),
    )
    for add in (_data_options, _training_options, _attack_options, _running_options):
        add(p)
    return p


def _data_options(p: Parser) -> None:
    what = p.add_argument_group("what").add_argument
    what("--arch", choices=tuple(ARCHS), default="resnet50", help="network")
    what("--dataset", choices=tuple(DATASETS), default="imagenet", help="what to train on")
    what(
        "--data",
        help="where the data set lies: a path, or for shards a URL too (default: none; "
        "embedded ones need none)",
    )
    what(
        "--image-size",
        type=options.count,
        help="height and width of the images, pixels (default: the data set's)",
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
        "--held-out",
        type=options.share,
        default=0.0,
        help="part of each class of the training images to test on instead of the test images, "
        "in [0, 1): choose settings with it",
    )
    what("--output", type=Path, required=True, help="folder for this run, a path")


def _training_options(p: Parser) -> None:
    how = p.add_argument_group("training").add_argument
    how(
        "--recipe",
        choices=tuple(RECIPES),
        help="where the defaults below come from (default: the data set's)",
    )
    how("--method", choices=METHODS, help="default: pgd; standard with --eps 0")
    how(
        "--epochs",
        type=options.count,
        help=f"passes over the training images, a count; free makes as many updates in fewer "
        f"passes (default: {RECIPE})",
    )
    how(
        "--batch-size",
        type=options.batch,
        help=f"images per update, all processes together, at least 2 (default: {RECIPE})",
    )
    how(
        "--lr",
        type=options.positive,
        help=f"highest learning rate, per update (default: {RECIPE}, times --batch-size / its "
        "batch size)",
    )
    how("--lr-schedule", choices=tuple(SCHEDULES), help=f"default: {RECIPE}; cyclic for fast")
    how(
        "--warmup",
        type=options.radius,
        help=f"epochs over which the rate rises, a number (default: {RECIPE})",
    )
    how("--momentum", type=options.fraction, help=f"of SGD, in (0, 1) (default: {RECIPE})")
    how(
        "--weight-decay",
        type=options.radius,
        help=f"L2 penalty on all parameters, a factor (default: {RECIPE})",
    )
    how("--augmentation", choices=AUGMENTATIONS, help="default: the data set's")
    how("--label-smoothing", type=options.share, default=0.0, help="in [0, 1)")
    how(
        "--ema",
        type=options.share,
        default=0.0,
        help="decay per update of averaged weights, which are then evaluated and kept; 0: none",
    )
    how("--seed", type=options.seed, default=0, help="of weights, order, images, attack, a number")


def _attack_options(p: Parser) -> None:
    attack = p.add_argument_group("training attack").add_argument
    attack("--constraint", choices=tuple(STANDARD_EVAL_EPS), default="l2", help="norm of the ball")
    attack(
        "--eps",
        type=options.radius,
        help="radius, pixels in [0, 1] (L2: whole image); 4/255 is understood; 0: standard "
        f"training (default: {RECIPE}; for linf 4/255)",
    )
    attack(
        "--steps",
        type=options.count,
        help="a count; for free: updates per mini-batch (default: the method's)",
    )
    attack(
        "--step-size",
        type=options.positive,
        help="length of one step, unit of --eps (default: the method's multiple of eps)",
    )
    attack(
        "--random-start",
        action=argparse.BooleanOptionalAction,
        help="begin at a random point of the ball (default: the method's)",
    )
    attack(
        "--use-best",
        action=argparse.BooleanOptionalAction,
        help="of all steps the one with the highest loss, else the last (default: the method's)",
    )
    attack("--beta", type=options.positive, default=6.0, help="weight of TRADES' second term")
    test = p.add_argument_group("evaluation at the end").add_argument
    test(
        "--eval-eps",
        type=options.positive,
        help="radius of the attack, unit of --eps (default: --eps; for a standard model 1.0 for "
        "l2, 8/255 for linf)",
    )
    test(
        "--eval-steps",
        type=options.count,
        default=10,
        help="steps of the attack, a count; each is 2.5*radius/steps long",
    )


def _running_options(p: Parser) -> None:
    run = p.add_argument_group("running").add_argument
    run(
        "--resume",
        choices=("auto", "must"),
        nargs="?",
        const="auto",
        default=None,
        help="go on with an unfinished run in --output; auto: if there is one",
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
        help="processes that read images, for each training process; 0: it reads itself",
    )
    run(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of training and its attack; weights and projections are float32",
    )
    run(
        "--accumulate",
        type=options.count,
        default=1,
        help="pieces to cut each process's part of a mini-batch into, a count; saves memory",
    )
    run(
        "--sync-bn",
        action="store_true",
        default=False,
        help="BatchNorm over the images of all processes",
    )
    run("--compile", action="store_true", default=False, help="use torch.compile")
    run(
        "--deterministic",
        action="store_true",
        default=False,
        help="equal numbers in each run on the same GPUs too, slower",
    )


def _words(row: Recipe) -> str:
    return (
        f"eps {row.eps:g}, {row.epochs} epochs, batch {row.batch_size}, lr {row.lr:g} "
        f"{row.schedule}, weight decay {row.weight_decay:g}"
    )


def settings(args: argparse.Namespace) -> dict:
    """All that decides the numbers of the run, in plain JSON types."""
    from classification.training.methods import METHODS

    row = DATASETS[args.dataset]
    recipe_name = getattr(args, "recipe", row.recipe)
    recipe = RECIPES[recipe_name]
    method, eps = _method_and_eps(args, recipe)
    check_eps("--eps", args.constraint, eps)
    given = partial(getattr, args)
    attack = {"steps": 1, "step_size": 1.0, "random_start": False, "use_best": False}
    attack |= METHODS[method].attack
    attack["step_size"] *= eps
    attack = {name: given(name, value) for name, value in attack.items()}
    batch_size = given("batch_size", recipe.batch_size)
    epochs = given("epochs", recipe.epochs)
    return {
        "arch": args.arch,
        "dataset": args.dataset,
        "image_size": given("image_size", row.image_size),
        "limit": given("limit", None),
        "test_limit": given("test_limit", None),
        "held_out": args.held_out,
        "recipe": recipe_name,
        "method": method,
        "constraint": args.constraint,
        "eps": eps,
        **attack,
        "beta": args.beta,
        "epochs": epochs,
        # Shafahi et al. 2019: as many updates as the others make, not as many passes.
        "passes": math.ceil(epochs / METHODS[method].updates(attack)),
        "batch_size": batch_size,
        "optimizer": "sgd",
        "lr": given("lr", scaled_lr(recipe, batch_size)),
        "lr_schedule": given("lr_schedule", METHODS[method].schedule or recipe.schedule),
        "warmup": given("warmup", recipe.warmup),
        "momentum": given("momentum", recipe.momentum),
        "nesterov": recipe.nesterov,
        "weight_decay": given("weight_decay", recipe.weight_decay),
        "augmentation": given("augmentation", row.augmentation),
        "smoothing": args.label_smoothing,
        "ema": args.ema,
        "seed": args.seed,
        "precision": args.precision,
        "accumulate": args.accumulate,
        "sync_bn": args.sync_bn,
        "compile": args.compile,
        "deterministic": args.deterministic,
        "evaluation": _evaluation(args, eps),
    }


def _evaluation(args: argparse.Namespace, eps: float) -> dict:
    """The attack that the finished network is measured with."""
    eval_eps = getattr(args, "eval_eps", eps or STANDARD_EVAL_EPS[args.constraint])
    check_eps("--eval-eps", args.constraint, eval_eps)
    return {
        "attack": "pgd",
        "constraint": args.constraint,
        "eps": eval_eps,
        "steps": args.eval_steps,
        "step_size": STEP_FACTOR * eval_eps / args.eval_steps,
        # A confident model's gradient can vanish at the clean image; elsewhere it need not.
        "random_start": True,
        "use_best": True,
    }


def _method_and_eps(args: argparse.Namespace, recipe: Recipe) -> tuple[str, float]:
    """Standard training and a radius of 0 are the same; each implies the other."""
    method, eps = getattr(args, "method", None), getattr(args, "eps", None)
    if method is None:
        method = "standard" if eps == 0 else "pgd"
    if eps is None:
        usual = {"l2": recipe.eps, "linf": 4 / 255}[args.constraint]
        eps = 0.0 if method == "standard" else usual
    if (method == "standard") != (eps == 0):
        raise UserError(
            f"--method {method} with --eps {eps:g}: standard training has eps 0, the other methods "
            "one above 0; leave one of the two out."
        )
    return method, eps
