"""Figure 4: detectors and segmenters on standard and robust backbones."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from classification.report import estimates, published, result_kinds, verdict_words
from classification.report.comparisons import Rules, judge_all
from classification.report.contents.parts import (
    Results,
    minus,
    pretraining_differs,
    series,
    warnings,
)
from classification.report.networks import is_twin, variant
from classification.report.records import Merged, Record
from classification.report.sections import Column, Figure, Kind, Row, Section, Series, StdDev, Value
from classification.report.verdict_words import (
    P_VALUE,
    VERDICT,
    WOULD_TELL,
    interval,
    verdict_cells,
)
from classification.report.verdicts import Verdict
from robust_backbones.core.detector_keys import CANDIDATES, EXPERIMENT
from robust_backbones.core.detector_tasks import TASKS
from robust_backbones.core.eps import show_eps
from robust_backbones.core.results import flatten

STANDARD = "standard"
SHOWN = 3  # maximum number of configuration keys in the description of an experiment
COLUMNS = [
    Column("experiment"),
    Column("metric"),
    Column("backbone"),
    Column("ap", "AP", Kind.ACCURACY),
    Column("runs", kind=Kind.COUNT),
    Column("difference", kind=Kind.DIFFERENCE),
    P_VALUE,
    VERDICT,
    WOULD_TELL,
    Column("paper_ap", "paper: AP", Kind.ACCURACY, paper=True),
    Column("minus_paper", "ours - paper", Kind.DIFFERENCE, paper=True),
]


@dataclass(frozen=True)
class Experiment:
    """Detectors that differ only in their initial weights, and in learning rates chosen for them.

    Attributes:
        name: key of the paper's numbers, such as `"coco_instance"`; a name of the same form if the
            paper has no such numbers.
        words: description that names the test set, detector and schedule.
        networks: mapping from the name of each backbone to its runs, with `STANDARD` first. Names
            of further standard backbones begin with `STANDARD`, too.
        named: whether the names of some backbones come only from labels or file names.
    """

    name: str
    words: str
    networks: dict[str, list[Merged]]
    named: bool


def figure4(results: Results) -> list[Section]:
    """Build Figure 4: each backbone's AP or mIoU, and its difference from the standard one."""
    found = experiments(results.of_kind("detection"))
    if not found:
        return []
    rows, panels = [], {}
    for experiment in found:
        for name, task in TASKS.items():
            if own := _rows(experiment, name, results.rules):
                rows += own
                panels[f"{experiment.words}, {task.title}"] = _bars(own)
    runs = [run for e in found for own in e.networks.values() for run in own]
    warned = warnings(runs)
    warned += [f"{e.words}: {words}" for e in found for words in cautions(e)]
    if any(e.named for e in found):
        warned.append(
            "Some backbones are known only from the labels of a study or the names of their files."
        )
    text = [
        "COCO's AP, or mIoU of semantic segmentation, percent: mean and standard deviation over "
        "runs with different seeds. "
        "Differences are from the standard backbone. Their intervals are over runs only and are "
        "about this test set. p-values are corrected for the number of robust backbones, because "
        "the paper shows the best of several. Detectors are compared only if they differ only in "
        "their weights. Learning rates may differ if each was chosen from the same candidates on "
        "held-out training images.",
        verdict_words.how(results.rules),
        *filter(None, map(_chosen_rates, found)),
        f"The paper's numbers: {published.numbers()['figure4']['definition'].strip()}. Its robust "
        "number is compared with our best one.",
    ]
    figure = Figure("figure4", "bars", "Detection and segmentation", "backbone", "AP, %", panels)
    return [
        Section(
            "figure4",
            "Figure 4: detection and segmentation",
            text,
            COLUMNS,
            rows,
            [figure],
            warned,
            len(rows),
            len(rows) + _lacking(found),
        )
    ]


def _lacking(found: list[Experiment]) -> int:
    """Count the paper's numbers that have no counterpart in our results.

    Returns:
        The count; 0 if no number of the paper has a counterpart.
    """
    sides = {
        (e.name, side)
        for e in found
        for network in e.networks
        for side in [STANDARD if is_standard(network) else "robust"]
    }
    table = published.numbers()["figure4"]
    cells = [
        (name, side)
        for name, tasks in table.items()
        if isinstance(tasks, dict)
        for _ in tasks
        for side in (STANDARD, "robust")
    ]
    lacking = [cell for cell in cells if cell not in sides]
    return len(lacking) if len(lacking) < len(cells) else 0


def experiments(runs: list[Merged]) -> list[Experiment]:
    """Group the runs of detectors that differ only in their weights and chosen learning rates.

    The paper's experiments come first. Candidates for a learning rate belong to no experiment.
    """
    groups: dict[tuple, list[Merged]] = {}
    for run in runs:
        if not is_candidate(run.first):
            groups.setdefault((run.first.dataset, _recipe(run.first)), []).append(run)
    found = []
    for own in groups.values():
        first = own[0].first
        named = not all(result_kinds.named(run.first.weights) for run in own)
        found.append(Experiment(_name(first), _words(first), _networks(own), named))
    found = _distinguished(found)
    order = [*published.numbers()["figure4"]]
    return sorted(found, key=lambda e: (e.name not in order, e.name, e.words))


