"""Options that the training commands share.

This module does not import torch, because command-line parsers import it.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from classification.training.recipes import SCHEDULES, Recipe
from classification.training.settings import AUGMENTATIONS, OPTIMIZERS, TrainSettings
from robust_backbones.core import cli, precision

# Fields of `TrainSettings` for which `add_optimization` adds an option.
OPTIMIZATION = (
    "epochs",
    "batch_size",
    "lr_schedule",
    "warmup",
    "optimizer",
    "momentum",
    "weight_decay",
    "layer_decay",
    "drop_path",
    "augmentation",
    "label_smoothing",
    "ema",
    "accumulate",
    "compile",
)


def given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the options in `names` whose value is not None."""
    return {
        name: value for name, value in vars(args).items() if name in names and value is not None
    }


def recipe_defaults(recipes: Mapping[str, Recipe]) -> dict[str, str]:
    """Describe the default of each setting, such as `90 (paper), 5 (quick)`, for the help.

    Args:
        recipes: recipes by name. The default of other settings does not depend on the recipe.
    """
    own = {field.name for field in fields(Recipe)}
    settings = {f.name: cli.shown(f.default) for f in fields(TrainSettings) if f.name not in own}
    rows = {name: asdict(recipe) for name, recipe in recipes.items()}
    return settings | {
        name: cli.by_kind({recipe: row[name] for recipe, row in rows.items()}) for name in own
    }


def add_limits(add: Callable) -> None:
    """Add the options that limit the number of images.

    Args:
        add: `add_argument` of an option group.
    """
    add(
        "--limit",
        type=cli.count,
        help="train on at most N images, balanced over the classes (default: all)",
    )
    add(
        "--test-limit",
        type=cli.count,
        help="test on at most N images, balanced over the classes (default: all)",
    )


def add_optimization(add: Callable, defaults: dict[str, Any]) -> None:
    """Add the options of training. If the user omits an option, its value is None.

    Args:
        add: `add_argument` of an option group.
        defaults: `{field of TrainSettings: default, or description of the default}`, for the help.
    """

    def option(name: str, words: str, **more: Any) -> None:
        default = f" (default: {defaults[name]})"
        add(f"--{name.replace('_', '-')}", help=words + default, **more)

    option("epochs", "passes over the training images", type=cli.count)
    option("batch_size", "images per update over all processes, at least 2", type=cli.batch)
    option("lr_schedule", "learning-rate schedule", choices=tuple(SCHEDULES))
    option("warmup", "number of epochs of linear learning-rate warm-up", type=cli.amount)
    option("optimizer", "optimizer; adamw needs timm", choices=OPTIMIZERS)
    option("momentum", "momentum of SGD or AdamW's first beta, in (0, 1)", type=cli.fraction)
    option(
        "weight_decay",
        "factor of the L2 penalty on all trained parameters; AdamW: decoupled, and not on biases "
        "and norms",
        type=cli.amount,
    )
    option(
        "layer_decay",
        "AdamW: factor of the learning rate from each layer to the layer below it, in (0, 1]",
        type=cli.factor,
    )
    option(
        "drop_path",
        "probability of skipping the last residual block, in [0, 1); for timm networks",
        type=cli.share,
    )
    option("augmentation", "augmentation of the training images", choices=AUGMENTATIONS)
    option("label_smoothing", "label smoothing, in [0, 1)", type=cli.share)
    option(
        "ema",
        "decay per update of averaged weights, which are then evaluated and saved; 0: off",
        type=cli.share,
    )
    option(
        "accumulate",
        "split each process's part of a batch into N parts, to save memory",
        type=cli.count,
    )
    add("--compile", action="store_const", const=True, help="use torch.compile (default: no)")


def add_running(add: Callable) -> None:
    """Add the options that control how a command runs, such as its device.

    Args:
        add: `add_argument` of an option group.
    """
    add(
        "--precision",
        choices=tuple(precision.PRECISIONS),
        default=precision.DEFAULT,
        help="precision of training steps and features. Evaluations, probes and weights are "
        f"float32 or higher. {precision.MEANINGS}",
    )
    add(
        "--save-seconds",
        type=cli.amount,
        metavar="SECONDS",
        default=600.0,
        help="longest time between two checkpoints",
    )
    cli.add_device(add)
    cli.add_workers(add)
    add(
        "--deterministic",
        action="store_true",
        help="produce identical numbers in every run on the same GPUs, but slower",
    )
