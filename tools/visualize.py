#!/usr/bin/env python
"""Look: truth and predictions side by side, two detectors, kinds of errors, training curves.

    tools/visualize.py --output DIR --config C MODEL.WEIGHTS W              # truth and predictions
    tools/visualize.py --output DIR --config C MODEL.WEIGHTS W --compare V  # and another detector's
    tools/visualize.py --output DIR --dataset NAME --predictions coco_instances_results.json
    tools/visualize.py --output DIR --dataset NAME --truth-only
    tools/visualize.py --output DIR --curves RUN_FOLDER RUN_FOLDER          # DIR/curves.png

Writes DIR/index.html and its pictures; --errors says what is wrong with each prediction and counts.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone works uninstalled

from robust_backbones.core import resources as clone
from robust_backbones.core.cli import Parser
from robust_backbones.core.errors import UserError, user_errors


def parse(argv=None) -> argparse.Namespace:
    """The command line; `KEY VALUE` pairs may stand anywhere."""
    parser = Parser(description=__doc__)

    add = parser.add_argument
    add("--output", required=True, metavar="DIR", help="where to write")
    add(
        "--config",
        "--config-file",
        dest="config",
        metavar="FILE",
        help="of a trained detector, whose weights are MODEL.WEIGHTS",
    )
    add(
        "--dataset",
        metavar="NAME",
        help="a registered data set, or your own, NAME=coco:IMAGES:ANNOTATIONS.json or "
        "NAME=voc:ROOT:SPLIT (default: the first of DATASETS.TEST)",
    )
    add(
        "--compare",
        metavar="[CONFIG=]WEIGHTS",
        help="a second detector; of the same config unless another is given. KEY VALUE pairs hold "
        "for both",
    )
    add(
        "--predictions",
        action="append",
        default=[],
        metavar="FILE",
        help="take predictions from a coco_instances_results.json in place of a detector; may be "
        "given twice",
    )
    add("--truth-only", action="store_true", help="draw the annotations alone")
    add(
        "--name",
        action="append",
        default=[],
        metavar="NAME",
        help="heading of the first, then of the second predictions (default: their path)",
    )
    add(
        "--images",
        type=int,
        default=20,
        metavar="N",
        help="look at N images, chosen at random (default: 20)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of that choice (default: 0)")
    add(
        "--threshold",
        type=float,
        default=0.5,
        metavar="S",
        help="lowest score of a prediction, 0 to 1 (default: 0.5)",
    )
    add(
        "--errors",
        action="store_true",
        help="tell errors by kind (as TIDE): colours, a table, and errors.json",
    )
    add(
        "--sort",
        choices=("dataset", "errors"),
        default="dataset",
        help="order of the images; errors: most of them first (default: dataset)",
    )
    add("--show", type=int, metavar="K", help="draw the first K of the images only (default: all)")
    add("--curves", nargs="+", metavar="RUN", help="draw the curves of these runs' metrics.json")
    add("opts", nargs="*", metavar="KEY VALUE", help="overrides of the configuration")

    return parser.parse_intermixed_args(argv)


def check(args) -> None:
    """Refuse what contradicts itself.

    Raises:
        UserError: names the options.
    """
    show = args.images if args.show is None else args.show
    wrong = {
        "--threshold must lie in [0, 1]": not 0 <= args.threshold <= 1,
        "--images and --show must be at least 1, --seed at least 0": (
            args.images < 1 or show < 1 or args.seed < 0
        ),
        "--sort errors needs --errors": args.sort == "errors" and not args.errors,
        "--truth-only takes no --compare, --predictions or --errors": args.truth_only
        and (args.compare or args.predictions or args.errors),
        "give --config and MODEL.WEIGHTS, or --predictions, or --truth-only": not (
            args.config or args.predictions or args.truth_only
        ),
        "--compare needs --config, or its own as CONFIG=WEIGHTS": args.compare
        and not args.config
        and not _with_config(args.compare)[0],
        "without --config, --dataset is needed": not (args.config or args.dataset),
    }
    if args.curves:
        return
    for text, bad in wrong.items():
        if bad:
            raise UserError(f"{text}; see --help.")


def _with_config(text: str) -> tuple[str | None, str]:
    """CONFIG and WEIGHTS; a path of weights may have an equals sign of its own."""
    for ending in (".yaml=", ".yml="):
        config, found, weights = text.partition(ending)
        if found:
            return config + ending[:-1], weights
    return None, text


def configuration(args, path: str | None, weights: str | None):
    """The configuration of one detector, or with no weights that of the data set alone."""
    from detectron2.config import get_cfg

    from robust_backbones.detection import config
    from robust_backbones.detection.data import custom as own_data

    given = [] if weights is None else ["MODEL.WEIGHTS", weights]
    if path is None:
        cfg = get_cfg()
        config.add_robust_config(cfg)
        own = [args.dataset] if own_data.is_own(args.dataset) else []
        cfg.merge_from_list(["DATASETS.OWN", own, "DATASETS.TEST", (args.dataset.split("=")[0],)])
        try:
            cfg.merge_from_list([*args.opts, *given])
        except (KeyError, ValueError, AssertionError) as error:
            raise UserError(f"overrides: {' '.join(str(error.args[0]).split())}") from None
    else:
        chosen = [args.dataset] if args.dataset else []
        cfg = config.load_config(path, [*args.opts, *given], datasets={"TEST": chosen})
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty; give --dataset.")
    cfg.DATASETS.TEST = cfg.DATASETS.TEST[:1]
    config.set_device(cfg, 1)
    config.check_inputs(cfg, train=False)
    own_data.register(cfg)
    return cfg


def columns(args) -> tuple[str, list]:
    """The data set's name, and what predicts on it."""
    from robust_backbones.detection.inspect import gallery
    from robust_backbones.detection.inspect.curves import labels

    model = args.config and not (args.predictions or args.truth_only)
    cfg = configuration(args, args.config, None if model else "")
    dataset = cfg.DATASETS.TEST[0]
    sources = [lambda name: gallery.from_model(name, cfg, dataset)] if model else []
    paths = [cfg.MODEL.WEIGHTS] if model else []
    for file in args.predictions:
        sources.append(lambda name, file=file: gallery.from_file(name, file, dataset))
        paths.append(file)
    if args.compare:
        config, weights = _with_config(args.compare)
        other = configuration(args, config or args.config, weights)
        if other.DATASETS.TEST != cfg.DATASETS.TEST:
            raise UserError(f"{config} is for another data set; say which with --dataset.")
        sources.append(lambda name: gallery.from_model(name, other, dataset))
        paths.append(weights)
    names = [*args.name, *labels(paths)[len(args.name) :]]
    if len(args.name) > len(sources) or len(set(names)) < len(names):
        raise UserError(
            f"--name: give at most {len(sources)} names, and different ones; they are {names}."
        )
    return dataset, [source(name) for source, name in zip(sources, names, strict=True)]


