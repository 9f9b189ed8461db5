"""Run a comparison: check, estimate, execute, report."""

import contextlib
from pathlib import Path

from classification.compare import classifiers, detectors, estimate, more
from classification.compare.kinds import Kind, Task
from classification.compare.networks import Network, describe, read_networks
from classification.compare.options import Request
from classification.compare.settings import (
    CLASSIFICATION,
    DETECTION,
    REPORT,
    RUNS,
    SETTINGS,
    STUDY,
    Comparison,
    TrialGroup,
    digest,
    load,
    save,
)
from classification.report import folder, records
from classification.report.run import make
from classification.study.commands import read_metrics
from classification.study.execute import forget
from classification.study.executors import Executor
from classification.study.file import StudyRun, read_study
from classification.study.run import execute_all, make_executor
from classification.study.summary import at_once
from robust_backbones.core.errors import UserError, counted
from robust_backbones.core.files import check_folder, claimed

KINDS: dict[str, Kind] = {CLASSIFICATION: classifiers.KIND, DETECTION: detectors.KIND}


def run(request: Request) -> None:
    """Run or resume a comparison, and print its answer.

    Raises:
        UserError: the data, the networks or the options are unusable, or runs failed.
    """
    kind = KINDS[request.settings.kind]
    check_folder(request.output)
    saved = _saved(request)
    _check_changes(kind, request)
    runs = _runs(request, saved)
    unfinished = [run for run in runs if read_metrics(run.result) is None]
    adds = request.more and not unfinished
    if request.more:
        _check_more(request, saved)
    if request.more and unfinished:
        left = counted(len(unfinished), "run has", "runs have")
        print(f"--more: {left} not finished. Trials are added after that.")
    if adds or unfinished or saved is None:
        if saved is None:
            kind.open(request.settings)
        try:
            networks = read_networks(request.settings.weights, request.settings.pretrained_on)
        except UserError as error:
            if saved is None or not _shows_answer(request):
                raise
            print(
                f"note: no runs were started. {error} The answer below is from the finished runs."
            )
            _report(request)
            return
        print("\n".join(describe(networks)), flush=True)
        tasks = kind.tasks(request.settings, networks)
        if saved and (changed := _changed(saved, networks, tasks)):
            if _is_started(request.output, saved):
                raise UserError(
                    f"{changed} have changed since this comparison began. Restore them, or choose "
                    "another --output."
                )
            saved = None  # only planned
        if saved is None:
            kind.check(request.settings)
        with claimed(request.output):
            if adds or saved is None:
                saved = _write(kind, request, saved, networks, tasks)
                runs = read_study(request.output / STUDY)
            edited = _is_edited(request.output, saved)
            with contextlib.closing(make_executor(request.execution, runs)) as executor:
                if not _execute(kind, request, runs, networks, tasks, edited, executor):
                    return
    _report(request)


def _saved(request: Request) -> Comparison | None:
    """Return the comparison in the output folder, or None if no run of it was started.

    Raises:
        UserError: the folder contains another comparison.
    """
    folder.check(request.output / REPORT)
    saved = load(request.output)
    study = request.output / STUDY
    if saved is None:
        if study.exists():
            raise UserError(f"{study} exists, but no {SETTINGS}. Choose another --output.")
        return None
    if difference := saved.settings.difference(request.settings):
        if not _is_started(request.output, saved):
            return None  # only planned
        raise UserError(
            f"{request.output} contains a comparison with different options ({difference}). Use "
            "--more for further trials, or choose another --output."
        )
    return saved


def _shows_answer(request: Request) -> bool:
    """Return whether to repeat the answer of an earlier call if the networks cannot be read.

    Without the file of a network, its finished runs are not found, because the digest of the file
    is in the names of their folders.
    """
    answered = folder.older_files(request.output / REPORT) is not None
    return answered and not (request.more or request.plan)


def _is_started(output: Path, saved: Comparison) -> bool:
    """Return whether runs may exist, or the user has edited the study file: not only planned."""
    return (output / RUNS).exists() or _is_edited(output, saved)


def _is_edited(output: Path, saved: Comparison) -> bool:
    try:
        return digest((output / STUDY).read_text(encoding="utf-8")) != saved.study
    except OSError:
        return False  # the user has removed the file


def _check_changes(kind: Kind, request: Request) -> None:
    """Reject options of `--set` that have their own option, or that the command does not have."""
    for name, _ in request.settings.changes:
        if name in kind.managed:
            raise UserError(f"--set {name}: use {kind.managed[name]} instead.")


