"""Write an HTML page of annotations and detections, or a figure of training curves."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from robust_backbones import arithmetic
from robust_backbones.core import pages
from robust_backbones.core.errors import UserError
from robust_backbones.core.images import Decoding
from robust_backbones.detection import compat, config, run_checks
from robust_backbones.detection.data.mapper import decoding_of
from robust_backbones.detection.inspect import curves, gallery, semantic_pictures
from robust_backbones.detection.inspect.error_types import KINDS

TEMPLATE = "gallery.html.jinja"


@dataclass(frozen=True)
class View:
    """Options of the page.

    Attributes:
        output: folder of the page.
        config: config file of the detector; None without a detector.
        overrides: changes to all configs, `KEY VALUE` pairs in a flat list.
        dataset: registered dataset, or `NAME=...`; None for the first dataset of `DATASETS.TEST`.
        predictions: files of detections.
        second: config and weights of a second detector; None without a second detector. If the
            config is None, the first detector's config is used.
        truth_only: whether to draw only the annotations.
        names: headings of the detections. Missing headings are derived from the paths.
        images: number of random images of the dataset.
        seed: random seed for the choice of images.
        threshold: lowest score of a drawn detection, in [0, 1].
        errors: whether to classify errors.
        most_errors_first: whether to sort the images by their number of errors, descending.
        shown: number of images to draw; None for all images.
    """

    output: Path
    config: str | None
    overrides: list[str]
    dataset: str | None
    predictions: list[str]
    second: tuple[str | None, str] | None
    truth_only: bool
    names: list[str]
    images: int
    seed: int
    threshold: float
    errors: bool
    most_errors_first: bool
    shown: int | None


def draw_images(view: View) -> Path:
    """Draw the images, count the errors, and return the path of the page.

    Raises:
        UserError: a config, weight file, file of predictions or dataset is invalid.
    """
    compat.silence_detectron2()
    arithmetic.set_tf32(False)
    started = time.perf_counter()
    dataset, decoding, columns = _columns(view)
    rows = gallery.choose(dataset, view.images, view.seed)
    if view.errors:
        gallery.count_errors(rows, columns, view.threshold)
    if view.most_errors_first:
        rows.sort(key=lambda row: -row.errors)
    shown = rows[: view.shown]
    gallery.draw(shown, columns, dataset, view.output, view.threshold, decoding)
    if view.errors:
        gallery.write_errors(
            view.output / "errors.json",
            rows,
            columns,
            dataset,
            threshold=view.threshold,
            seed=view.seed,
            seconds=time.perf_counter() - started,
        )
    return write_page(
        view.output / "index.html",
        dataset=dataset,
        size=len(DatasetCatalog.get(dataset)),
        looked_at=len(rows),
        rows=shown,
        by_errors=view.most_errors_first,
        columns=columns,
        totals=gallery.totals(rows, columns) if view.errors else None,
        threshold=view.threshold,
        seed=view.seed,
        semantic=any(semantic_pictures.is_semantic(row.item) for row in rows),
    )


def write_page(path: Path, **contents: Any) -> Path:
    """Write the HTML page, which links to pictures in its folder, and return the page's path."""
    return pages.write(path, Path(__file__).with_name(TEMPLATE), kinds=KINDS, **contents)


def draw_curves(runs: list[str], output: Path) -> Path:
    """Draw the training curves of run folders, and return the path of the figure.

    Raises:
        UserError: a folder contains no readable metrics.json.
    """
    series = {name: curves.read(run) for name, run in zip(curves.labels(runs), runs, strict=True)}
    path = output / "curves.png"
    curves.draw(series, path)
    return path


def _columns(view: View) -> tuple[str, Decoding, list[gallery.Column]]:
    """Return the dataset's name, the decoder's settings, and a column per source of detections."""
    detector = view.config and not (view.predictions or view.truth_only)
    cfg = _load_config(view, view.config, None if detector else "")
    dataset = cfg.DATASETS.TEST[0]
    sources: list[Callable[[str], gallery.Column]] = []
    paths = []
    if detector:
        sources.append(partial(gallery.from_model, cfg=cfg, dataset=dataset))
        paths.append(cfg.MODEL.WEIGHTS)
    for file in view.predictions:
        sources.append(partial(gallery.from_file, path=file, dataset=dataset))
        paths.append(file)
    if view.second:
        path, weights = view.second
        other = _load_config(view, path or view.config, weights)
        if other.DATASETS.TEST != cfg.DATASETS.TEST:
            raise UserError(f"{path} is for another dataset. Choose one with --dataset.")
        sources.append(partial(gallery.from_model, cfg=other, dataset=dataset))
        paths.append(weights)
    names = [*view.names, *curves.labels(paths)[len(view.names) :]]
    if len(view.names) > len(sources) or len(set(names)) < len(names):
        raise UserError(f"--name {' '.join(names)}: give at most {len(sources)} different names.")
    columns = [make(name) for name, make in zip(names, sources, strict=True)]
    return dataset, decoding_of(cfg), columns


def _load_config(view: View, path: str | None, weights: str | None) -> CfgNode:
    """Load a detector's config. If `path` is None, return the default config with the dataset."""
    overrides = view.overrides if weights is None else [*view.overrides, "MODEL.WEIGHTS", weights]
    if path is None:
        cfg = config.dataset_config(view.dataset or "", overrides)
    else:
        chosen = [view.dataset] if view.dataset else []
        cfg = config.load_config(path, overrides, datasets={"TEST": chosen})
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty. Give --dataset.")
    cfg.DATASETS.TEST = cfg.DATASETS.TEST[:1]
    run_checks.set_device(cfg, 1)
    run_checks.check_inputs(cfg, train=False, overrides=overrides)
    return cfg
