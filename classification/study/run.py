"""Run the actions of `robust-backbones study`."""

import argparse
import contextlib
import sys
import time

from classification.study import summary
from classification.study.commands import read_metrics
from classification.study.execute import Attempt, forget
from classification.study.executors import Executor, Local, visible_gpus
from classification.study.file import StudyRun, read_study
from classification.study.options import Execution
from classification.study.queue import Queue
from robust_backbones.core.errors import UserError
from robust_backbones.core.extras import missing
from robust_backbones.core.signals import EXIT_RESUMABLE, StopSignals


def run(args: argparse.Namespace) -> None:
    """Run the action that the parsed options choose.

    Raises:
        UserError: the study file is invalid, or runs failed.
    """
    runs = read_study(args.study, dict(args.set))
    for store in {run.store for run in runs if run.store}:
        store.fetch_small()
    if args.action == "plan":
        _print_plan(runs, Execution.of(args))
        return
    if args.action == "status":
        print(summary.status(runs))
        return
    if args.action == "retry":
        for each in runs:
            forget(each)
    if args.action != "table":
        execution = Execution.of(args)
        retry = f"robust-backbones study retry {args.study}"
        with contextlib.closing(make_executor(execution, runs)) as executor:
            execute_all(runs, executor, execution, retry)
    print(summary.table(runs))


def _print_plan(runs: list[StudyRun], execution: Execution) -> None:
    """Print the plan. Options for the execution add an estimate of the wall time with them."""
    if execution == Execution():
        print(summary.plan(runs))
        return
    with contextlib.closing(make_executor(execution, runs)) as executor:
        print(summary.plan(runs, executor))


def execute_all(
    runs: list[StudyRun],
    executor: Executor,
    execution: Execution,
    retry: str,
    at_once: int | None = None,
) -> None:
    """Execute all unfinished runs. Exit with code 75 if a signal stops the execution.

    Args:
        runs: runs of a study.
        executor: executor of the runs, from `make_executor`.
        execution: how often to start a failing run.
        retry: command that starts failed runs again, for the error message.
        at_once: maximum number of simultaneous runs; None: the executor's.

    Raises:
        UserError: runs failed.
    """
    progress = Progress(len(runs))
    queue = Queue(runs, executor, execution.attempts, execution.pause, at_once, progress.show)
    with StopSignals().watch() as signals:
        completed = queue.work(lambda: signals.requested)
    if not completed:
        print("stopped. Run the same command again to resume.", flush=True)
        sys.exit(EXIT_RESUMABLE)
    if queue.failed:
        names = {run.folder: run.name for run in runs}
        for folder, error in queue.failed.items():
            log = folder / "console.txt"
            hint = f"  (see {log})" if log.exists() else ""
            print(f"failed: {names[folder]}: {error}{hint}", file=sys.stderr)
        raise UserError(
            f"{len(queue.failed)} of {len(runs)} runs failed. Fix the causes above, then run: "
            f"{retry}"
        )


def make_executor(execution: Execution, runs: list[StudyRun]) -> Executor:
    """Create the executor of the unfinished runs.

    Raises:
        UserError: Ray is not installed, or this machine has fewer GPUs than `--num-gpus`.
    """
    left = [run for run in runs if read_metrics(run.result) is None]
    executor = _local(execution, left) if execution.executor == "local" else _ray(execution)
    most = executor.most_gpus()
    for gpus in sorted({run.gpus for run in left if run.gpus > most > 0}):
        print(f"note: runs with gpus: {gpus} use {most}, because no machine has more.", flush=True)
    return executor


def _local(execution: Execution, runs: list[StudyRun]) -> Executor:
    wanted = execution.gpus != 0 and any(run.gpus for run in runs)
    found = visible_gpus() if wanted else []  # counting GPUs imports torch, which takes seconds
    if wanted and execution.gpus and execution.gpus > len(found):
        visible = "1 GPU is" if len(found) == 1 else f"{len(found) or 'no'} GPUs are"
        raise UserError(
            f"--num-gpus {execution.gpus}: {visible} visible on this machine. "
            + (f"Use --num-gpus {len(found)}." if found else "Omit --num-gpus to use the CPU.")
        )
    return Local(execution.jobs, found[: execution.gpus])


def _ray(execution: Execution) -> Executor:
    try:
        from classification.study.ray_executor import RayExecutor  # Ray is an optional package
    except ImportError:
        raise UserError(missing("Ray", "ray", "--executor ray")) from None
    return RayExecutor(execution.address)


class Progress:
    """Print a line for every run that has ended, with an estimate of the remaining time.

    Args:
        total: number of runs in the study.
    """

    def __init__(self, total: int):
        self._total, self._began = total, time.perf_counter()
        self._done_before: int | None = None  # number of runs that earlier calls have finished

    def show(self, run: StudyRun, attempt: Attempt, queue: Queue) -> None:
        """Print the line of a run. `Queue` calls this method whenever a run has ended."""
        done = len(queue.finished) + len(queue.failed)
        if self._done_before is None:
            self._done_before = done - 1
        left, new = self._total - done, max(1, done - self._done_before)
        text = f"{attempt.state} in {duration(attempt.seconds)}"
        if attempt.error:
            text += f" ({attempt.error})"
        text = f"[{done}/{self._total}] {run.name}: {text}; {queue.running} running, {left} left"
        if left:
            text += f", about {duration((time.perf_counter() - self._began) / new * left)}"
        print(text, flush=True)


def duration(seconds: float) -> str:
    """Return a rounded duration, such as `42 s`, `12 min`, `3 h 20 min` or `4 days`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours / 24:.0f} days"