def _runs(request: Request, saved: Comparison | None) -> list[StudyRun]:
    """Read the study file of a comparison that was started before; without one, return no runs."""
    study = request.output / STUDY
    if saved is None:
        return []
    if not study.exists():
        raise UserError(f"{study} does not exist. Restore it, or choose another --output.")
    if _is_edited(request.output, saved):
        print(f"{study} was edited and is used as it is.")
    runs, folder = read_study(study), request.output / RUNS
    for run in runs:
        if folder.resolve() not in run.folder.resolve().parents:
            raise UserError(
                f"{study}: its runs are in {run.folder.parent.parent}, not in {folder}. Run the "
                "command in the working directory where the comparison began, and do not move "
                "its folder."
            )
    return runs


def _check_more(request: Request, saved: Comparison | None) -> None:
    """Check that there is a comparison to add trials to, whose study file is not edited."""
    if saved is None:
        raise UserError(
            f"--more: {request.output} has no comparison. Run the command without --more first."
        )
    study = request.output / STUDY
    if _is_edited(request.output, saved):
        lines = study.read_text(encoding="utf-8").splitlines()
        line = next((i for i, text in enumerate(lines, 1) if text.strip().lower() == "seed:"), 1)
        raise UserError(
            f"{study}:{line}: the file was edited, so --more cannot add trials to it. Add a seed "
            "to this axis by hand, and run the command without --more."
        )


def _changed(saved: Comparison, networks: list[Network], tasks: list[Task]) -> str:
    """Name networks or images that have changed since the comparison was saved; empty: none."""
    for network in networks:
        if saved.networks.get(network.weights) not in (None, network.sha256):
            return f"--weights {network.weights}: the contents of the file"
    for task in tasks:
        if saved.fingerprints.get(task.name) not in (None, task.fingerprints):
            return f"DATA {task.name}: the images"
    return ""


def _write(
    kind: Kind,
    request: Request,
    saved: Comparison | None,
    networks: list[Network],
    tasks: list[Task],
) -> Comparison:
    """Write the study file and the settings of a new comparison, or of one with more trials."""
    settings, names = request.settings, [task.name for task in tasks]
    groups = [TrialGroup(0, settings.trials)]
    if saved is not None:
        added = more.advised(request.output, saved.groups, names)
        groups = [*saved.groups, *added]
        for group in added:
            where = f" on {', '.join(group.tasks)}" if group.tasks else ""
            print(f"--more: {group.count} more trials of each network{where}")
    text = estimate.write_study(kind.parts(settings, networks, tasks, groups), request.output)
    fingerprints = {task.name: task.fingerprints for task in tasks}
    digests = {network.weights: network.sha256 for network in networks}
    comparison = Comparison(settings, tuple(groups), fingerprints, digest(text), digests)
    save(comparison, request.output)
    print(f"study: {request.output / STUDY}", flush=True)
    return comparison


def _execute(
    kind: Kind,
    request: Request,
    runs: list[StudyRun],
    networks: list[Network],
    tasks: list[Task],
    edited: bool,
    executor: Executor,
) -> bool:
    """Print the cost of the unfinished runs and execute them. Return False if only planned."""
    how = request.execution, request.command
    left = [run for run in runs if read_metrics(run.result) is None]
    if edited:
        print("cost: not estimated, because the study file was edited")
    else:
        short = estimate.measure(
            kind, request.settings, networks, tasks, request.output, executor, *how
        )
        costs = [kind.cost(run, short, networks, tasks) for run in left]
        print(estimate.describe(kind, left, costs, len(runs), executor), flush=True)
        needed = estimate.disk(costs, at_once(left, executor))
        estimate.check_disk(needed, request.output)
    if request.plan:
        print(f"Next: {request.command}")
        return False
    for each in left:
        forget(each)  # a repeated command tries failed runs again
    execute_all(runs, executor, *how)
    return True


def _report(request: Request) -> None:
    """Write the report, and print its sentences and the next step."""
    output = request.output
    found, problems = records.read([output / RUNS])
    report = make(found, problems, output / REPORT, output / STUDY, request.settings.margin)
    for text in report.problems:
        print(f"warning: {text}")
    for answer in report.answers:
        print(f"\n{answer}", *answer.cautions, sep="\n")
    print(f"\nforest plot: {report.forest}" if report.forest else "")
    print(f"page: {report.page}")
    needed = [v.needed for answer in report.answers for v in answer.verdicts.values() if v.needed]
    if any(one.trials for one in needed):
        print(f"Next, to add trials: {request.command} --more")
    elif any(one.images for one in needed):
        limit = "Raise --test-limit" if request.settings.test_limit else "Add test images to DATA"
        print(f"Next: more trials would not give an answer. {limit}, and give another --output.")
