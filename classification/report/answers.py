"""Answers of a report: one sentence for each question that the results can answer.

Each question compares robust with standard networks. It is about one transfer mode or about one
metric of detectors. Transfer is compared for one architecture, or for the best of several
architectures. Differences of several tasks are never averaged. The sentence names the tasks on
which robust networks gain or lose, and the tasks that need more data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from classification.report import comparisons
from classification.report.comparisons import Contest, Rules
from classification.report.contents.detection import cautions, experiments, is_standard, verdicts
from classification.report.contents.few_images import learning_curves, shown_groups, standard_needs
from classification.report.contents.parts import EMBEDDED, Results
from classification.report.groups import Group
from classification.report.records import Merged
from classification.report.sentences import NAMED, STANDARD, Names, sentence
from classification.report.verdict_words import advice
from classification.report.verdicts import Needed, Outcome, Verdict
from robust_backbones.core.detector_tasks import TASKS
from robust_backbones.core.eps import show_eps

# Phrase for each kind of condition.
SCOPES = {
    "attack": "under attack",
    "corruptions": "under corruptions",
    "shift": "under distribution shift",
}


@dataclass(frozen=True)
class Answer:
    """Answer to a question about robust and standard networks.

    Attributes:
        question: heading that names the comparison by mode, architecture and protocol.
        text: answer to the question. If there are no verdicts, the text names the missing results.
        unit: unit of the differences, such as `"points"` or `"points of box AP"`.
        verdicts: mapping from each task to the verdict on the robust networks; empty if the
            question has no answer.
        cautions: reasons not to quote the answer unchanged, one sentence each.
    """

    question: str
    text: str
    unit: str = "points"
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    cautions: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[Outcome, int]:
        """Number of tasks with each verdict."""
        found = [verdict.outcome for verdict in self.verdicts.values()]
        return {outcome: found.count(outcome) for outcome in Outcome}

    @property
    def only(self) -> Verdict | None:
        """Verdict of the only task, or None. Several tasks have no common estimate."""
        found = [*self.verdicts.values()]
        return found[0] if len(found) == 1 else None

    def __str__(self) -> str:
        return f"{self.question}: {self.text}"

    def json(self) -> dict[str, Any]:
        """Return the answer as plain values for `report.json`, with differences in points."""
        return {
            "question": self.question,
            "text": self.text,
            "unit": self.unit,
            "estimate": None if self.only is None else self.only.estimate.mean,
            "interval": None if self.only is None else _interval(self.only),
            "counts": {outcome.value: number for outcome, number in self.counts.items()},
            "tasks": [
                {
                    "task": task,
                    "estimate": verdict.estimate.mean,
                    "interval": _interval(verdict),
                    "p": verdict.p,
                    "alpha": verdict.alpha,
                    "margin": verdict.margin,
                    "verdict": verdict.outcome.value,
                    "would_tell": advice([verdict]),
                    "trials": _needed(verdict)[0],
                    "images": _needed(verdict)[1],
                }
                for task, verdict in self.verdicts.items()
            ],
            "cautions": list(self.cautions),
        }


def _interval(verdict: Verdict) -> list[float] | None:
    """Return the ends `[low, high]` of the interval in points, or None if there is no interval."""
    if verdict.low is None or verdict.high is None:
        return None
    return [verdict.low, verdict.high]


def _needed(verdict: Verdict) -> tuple[list[int] | None, list[int] | None]:
    """Return the ranges of trials and of test images that would tell; None: no such range."""
    needed = verdict.needed or Needed()
    return (
        list(needed.trials) if needed.trials else None,
        list(needed.images) if needed.images else None,
    )


def find_answers(results: Results) -> list[Answer]:
    """Answer every question of a report. Answers without verdicts come last."""
    found = []
    shown = shown_groups(results)
    for group in shown:
        found += _of_group(results, group)
    found += _of_detectors(results.of_kind("detection"), results.rules)
    for group in shown:
        found += _of_conditions(results, group)
        found += _of_few_images(results, group)
    found = found or [_nothing(results.runs)]
    return sorted(found, key=lambda answer: not answer.verdicts)


def _nothing(runs: list[Merged]) -> Answer:
    """Return the answer for results that contain no comparable transfer runs or detectors."""
    unknown = [run for run in runs if run.first.kind == "transfer"]
    if unknown:
        text = (
            f"{len(unknown)} transfer runs start from weights with unknown training. Use weights "
            "that record it, or published ones (robust://NAME)."
        )
    else:
        text = (
            "there are no results of classification.transfer or of detectors. Run robust and "
            "standard networks on the same task."
        )
    return Answer("Do robust networks transfer better", f"No answer yet: {text}")


def _of_group(results: Results, group: Group) -> list[Answer]:
    """Answer the questions about each transfer mode of a group.

    The first answer of a mode is over all architectures. Further answers are about each of several
    architectures, and about each size of downscaled images.
    """
    found, words = [], "; ".join(group.key.words)
    contests, by_arch = results.contests[group.suffix], results.by_architecture[group.suffix]
    for mode in group.modes:
        archs = [a for a in group.archs if any(group.row(mode, task, a) for task in group.tasks)]
        own = {task: c for (m, task), c in contests.items() if m == mode}
        if not archs:  # all runs of this mode use downscaled images
            pass
        elif own:
            found.append(_of_transfer(group, mode, archs, own))
        else:
            found.append(Answer(f"{mode.capitalize()} transfer ({words})", _lacking(group, mode)))
        for arch in archs if len(archs) > 1 else ():
            own = {task: c for (m, task, a), c in by_arch.items() if (m, a) == (mode, arch)}
            if own:
                found.append(_of_transfer(group, mode, [arch], own))
        for pixels in group.downscales:
            small = comparisons.compare_downscaled(group, pixels, results.rules)
            own = {task: c for (m, task), c in small.items() if m == mode}
            if own:
                found.append(_of_transfer(group, mode, group.archs, own, pixels))
    return found


def _of_transfer(
    group: Group,
    mode: str,
    archs: Collection[str],
    contests: Mapping[str, Contest],
    pixels: int | None = None,
) -> Answer:
    """Answer the question about one transfer mode, over the given architectures.

    Args:
        group: group of comparable results.
        mode: transfer mode.
        archs: architectures whose networks are compared.
        contests: mapping from each task to its contest.
        pixels: size, in pixels, to which the images were downscaled; None: original images.
    """
    sides: dict[bool, set[tuple[str, float]]] = {True: set(), False: set()}
    for task in contests:
        for arch in archs:
            for eps, run in group.row(mode, task, arch, pixels).items():
                sides[bool(eps)].add((group.names[id(run)], eps))
    recipe = all(contest.pretrainings for contest in contests.values())
    network = _network(sides[True], group.key.norm, recipe)
    several = len(sides[False])
    names = Names(network, f"the best of {several} standard ones" if several > 1 else STANDARD)
    suffix = f" at {pixels} pixels" if pixels else ""
    found = {f"{task}{suffix}": c.verdict for task, c in contests.items() if c.verdict}
    archs = sorted({arch for side in sides.values() for arch, _ in side})
    shown = archs[0] if len(archs) == 1 else f"{len(archs)} architectures"
    words = [shown, *([f"images of {pixels} pixels"] if pixels else []), *group.key.words]
    return Answer(
        f"{mode.capitalize()} transfer ({'; '.join(words)})",
        sentence(names, found),
        verdicts=found,
        cautions=_cautions(contests.values()),
    )


def _of_conditions(results: Results, group: Group) -> list[Answer]:
    """Answer one question for each transfer mode and condition, over all architectures."""
    found = []
    contests = results.by_condition[group.suffix]
    for mode, condition in dict.fromkeys((mode, name) for mode, _, _, name in contests):
        own = {
            (task, arch): c
            for (m, task, arch, name), c in contests.items()
            if (m, name) == (mode, condition)
        }
        archs = [*dict.fromkeys(arch for _, arch in own)]
        kind = next(iter(own.values())).robust.first.condition.kind
        scope = SCOPES[kind] + f" ({condition})" * (condition != kind)
        shown = {
            f"{task} ({arch})" if len(archs) > 1 else task: c.verdict
            for (task, arch), c in own.items()
            if c.verdict
        }
        items = "pairs of task and architecture" if len(archs) > 1 else "tasks"
        network = _best(group, mode, own.values(), own)
        names = Names(network, verb="performs", items=items, scope=scope)
        words = [archs[0] if len(archs) == 1 else f"{len(archs)} architectures", scope]
        found.append(
            Answer(
                f"{mode.capitalize()} transfer ({'; '.join([*words, *group.key.words])})",
                sentence(names, shown),
                verdicts=shown,
                cautions=_cautions(own.values()),
            )
        )
    return found


def _of_few_images(results: Results, group: Group) -> list[Answer]:
    """Answer one question for each transfer mode with several sizes of the training set."""
    found, curves = [], learning_curves(results, group)
    for mode in dict.fromkeys(mode for mode, *_ in curves):
        cells = {(task, arch): own for (m, task, arch), own in curves.items() if m == mode}
        archs = [*dict.fromkeys(arch for _, arch in cells)]
        several = len(archs) > 1
        shown = {
            f"{task}{f' ({arch})' * several} with {images:g} images per class": c.verdict
            for (task, arch), own in cells.items()
            for images, c in own.items()
            if c.verdict
        }
        contests = [c for own in cells.values() for c in own.values()]
        names = Names(_best(group, mode, contests, [*cells]), items="training sets")
        text = sentence(names, shown)
        if len(cells) == 1:
            text += _worth(*cells.values())
        words = [f"{len(archs)} architectures" if several else archs[0], "few training images"]
        question = f"{mode.capitalize()} transfer ({'; '.join([*words, *group.key.words])})"
        found.append(Answer(question, text, verdicts=shown, cautions=_cautions(contests)))
    return found


def _worth(own: Mapping[float, Contest]) -> str:
    """Return a sentence on the number of labels that robustness saves; empty if unknown.

    The sentence is only about training sets with the verdict `better`.
    """
    for images, needs in standard_needs(own).items():
        verdict = own[images].verdict
        if needs and needs > images and verdict and verdict.outcome is Outcome.BETTER:
            return (
                f" With {images:g} images per class, the robust network is as accurate as the "
                f"standard one with {float(f'{needs:.2g}'):g}."
            )
    return ""


def _best(
    group: Group, mode: str, contests: Collection[Contest], cells: Collection[tuple[str, str]]
) -> str:
    """Name the only robust network, or the best of several.

    Args:
        group: group of comparable results.
        mode: transfer mode.
        contests: contests of the networks.
        cells: task and architecture of each contest.
    """
    if len({arch for _, arch in cells}) > 1:
        return "the best robust network of each architecture"
    sides = {
        (group.names[id(run)], eps)
        for task, arch in cells
        for eps, run in group.row(mode, task, arch).items()
        if eps
    }
    return _network(sides, group.key.norm, all(c.pretrainings for c in contests))


def _network(side: set[tuple[str, float]], norm: str, recipe: bool) -> str:
    """Name the only robust network, or describe the best of several robust networks.

    Args:
        side: pairs `(architecture, eps)`, one for each robust network.
        norm: norm of eps, `"l2"` or `"linf"`.
        recipe: whether verdicts are about the pretraining recipe instead of single checkpoints.
    """
    archs, levels = sorted({arch for arch, _ in side}), sorted({eps for _, eps in side})
    shown = show_eps(norm, levels[0])
    if len(levels) > 1:
        shown += f" to {show_eps(norm, levels[-1])}"
    if len(side) > 1:
        names = "robust networks" if len(archs) > 1 else f"robust {archs[0]} networks"
        return f"the best of {len(side)} {names} (eps {shown})"
    return f"the robust {'recipe for ' * recipe}{archs[0]} (eps {shown})"


def _lacking(group: Group, mode: str) -> str:
    """Describe the runs that are missing for a comparison in one transfer mode."""
    runs = [run for task in group.tasks for run in group.networks(mode, task)]
    sides = {bool(run.first.eps) for run in runs}
    names = sorted({run.first.arch for run in runs})
    if len(sides) == 2:
        return (
            "No answer yet: no task has both robust and standard networks. Run both on the same "
            "task."
        )
    have, add = ("robust", "standard") if True in sides else ("standard", "robust")
    many = f"only {have} networks" if len(runs) > 1 else f"only one network, which is {have}"
    return f"No answer yet: {many}. Add runs of {add} twins ({', '.join(names)})."


def _of_detectors(runs: list[Merged], rules: Rules) -> list[Answer]:
    """Answer one question for each backbone architecture and metric of the detectors.

    An experiment without robust or without standard backbones gets an answer that names the
    missing runs.
    """
    found: dict[tuple[str, str], dict[tuple[str, str], Verdict]] = {}
    doubts: dict[str, list[str]] = {}  # architecture -> cautions
    lacking = []
    for experiment in experiments(runs):
        arch = next(iter(experiment.networks.values()))[0].first.arch
        for task in TASKS:
            own = verdicts(experiment, task, rules)
            place = found.setdefault((arch, task), {}) if own else {}
            place.update({(experiment.words, network): v for network, v in own.items()})
        doubts.setdefault(arch, []).extend(cautions(experiment))
        sides = {is_standard(network) for network in experiment.networks}
        if len(sides) == 1:
            add = "robust backbones" if True in sides else "a standard backbone"
            question = f"Detection ({experiment.words}; {arch or 'architecture unknown'})"
            text = f"No answer yet: runs with {add} are missing. Change only MODEL.WEIGHTS."
            lacking.append(Answer(question, text))
    return [
        replace(_of_metric(arch, task, own), cautions=tuple(dict.fromkeys(doubts[arch])))
        for (arch, task), own in found.items()
    ] + lacking


def _of_metric(arch: str, task: str, found: dict[tuple[str, str], Verdict]) -> Answer:
    """Answer the question about one metric of detectors with the same backbone architecture.

    Args:
        arch: architecture of the backbones.
        task: key of `TASKS` for the metric.
        found: mapping from (description of the experiment, name of the robust backbone) to the
            verdict.
    """
    tests = {words for words, _ in found}
    backbones = [*dict.fromkeys(network for _, network in found)]
    name, several, scope = f"robust {arch} backbone".replace("  ", " "), "", ""
    if len(backbones) == 1:
        name += f" ({backbones[0]})"
        shown = {words: verdict for (words, _), verdict in found.items()}
    elif len(tests) == 1:
        several, scope = f"{name}s", f"on {next(iter(tests)).partition(', ')[0]}"
        shown = {backbone: verdict for (_, backbone), verdict in found.items()}
    else:
        shown = {f"{words} ({backbone})": verdict for (words, backbone), verdict in found.items()}
    unit = f"points of {TASKS[task].title}"
    question = f"Detection, {TASKS[task].title} ({'; '.join([arch, *sorted(tests)][:NAMED])})"
    names = Names(f"the {name}", unit=unit, scope=scope, several=several)
    return Answer(question, sentence(names, shown), unit, shown)


def _cautions(contests: Iterable[Contest]) -> tuple[str, ...]:
    """List reasons not to quote the verdicts of these contests unchanged, one sentence each."""
    contests = list(contests)
    records = [run.first for c in contests for run in (c.robust, c.standard)]
    found = []
    if any(record.simulated for record in records):
        found.append("Simulated: no network was trained for these numbers.")
    if small := sorted({record.dataset for record in records} & set(EMBEDDED)):
        found.append(f"{', '.join(small)}: small bundled data that only test the software.")
    if differs := list(dict.fromkeys(words for c in contests for words in c.differs)):
        found.append(f"The networks differ in more than eps: {', '.join(differs)}.")
    if any(record.settings.get("selection") == "test" for record in records):
        found.append("Epochs and learning rates were chosen on the test images.")
    return tuple(found)
