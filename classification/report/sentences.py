"""Summarize the verdicts of several tasks or networks in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from classification.report import numbers
from classification.report.sections import Kind, Value
from classification.report.verdict_words import advice, interval
from classification.report.verdicts import Outcome, Verdict

NAMED = 3  # maximum number of tasks that a clause names; more tasks are only counted
STANDARD = "the standard one"
# How robust networks transfer: in the first clause of a sentence, and in further clauses.
_FIRST = {
    Outcome.BETTER: "better than {}",
    Outcome.WORSE: "worse than {}",
    Outcome.NO_DIFFERENCE: "as well as {}",
}
_FURTHER = {Outcome.BETTER: "better", Outcome.WORSE: "worse", Outcome.NO_DIFFERENCE: "equally well"}


@dataclass(frozen=True)
class Names:
    """Words for the parts of a comparison.

    Attributes:
        robust: singular name of the robust network.
        standard: name of the standard network.
        unit: unit of the differences.
        verb: what the networks do better or worse, in the third person singular.
        items: plural name of what the verdicts are about, if they are not about several networks.
        scope: phrase that applies to all verdicts, such as `"on voc_2007_test"`; may be empty.
        several: plural name of the robust networks if each verdict is about another network; empty
            if each verdict is about another task.
    """

    robust: str
    standard: str = STANDARD
    unit: str = "points"
    verb: str = "transfers"
    items: str = "tasks"
    scope: str = ""
    several: str = ""


def sentence(names: Names, verdicts: Mapping[str, Verdict]) -> str:
    """Summarize the verdicts on robust networks. Advice on more data is a second sentence.

    Args:
        names: words for the networks.
        verdicts: mapping from each task, or from each network, to its verdict; at least one.
    """
    by = {outcome: {} for outcome in Outcome}
    for task, verdict in verdicts.items():
        by[verdict.outcome][task] = verdict
    unclear = by.pop(Outcome.CANNOT_TELL)
    if len(unclear) == len(verdicts):
        return _undecided(names, unclear)
    if len(verdicts) == 1:
        ((task, verdict),) = verdicts.items()
        return _decided(names, task, verdict)
    clauses: list[str] = []
    for outcome, own in by.items():
        if own:
            how = (_FURTHER if clauses else _FIRST)[outcome].format(names.standard)
            if outcome is Outcome.NO_DIFFERENCE:
                how += f" ({_within(verdicts)})"
            count = str(len(own)) if clauses else _count(names, len(own), len(verdicts))
            if names.several:
                verb = names.verb if len(own) == 1 else names.verb.removesuffix("s")
                verb = "" if clauses else f"{verb} "
                clause = f"{count} {verb}{how}"
            else:
                verb = "" if clauses else f"{names.robust} {names.verb} "
                clause = f"{verb}{how} on {count}"
            clauses.append(f"{clause} ({_sizes(names, own)})")
    text = _capital(", ".join(filter(None, [names.scope, _listed(clauses)])))
    if not unclear:
        return f"{text}."
    few = len(unclear) <= NAMED
    which = _listed(unclear) if few else f"{len(unclear)} {names.several or names.items}"
    verb = "is" if len(unclear) == 1 else "are"
    return f"{text}; {which} {verb} inconclusive. {_capital(_advice(names, unclear))} would decide."


def _decided(names: Names, task: str, verdict: Verdict) -> str:
    """Return the sentence for a single verdict."""
    place = " ".join(filter(None, ["On", task, names.scope]))
    how = _FIRST[verdict.outcome].format(names.standard)
    text = f"{place}, {names.robust} {names.verb} {how}: {_size(verdict, names.unit)}"
    if verdict.outcome is Outcome.NO_DIFFERENCE:
        text += f", {_within({task: verdict})}"
    return f"{text}."


def _undecided(names: Names, verdicts: Mapping[str, Verdict]) -> str:
    """Return the sentences for verdicts that are all `cannot tell`."""
    total = len(verdicts)
    which = f"on {_listed(verdicts)}" if total <= NAMED else f"on {_count(names, total, total)}"
    places = [names.scope] if names.several else [which, names.scope]
    robust = f"the {total} {names.several}" if names.several else names.robust
    text = _capital(" ".join(filter(None, places)))
    text += f", the results cannot distinguish {robust} from {names.standard}"
    more = _advice(names, verdicts)
    if all(verdict.p is None for verdict in verdicts.values()):
        return f"{text}. This needs {more}."
    if total == 1:
        (verdict,) = verdicts.values()
        text += f": {_size(verdict, names.unit)}"
    else:
        text += f" ({_sizes(names, verdicts)})"
    return f"{text}. {_capital(more)} would."


def _within(verdicts: Mapping[str, Verdict]) -> str:
    """Return the margin in words."""
    margin = next(iter(verdicts.values())).margin
    return f"within {margin:g} point{'s' * (margin != 1)}"


def _count(names: Names, part: int, total: int) -> str:
    """Return `2 of 5 tasks`, `both tasks` or `all 5 tasks`."""
    noun = names.several or names.items
    if part < total:
        return f"{part} of {total} {noun}"
    return f"both {noun}" if total == 2 else f"all {total} {noun}"


def _advice(names: Names, verdicts: Mapping[str, Verdict]) -> str:
    """Return the trials or images that would settle these `cannot tell` verdicts.

    The advice is given for each task if it differs and there are at most `NAMED` tasks.
    """
    by_task = {task: advice([verdict]) for task, verdict in verdicts.items()}
    if len(set(by_task.values())) > 1 and len(by_task) <= NAMED:
        link = "for" if names.several else "on"
        return _listed(f"{words} {link} {task}" for task, words in by_task.items())
    return advice(verdicts.values())


def _sizes(names: Names, verdicts: Mapping[str, Verdict]) -> str:
    """Return the estimate of each task, or the range of more than `NAMED` estimates."""
    if len(verdicts) <= NAMED:
        units = [names.unit, *[""] * (len(verdicts) - 1)]  # the unit is written once
        rows = zip(verdicts.items(), units, strict=True)
        return "; ".join(f"{task}: {_size(verdict, unit)}" for (task, verdict), unit in rows)
    values = [_value(verdict) for verdict in verdicts.values()]
    places = max(numbers.decimals(value, Kind.DIFFERENCE) for value in values)
    means = sorted(value.mean for value in values)
    ends = dict.fromkeys(f"{mean:+.{places}f}" for mean in (means[0], means[-1]))
    return f"{' to '.join(ends)} {names.unit}"


def _size(verdict: Verdict, unit: str) -> str:
    """Return the estimate with its interval, such as `+1.8 points [0.6, 3.0]`."""
    shown, spread = numbers.parts(_value(verdict), Kind.DIFFERENCE)
    return " ".join(filter(None, [shown, unit, spread])).replace(numbers.MINUS, "-")


def _value(verdict: Verdict) -> Value:
    """Return the estimate with its interval, if there is an interval."""
    return interval(verdict) or Value(verdict.estimate.mean)


def _listed(words: Iterable[str]) -> str:
    """Join words in the form `a, b, and c`."""
    *first, last = words
    comma = "," if len(first) > 1 else ""
    return f"{', '.join(first)}{comma} and {last}" if first else last


def _capital(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]