def _networks(runs: list[Merged]) -> dict[str, list[Merged]]:
    """Map the name of each backbone to its runs, with the variant if several have the same eps.

    Of several standard backbones, a twin of a robust one is called `STANDARD`, else the first.
    """
    by_name: dict[str, dict[str, list[Merged]]] = {}
    for run in runs:
        own = by_name.setdefault(_network(run.first), {})
        own.setdefault(variant(run.first), []).append(run)
    robust = [run.first for run in runs if _network(run.first) != STANDARD]
    twins = {variant(record) for record in robust} | {
        variant(run.first)
        for run in runs
        for record in robust
        if is_twin(record.weights, run.first.weights)
    }
    found = {}
    for name, variants in by_name.items():
        ordered = sorted(variants.items(), key=lambda item: (item[0] not in twins, item[0]))
        for number, (words, own) in enumerate(ordered):
            plain = len(variants) == 1 or (name == STANDARD and number == 0)
            found[name if plain else f"{name} ({words})".replace(" ()", "")] = own
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def is_candidate(record: Record) -> bool:
    """Return whether a detector was evaluated on held-out training images."""
    return bool(record.settings.get("DATASETS", {}).get("HELD_OUT"))


def _rates(record: Record) -> dict:
    """Return the section `SOLVER.CANDIDATES`; empty if the learning rate was not chosen."""
    found = record.settings.get("SOLVER", {}).get("CANDIDATES") or {}
    return found if found.get("RATES") else {}


def _chosen_rates(experiment: Experiment) -> str:
    """Describe the learning rates that were chosen per backbone; empty if they were set."""
    if not (candidates := _rates(_first(experiment))):
        return ""
    chosen = {n: _rates(runs[0].first)["CHOSEN"] for n, runs in experiment.networks.items()}
    return (
        f"{experiment.words}: learning rate chosen per backbone from {_listed(candidates)} on "
        f"{candidates['HELD_OUT']:.0%} of the training images, which were held out: "
        + ", ".join(f"{network} {rate:g}" for network, rate in chosen.items())
        + "."
    )


def _listed(candidates: dict) -> str:
    return ", ".join(f"{rate:g}" for rate in candidates["RATES"])


def cautions(experiment: Experiment) -> list[str]:
    """List reasons not to quote the differences of the backbones unchanged, one sentence each."""
    found = []
    for network, runs in experiment.networks.items():
        candidates = _rates(runs[0].first)
        ends = candidates["RATES"][:1] + candidates["RATES"][-1:] if candidates else []
        if candidates and candidates["CHOSEN"] in ends:
            side = "smaller" if candidates["CHOSEN"] == ends[0] else "larger"
            found.append(
                f"The learning rate of {network}, {candidates['CHOSEN']:g}, is at the end of the "
                f"candidates ({_listed(candidates)}). A {side} one may be better."
            )
    firsts = {network: runs[0].first for network, runs in experiment.networks.items()}
    found += pretraining_differs(firsts.values())
    others = [network for network in firsts if is_standard(network)]
    if others[1:]:
        found.append(
            f"Differences are from the standard backbone {firsts[others[0]].weights}. The figure "
            f"also has {', '.join(others[1:])}."
        )
    rate = flatten(_first(experiment).settings).get("SOLVER.BASE_LR")
    if len(experiment.networks) > 1 and not _rates(_first(experiment)) and rate is not None:
        found.append(
            f"All backbones have the learning rate {rate:g}. It was not chosen for each of them, "
            "and may favor one."
        )
    return found


def _distinguished(found: list[Experiment]) -> list[Experiment]:
    """Extend equal descriptions of experiments by the configuration keys that differ."""
    distinguished = []
    for experiment in found:
        alike = [e for e in found if e.words == experiment.words]
        configs = {id(e): _compared(_first(e).settings) for e in alike}
        keys = sorted({key for config in configs.values() for key in config})
        own = configs[id(experiment)]
        differ = [k for k in keys if any(c.get(k) != own.get(k) for c in configs.values())]
        shown = [f"{key} {own.get(key)}" for key in differ[:SHOWN]]
        distinguished.append(replace(experiment, words=", ".join([experiment.words, *shown])))
    return distinguished


def _first(experiment: Experiment) -> Record:
    return next(iter(experiment.networks.values()))[0].first


def _network(record: Record) -> str:
    """Return the name of the backbone: `standard`, `eps 3`, or the user's name."""
    if record.eps is not None:
        return f"eps {show_eps(record.constraint, record.eps)}" if record.eps else STANDARD
    # The user's own weights are named after the study's label, or else after their folder.
    label = str(record.labels.get("weights") or Path(record.weights).parent.name or record.weights)
    return STANDARD if STANDARD in label.lower() else label


