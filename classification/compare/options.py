"""Options of `robust-backbones compare`, and their conversion to settings."""

import argparse
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from classification.compare.settings import CLASSIFICATION, DETECTION, CompareSettings
from classification.datasets.specs import DATASETS, locate
from classification.study.options import Execution, add_execution, pair
from classification.training.options import add_limits
from classification.transfer.protocols import MODES
from robust_backbones.core import cli
from robust_backbones.core.cli import Parser
from robust_backbones.core.dataset_forms import FORMS, LAYOUTS
from robust_backbones.core.errors import UserError, nearest

WEIGHTS = tuple(f"robust://resnet50_l2_eps{eps}" for eps in (0, 1, 3))
TRIALS = 3
OUTPUT = Path("output", "compare")
_DETECTION_DATA = re.compile(rf"(?:[\w.-]+=)?(?:{'|'.join(FORMS)}):")
_IMAGES = ("--mode", "--data", "--image-size", "--limit", "--test-limit", "--shots")
_DETECTORS = ("--config", "--test", "--lr", "--iterations")


@dataclass(frozen=True)
class Request:
    """What one start of the command should do.

    Attributes:
        settings: settings of the comparison.
        output: folder for everything that the comparison writes.
        execution: where to execute the runs.
        plan: whether to stop after the estimate of the cost.
        more: whether to add the trials that the last report advises.
        command: command line without `--more`, for messages.
    """

    settings: CompareSettings
    output: Path
    execution: Execution
    plan: bool
    more: bool
    command: str


def parser(description: str) -> Parser:
    """Return the command's parser.

    Args:
        description: text at the top of `--help`.
    """
    p = Parser(description=description, epilog=LAYOUTS)
    for add in (_general_options, _image_options, _detector_options):
        add(p)
    add_execution(p)
    p.restrict(*_IMAGES, to="an image folder or a dataset name", when=_is_images)
    forms = ", ".join(f"{kind}:..." for kind in FORMS)
    p.restrict(*_DETECTORS, to=f"DATA as {forms}, or --test", when=_is_detection)
    return p


def _is_detection(args: argparse.Namespace) -> bool:
    return bool(args.test) or any(map(_DETECTION_DATA.match, args.data_sources))


def _is_images(args: argparse.Namespace) -> bool:
    return not _is_detection(args)


def _general_options(p: Parser) -> None:
    p.add_argument(
        "data_sources",
        type=cli.location,
        nargs="+",
        metavar="DATA",
        help="image folder, name of a dataset such as flowers (with --data), or for detectors "
        "coco:..., voc:..., yolo:... or a registered name with --test, or mask:... for semantic "
        "segmentation",
    )
    add = p.add_argument
    add(
        "--weights",
        type=cli.location,
        nargs="+",
        default=list(WEIGHTS),
        help="networks to compare, at least one standard and one robust: paths, published names or "
        "URLs",
    )
    add(
        "--pretrained-on",
        metavar="NAME",
        help="pretraining dataset of the networks whose files do not record it, such as imagenet "
        "(default: unknown)",
    )
    add("--trials", type=cli.count, default=TRIALS, help="trials of each network")
    add(
        "--more",
        action="store_true",
        help="add the trials that the last report advises where it cannot tell",
    )
    add("--plan", action="store_true", help="check the data, print the cost, and stop")
    add(
        "--margin",
        type=cli.amount,
        metavar="POINTS",
        help="largest difference in accuracy or AP that counts as no difference, percentage points "
        "(default: 1)",
    )
    add(
        "--set",
        type=pair,
        nargs="+",
        default=[],
        metavar="OPTION=VALUE",
        help="options for all runs: options of transfer, or config keys of detectors",
    )
    add(
        "--output",
        type=cli.path,
        metavar="DIR",
        help=f"folder for the study file, the runs and the report (default: {OUTPUT}/<name of "
        "DATA>)",
    )


def _image_options(p: Parser) -> None:
    add = p.add_argument_group("classification").add_argument
    add(
        "--mode",
        choices=MODES,
        default=MODES[0],
        help="train the last layer only, or the full network",
    )
    add(
        "--data",
        type=cli.location,
        metavar="DIR",
        help="folder that contains the named datasets (default: $ROBUST_BACKBONES_DATA)",
    )
    add(
        "--image-size",
        type=cli.count,
        help="height and width of the images in pixels (default: from the weights)",
    )
    add_limits(add)
    add(
        "--shots",
        type=cli.count,
        help="train on N images of each class, drawn again in each trial (default: all)",
    )