def pictures(args) -> Path:
    """Look at the images, draw, count, and write the page."""
    from detectron2.data import DatasetCatalog

    from robust_backbones.detection.inspect import gallery

    started = time.perf_counter()
    dataset, found = columns(args)
    rows = gallery.choose(dataset, args.images, args.seed)
    if args.errors:
        gallery.count_errors(rows, found, args.threshold)
    if args.sort == "errors":
        rows.sort(key=lambda row: -row.errors)
    shown = rows[: args.show]
    gallery.draw(shown, found, dataset, args.output, args.threshold)
    facts = {"threshold": args.threshold, "seed": args.seed}
    if args.errors:
        file = Path(args.output, "errors.json")
        gallery.write_errors(
            file, rows, found, dataset, **facts, seconds=time.perf_counter() - started
        )
    return write_page(
        Path(args.output, "index.html"),
        dataset=dataset,
        size=len(DatasetCatalog.get(dataset)),
        looked_at=len(rows),
        rows=shown,
        by_errors=args.sort == "errors",
        columns=found,
        totals=gallery.totals(rows, found) if args.errors else None,
        **facts,
    )


def write_page(path: Path, **contents) -> Path:
    """One HTML page; its pictures lie beside it."""
    from robust_backbones.core import pages
    from robust_backbones.detection.inspect.error_types import KINDS

    template = Path(__file__).with_name("visualize.html.jinja")
    return pages.write(path, template, kinds=KINDS, **contents)


def curves(args) -> Path:
    """Draw the curves of all runs."""
    from robust_backbones.detection.inspect import curves as library

    names = library.labels(args.curves)
    runs = {name: library.read(run) for name, run in zip(names, args.curves, strict=True)}
    path = Path(args.output, "curves.png")
    library.draw(runs, path)
    return path


def main(argv=None) -> None:
    """Draw what is asked for; print where it is."""
    args = parse(argv)
    with user_errors():
        check(args)
        if args.config:
            clone.detector_config(args.config)
        from robust_backbones.detection import compat

        compat.silence_detectron2()
        print((curves if args.curves else pictures)(args).resolve().as_uri())


if __name__ == "__main__":
    main()
