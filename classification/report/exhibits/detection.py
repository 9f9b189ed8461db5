"""Figure 4: detectors and segmenters on standard and robust backbones."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from classification.report import estimates, published, verdict_words
from classification.report.comparisons import Rules, judge_all
from classification.report.exhibits.parts import (
    Results,
    columns,
    minus,
    series,
    warnings,
    without_paper,
)
from classification.report.records import Merged, Record
from classification.report.sections import Figure, Section, Value
from classification.report.verdict_words import COLUMN, interval, outcome, would_tell
from robust_backbones import zoo
from robust_backbones.core.eps import show_eps

TASKS = {"bbox": "box AP", "segm": "mask AP"}
STANDARD = "standard"
SD = "standard deviation over runs"
SHOWN = 3  # keys that tell experiments apart
# Parts of a detector's configuration on which none of its numbers depends, or only its weights.
_FREE = re.compile(
    r"OUTPUT_DIR|SEED|VIS_PERIOD|DATALOADER|CUDNN_BENCHMARK|VERSION|MODEL\.WEIGHTS|MODEL\.DEVICE|"
    r"TEST\.EVAL_PERIOD|SOLVER\.CHECKPOINT_PERIOD"
)


@dataclass(frozen=True)
class Experiment:
    """Detectors that differ in the weights that they started from.

    Attributes:
        name: key of the paper's numbers, such as `"coco_instance"`, or of that form.
        words: test set, kind and schedule.
        networks: name -> its runs, one for each seed; `STANDARD` first.
        named: networks are known by the names of their files alone.
    """

    name: str
    words: str
    networks: dict[str, list[Merged]]
    named: bool


def figure4(results: Results) -> list[Section]:
    """AP of each network, and its difference from the standard one."""
    found = _experiments(results.of_kind("detection"))
    if not found:
        return []
    rows, panels = [], {}
    for experiment in found:
        for task, title in TASKS.items():
            if own := _rows(experiment, task, results.rules):
                rows += own
                panels[f"{experiment.words}, {title}"] = _bars(experiment, task, own)
    runs = [run for e in found for own in e.networks.values() for run in own]
    warned = warnings(runs)
    if any(e.named for e in found):
        warned.append(
            "What some backbones are is known from the labels of a study, or the names "
            "of their files, alone."
        )
    text = [
        "COCO's AP, percent: mean and standard deviation over runs with different seeds. "
        "Differences are from the standard backbone. Their intervals are over runs alone and are "
        "about this test set. p-values are corrected for the number of robust backbones, because "
        "the paper shows the best of several. Detectors are compared only if nothing but their "
        "weights differs.",
        verdict_words.how(results.rules),
        f"The paper's: {published.numbers()['figure4']['definition'].strip()}; its robust number "
        "stands beside our best one.",
    ]
    numbers = [("AP", 2), ("runs", 0), ("difference", 2), ("p, corrected", 4)]
    theirs = [("paper: AP", 2), ("ours - paper", 2)]
    heads = columns("experiment", "metric", "backbone", *numbers, COLUMN, "would tell", *theirs)
    figure = Figure("figure4", "bars", "Detection and segmentation", "backbone", "AP, %", panels)
    heads, rows = without_paper(heads, rows)
    return [
        Section(
            "figure4",
            "Figure 4: detection and segmentation",
            text,
            heads,
            rows,
            [figure],
            warned,
            len(rows),
            len(rows) + _lacking(found),
        )
    ]


def _lacking(found: list[Experiment]) -> int:
    """Numbers of the paper's table that have none of ours beside them; 0 if none has."""
    sides = {
        (e.name, side)
        for e in found
        for network in e.networks
        for side in [STANDARD if network == STANDARD else "robust"]
    }
    table = published.numbers()["figure4"]
    cells = [
        (name, side)
        for name, tasks in table.items()
        if isinstance(tasks, dict)
        for _ in tasks
        for side in (STANDARD, "robust")
    ]
    lost = [cell for cell in cells if cell not in sides]
    return len(lost) if len(lost) < len(cells) else 0


def _experiments(runs: list[Merged]) -> list[Experiment]:
    groups: dict[tuple, dict[str, list[Merged]]] = {}
    for run in runs:
        network = _network(run.first)
        place = groups.setdefault((run.first.dataset, _recipe(run.first)), {})
        place.setdefault(network, []).append(run)
    found = []
    for networks in groups.values():
        first = next(iter(networks.values()))[0].first
        ordered = dict(sorted(networks.items(), key=lambda item: _order(item[0])))
        weights = [run.first.weights for own in networks.values() for run in own]
        named = not all(map(zoo.known, weights))
        found.append(Experiment(_name(first), _words(first), ordered, named))
    found = _told_apart(found)
    order = [*published.numbers()["figure4"]]
    return sorted(found, key=lambda e: (e.name not in order, e.name, e.words))