def _detector_options(p: Parser) -> None:
    add = p.add_argument_group("detection").add_argument
    add("--config", type=cli.location, metavar="FILE", help="config file for the detectors")
    add("--test", type=cli.location, metavar="DATA", help="test images, in the form of DATA")
    add(
        "--lr",
        type=cli.positive,
        nargs="+",
        help="learning rates to choose from for each backbone on held-out training images",
    )
    add("--iterations", type=cli.count, help="training iterations of each detector")


def make_request(args: argparse.Namespace, arguments: Sequence[str]) -> Request:
    """Build the request from the parsed options.

    Args:
        args: parsed options.
        arguments: the arguments as the user typed them.

    Raises:
        UserError: the options contradict each other.
    """
    kind = kind_of(args.data_sources, args.test or "")
    settings = CompareSettings(
        kind=kind,
        data=tuple(args.data_sources),
        weights=tuple(args.weights),
        trials=args.trials,
        margin=args.margin,
        pretrained_on=args.pretrained_on or "",
        changes=tuple((_option(kind, name), value) for name, value in args.set),
        mode=args.mode if kind == CLASSIFICATION else "",
        root=args.data,
        image_size=args.image_size,
        limit=args.limit,
        test_limit=args.test_limit,
        shots=args.shots,
        config=args.config or "",
        test=args.test or "",
        learning_rates=tuple(args.lr or ()),
        iterations=args.iterations,
    )
    if kind == CLASSIFICATION:
        for text in settings.data:
            _check_exists(text, settings.root)
    if args.plan and args.more:
        raise UserError("--plan and --more exclude each other. Remove one of them.")
    output = args.output or OUTPUT / name_of(settings.data)
    kept = shlex.join(word for word in arguments if word not in ("--plan", "--more"))
    command = f"{cli.program_name()} {kept}"
    return Request(settings, output, Execution.of(args), args.plan, args.more, command)


def _option(kind: str, name: str) -> str:
    """Return an option as `--help` spells it. Config keys of detectors stay unchanged."""
    return name if kind == DETECTION else name.lstrip("-").replace("_", "-")


def _check_exists(text: str, root: str | None) -> None:
    """Check that a task is a known dataset with a path, or an existing file or folder."""
    if text in DATASETS:
        locate(text, root)
    elif "://" not in text and not os.path.exists(text):
        near = nearest(text, DATASETS)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(
            f"DATA {text}: no file or folder has this path, and no dataset has this name.{hint} "
            "Give an image folder, or list the names with: robust-backbones datasets list"
        )


def kind_of(data: list[str], test: str = "") -> str:
    """Return the kind of data, `CLASSIFICATION` or `DETECTION`.

    Args:
        data: descriptions of the data.
        test: separate test set, which only detectors have; empty: none.

    Raises:
        UserError: the data have different kinds.
    """
    detection = [text for text in data if _DETECTION_DATA.match(text)]
    other = next((text for text in data if text not in detection), "")
    if other and test and os.path.isdir(other):
        raise UserError(
            f"--test {test}: DATA {other} is an image folder, which contains its own test images "
            f"in {other}/test. Remove --test."
        )
    if detection and other:
        raise UserError(
            f"DATA {detection[0]} is for detectors, but {other} is for classifiers. Compare them "
            "in separate commands."
        )
    return DETECTION if detection or test else CLASSIFICATION


def name_of(data: tuple[str, ...]) -> str:
    """Return a name for the output folder of a comparison, from the names of its data."""
    return re.sub(r"[^\w.+=-]+", "_", "+".join(map(short_name, data))).strip(".")[:100] or "data"


def short_name(text: str) -> str:
    """Return a short name for data: the name of its dataset, its folder or its file."""
    if _DETECTION_DATA.match(text):
        if "=" in text:
            return text.partition("=")[0]
        path = Path(text.split(":")[1]).resolve()
        return path.parent.name if path.suffix else path.name  # a data.yaml is in its dataset
    return re.sub(r"\.\w{1,4}$", "", Path(text).resolve().name) or "data"