def is_standard(network: str) -> bool:
    """Return whether the name of a backbone, as in `Experiment.networks`, is a standard one's."""
    return network == STANDARD or network.startswith(f"{STANDARD} (")


def _order(network: str) -> tuple:
    number = None if is_standard(network) else re.search(r"[\d.]+", network)
    return (not is_standard(network), float(number[0]) if number else 0.0, network)


def _recipe(record: Record) -> str:
    """Hash the configuration, without the keys that may differ within an experiment."""
    text = json.dumps(_compared(record.settings), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _compared(config: dict) -> dict:
    """Flatten a configuration, and drop the keys that may differ within an experiment.

    A chosen learning rate is replaced by its candidates.
    """
    flat = flatten(config)
    found = {key: cell for key, cell in flat.items() if not key.startswith(EXPERIMENT)}
    if rates := flat.get(f"{CANDIDATES}.RATES"):
        share = flat[f"{CANDIDATES}.HELD_OUT"]
        found["SOLVER.BASE_LR"] = f"chosen from {', '.join(map(str, rates))} on {share:.0%}"
    return found


def _name(record: Record) -> str:
    known = re.match(r"voc|coco", record.dataset)
    kind = {"Mask R-CNN": "instance", "Faster R-CNN": "detection"}.get(_kind(record), "other")
    return f"{known[0] if known else record.dataset}_{kind}"


def _kind(record: Record) -> str:
    model = record.settings["MODEL"]
    meta = model.get("META_ARCHITECTURE", "GeneralizedRCNN")
    if meta != "GeneralizedRCNN":
        return meta
    return "Mask R-CNN" if model.get("MASK_ON") else "Faster R-CNN"


def _words(record: Record) -> str:
    iterations = _compared(record.settings).get("SOLVER.MAX_ITER")
    schedule = f", {iterations} iterations" if iterations else ""
    return f"{record.dataset}, {_kind(record)}{schedule}"


def _aps(runs: list[Merged], task: str) -> dict[int, float]:
    """Map the seed of each run to its AP or mIoU, percent."""
    found = {}
    for run in runs:
        for (record, _), seed in zip(run.sources, run.seeds, strict=True):
            ap = record.metrics[record.dataset].get(task, {}).get(TASKS[task].main)
            if ap is not None:
                found.setdefault(seed, ap)
    return found


def verdicts(experiment: Experiment, task: str, rules: Rules) -> dict[str, Verdict]:
    """Map each robust backbone to the verdict on its metric compared with the standard backbone.

    Args:
        experiment: detectors that differ only in their initial weights.
        task: key of `TASKS`.
        rules: rules for verdicts.
    """
    aps = {n: own for n, runs in experiment.networks.items() if (own := _aps(runs, task))}
    standard = aps.pop(STANDARD, None)
    if not standard:
        return {}
    found = {
        n: estimates.from_accuracies(np.array([[*own.values()]]), np.array([[*standard.values()]]))
        for n, own in aps.items()
        if not is_standard(n)
    }
    return judge_all(found, rules, f"figure4 {experiment.words} {task}")


def _rows(experiment: Experiment, task: str, rules: Rules) -> list[Row]:
    aps = {n: own for n, runs in experiment.networks.items() if (own := _aps(runs, task))}
    judged = verdicts(experiment, task, rules)
    robust = [n for n in aps if not is_standard(n)]
    top = max(robust, key=lambda n: fmean(aps[n].values()), default=None)
    rows = []
    for network, own in aps.items():
        verdict = judged.get(network)
        side = "standard" if network == STANDARD else "robust" if network == top else None
        paper = _paper(experiment.name, task, side) if side else None
        ours = _over_runs(own, experiment.networks[network])
        rows.append(
            {
                "experiment": experiment.words,
                "metric": TASKS[task].title,
                "backbone": network,
                "ap": ours,
                "runs": len(own),
                "difference": interval(verdict),
                **verdict_cells(verdict),
                "paper_ap": paper,
                "minus_paper": minus(ours, paper),
            }
        )
    return rows


def _paper(name: str, task: str, side: str) -> Value | None:
    if (found := published.figure4(name, task, side)) is None:
        return None
    mean, sd = found
    if sd is None:
        return Value(mean)
    return Value(mean, StdDev(sd), published.numbers()["figure4"]["coco_runs"])


def _over_runs(aps: dict[int, float], runs: list[Merged]) -> Value:
    """Return the mean and the standard deviation of AP over runs."""
    spread = StdDev(stdev(aps.values())) if len(aps) > 1 else None
    indices = tuple(index for run in runs for index in run.indices)
    return Value(fmean(aps.values()), spread, len(aps), indices)


def _bars(rows: list[Row]) -> list[Series]:
    names = [row["backbone"] for row in rows]
    drawn = [series("ours", names, [row["ap"] for row in rows])]
    paper = [row["paper_ap"] for row in rows]
    if any(cell is not None for cell in paper):
        drawn.append(series("paper", names, paper, published=True))
    return drawn