def _told_apart(found: list[Experiment]) -> list[Experiment]:
    """Experiments that would be called the same get the keys in which their configurations
    differ."""
    told = []
    for experiment in found:
        alike = [e for e in found if e.words == experiment.words]
        configs = {id(e): _flat(_first(e).settings) for e in alike}
        keys = sorted({key for config in configs.values() for key in config})
        own = configs[id(experiment)]
        differ = [k for k in keys if any(c.get(k) != own.get(k) for c in configs.values())]
        shown = [f"{key} {own.get(key)}" for key in differ[:SHOWN]]
        told.append(replace(experiment, words=", ".join([experiment.words, *shown])))
    return told


def _first(experiment: Experiment) -> Record:
    return next(iter(experiment.networks.values()))[0].first


def _network(record: Record) -> str:
    """`standard`, `eps 3`, or a name of one's own."""
    if record.eps is not None:
        return f"eps {show_eps(record.constraint, record.eps)}" if record.eps else STANDARD
    # Of weights of one's own the study says what they are, or the folder that they lie in.
    label = str(record.labels.get("weights") or Path(record.weights).parent.name or record.weights)
    return STANDARD if STANDARD in label.lower() else label


def _order(network: str) -> tuple:
    number = re.search(r"[\d.]+", network)
    return (network != STANDARD, float(number[0]) if number else 0.0, network)


def _recipe(record: Record) -> str:
    text = json.dumps(_flat(record.settings), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _flat(node: dict, above: str = "") -> dict:
    flat = {}
    for key, cell in node.items():
        name = above + key
        if not _FREE.match(name):
            flat |= _flat(cell, f"{name}.") if isinstance(cell, dict) else {name: cell}
    return flat


def _name(record: Record) -> str:
    known = re.match(r"voc|coco", record.dataset)
    masks = record.settings["MODEL"].get("MASK_ON")
    return f"{known[0] if known else record.dataset}_{'instance' if masks else 'detection'}"


def _words(record: Record) -> str:
    config = record.settings
    kind = "Mask R-CNN" if config["MODEL"].get("MASK_ON") else "Faster R-CNN"
    iterations = _flat(config).get("SOLVER.MAX_ITER")
    schedule = f", {iterations} iterations" if iterations else ""
    return f"{record.dataset}, {kind}{schedule}"


def _values(runs: list[Merged], task: str) -> dict[int, float]:
    """Seed -> AP."""
    found = {}
    for run in runs:
        for (record, _), seed in zip(run.sources, run.seeds, strict=True):
            ap = record.metrics[record.dataset].get(task, {}).get("AP")
            if ap is not None:
                found.setdefault(seed, ap)
    return found


def _rows(experiment: Experiment, task: str, rules: Rules) -> list[list]:
    values = {n: v for n, runs in experiment.networks.items() if (v := _values(runs, task))}
    standard = values.get(STANDARD)
    found = {
        n: estimates.from_accuracies(np.array([[*v.values()]]), np.array([[*standard.values()]]))
        for n, v in values.items()
        if standard and n != STANDARD
    }
    verdicts = judge_all(found, rules, f"figure4 {experiment.words} {task}")
    robust = [n for n in values if n != STANDARD]
    top = max(robust, key=lambda n: fmean(values[n].values()), default=None)
    rows = []
    for network, own in values.items():
        verdict = verdicts.get(network)
        kind = "standard" if network == STANDARD else "robust" if network == top else None
        theirs = _paper(experiment.name, task, kind) if kind else None
        ours = _spread(own, experiment.networks[network])
        judged = [verdict and verdict.p, outcome(verdict)]
        rows.append(
            [
                experiment.words,
                TASKS[task],
                network,
                ours,
                len(own),
                interval(verdict),
                *judged,
                would_tell(verdict),
                theirs,
                minus(ours, theirs),
            ]
        )
    return rows


def _paper(name: str, task: str, kind: str) -> Value | None:
    if (found := published.figure4(name, task, kind)) is None:
        return None
    mean, sd = found
    if sd is None:
        return Value(mean)
    runs = published.numbers()["figure4"]["coco_runs"]
    return Value(mean, mean - sd, mean + sd, runs, (), SD)


def _spread(values: dict[int, float], runs: list[Merged]) -> Value:
    """Mean, and one standard deviation to both sides."""
    mean, places = fmean(values.values()), tuple(p for run in runs for p in run.places)
    if len(values) < 2:
        return Value(mean, trials=1, records=places)
    sd = stdev(values.values())
    return Value(mean, mean - sd, mean + sd, len(values), places, SD)


def _bars(experiment: Experiment, task: str, rows: list[list]) -> list:
    names = [row[2] for row in rows]
    drawn = [series("ours", names, [row[3] for row in rows])]
    if any(row[9] is not None for row in rows):
        drawn.append(series("paper", names, [row[9] for row in rows], published=True))
    return drawn
