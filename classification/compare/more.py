"""Choose the trials that `--more` adds: the fewest that the last report advises."""

from collections.abc import Sequence
from pathlib import Path

from classification.compare.settings import REPORT, TrialGroup
from classification.report.folder import CONTENTS
from classification.report.verdicts import Outcome
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import read_json


def advised(output: Path, groups: Sequence[TrialGroup], tasks: Sequence[str]) -> list[TrialGroup]:
    """Return the trials to add for the tasks on which the last report cannot tell.

    Args:
        output: folder of the comparison.
        groups: trials so far.
        tasks: names of the tasks.

    Raises:
        UserError: there is no report, it is older than the latest trials, it tells on all tasks,
            or more trials would not tell.
    """
    contents = output / REPORT / CONTENTS
    if not contents.exists():
        raise UserError(
            f"--more: {output / REPORT} has no report. Run the command without --more first."
        )
    wanted = _wanted(read_json(contents), tasks)
    found: dict[tuple[int, int], list[str]] = {}
    for task, trials in wanted.items():
        have = max(g.seeds.stop for g in groups if not g.tasks or task in g.tasks)
        if trials > have:
            found.setdefault((have, trials - have), []).append(task)
    if not found:  # an earlier --more was stopped before its report
        raise UserError(
            "--more: the report does not contain the latest trials. Run the command without --more "
            "first."
        )
    return [
        TrialGroup(first, count, () if len(own) == len(tasks) else tuple(own))
        for (first, count), own in found.items()
    ]


def _wanted(report: dict, tasks: Sequence[str]) -> dict[str, int]:
    """Map each task on which the report cannot tell to the fewest trials that would tell."""
    rows = [row for answer in report["answers"] for row in answer["tasks"]]
    undecided = [row for row in rows if row["verdict"] == Outcome.CANNOT_TELL.value]
    if not rows:
        raise UserError("--more: the report has no verdict. " + report["answers"][0]["text"])
    if not undecided:
        raise UserError("--more: the report has an answer for every task. Nothing to add.")
    found: dict[str, int] = {}
    for row in undecided:
        for task in _names(row["task"], tasks) if row["trials"] else ():
            found[task] = max(found.get(task, 0), row["trials"][0])
    if not found:
        words = "; ".join(f"{row['task']}: {row['would_tell']} would" for row in undecided)
        raise UserError(
            f"--more: more trials would not give an answer ({words}). Extend the data, and "
            "compare again "
            "with another --output."
        )
    return found


def _names(task: str, tasks: Sequence[str]) -> list[str]:
    """Return the tasks of the comparison that a task of the report refers to.

    The report adds the size of downscaled images. It names detectors by other words: these refer to
    all tasks.
    """
    own = [name for name in tasks if task == name or task.startswith(f"{name} at ")]
    return own or list(tasks)
