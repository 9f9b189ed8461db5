"""Make the runs that a study file asks for, here or on a Ray cluster; show what came out.

python -m classification.study plan configs/studies/table1.yaml
python -m classification.study run configs/studies/cifar_protocols.yaml --set data=/data/cifar10
python -m classification.study run configs/studies/table1.yaml --executor ray --address auto

Finished runs are skipped, interrupted ones go on, failed ones are tried again after a pause, a
mistake (exit code 2 of the run) is not. docs/studies.md has the format of the file.

Exit codes: 0 finished, 2 a mistake of the user or a run that failed, 75 stopped.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from classification import options
from robust_backbones.core.cli import Parser
from robust_backbones.core.errors import UserError, user_errors
from robust_backbones.core.signals import EXIT_RESUMABLE, StopSignals

if TYPE_CHECKING:
    from classification.study.file import Run
    from classification.study.queue import Queue
    from classification.study.run import Outcome

ACTIONS = {
    "run": "make what is missing, then show the table",
    "plan": "how many runs, how long, how much room",
    "status": "what has become of each run",
    "retry": "forget the failures and run",
    "table": "show what there is",
}


def main(argv: list[str] | None = None) -> None:
    """Parse and do it. Exit codes as said above."""
    args = _parser().parse_args(argv)
    with user_errors():
        from classification.study import file as study_file
        from classification.study import run as study_run
        from classification.study import summary as study_report

        runs = study_file.read(args.study, dict(args.set))
        for store in {run.store for run in runs if run.store}:
            store.fetch_small()
        if args.action == "plan":
            print(study_report.plan(runs))
        elif args.action == "status":
            print(study_report.status(runs))
        if args.action == "retry":
            for run in runs:
                study_run.forget(run)
        if args.action in ("run", "retry"):
            _work(args, runs)
        if args.action in ("run", "retry", "table"):
            print(study_report.table(runs))


def _parser() -> Parser:
    p = Parser("python -m classification.study", description=__doc__)

    add = p.add_argument
    add("action", choices=ACTIONS, help="; ".join(f"{k}: {v}" for k, v in ACTIONS.items()))
    add("study", type=Path, help="study file")
    add(
        "--set",
        type=_pair,
        nargs="+",
        default=[],
        metavar="OPTION=VALUE",
        help="options for all runs that have them, instead of the file's; {axis} is understood",
    )
    add(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="processes of this machine, or a Ray cluster (default: local)",
    )
    add(
        "--jobs",
        type=options.count,
        metavar="N",
        help="local: runs at a time (default: one per GPU if runs ask for them, or one)",
    )
    add("--gpus", type=options.whole, metavar="N", help="local: GPUs to hand out (default: all)")
    add(
        "--address",
        metavar="HOST:PORT",
        help="of the Ray cluster; auto: that of this machine (default: start one here)",
    )
    add(
        "--attempts",
        type=options.count,
        default=3,
        metavar="N",
        help="starts of a run that fails (default: 3)",
    )
    add(
        "--pause",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds before its second start, doubled for each further one (default: 30)",
    )

    return p


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"'{text}' is not OPTION=VALUE")
    return name, value


def _work(args: argparse.Namespace, runs: list) -> None:
    from classification.study import executors
    from classification.study.queue import Queue

    if args.executor == "ray":
        executor = executors.Ray(args.address)
    else:  # looking for GPUs takes the seconds of importing torch
        wanted = any(run.gpus for run in runs)
        executor = executors.Local(args.jobs, args.gpus if wanted or args.gpus else 0)
    progress = Progress(len(runs))
    work = Queue(runs, executor, args.attempts, args.pause, progress.told)
    try:
        with StopSignals().watch() as signals:
            whole = work.work(lambda: signals.requested)
    finally:
        executor.close()
    if not whole:
        print("stopped; the same command goes on.", flush=True)
        sys.exit(EXIT_RESUMABLE)
    if work.failed:
        names = {run.folder: run.name for run in runs}
        for folder, error in work.failed.items():
            log = folder / "log.txt"
            more = f"  (see {log})" if log.exists() else ""
            print(f"failed: {names[folder]}: {error}{more}", file=sys.stderr)
        raise UserError(
            f"{len(work.failed)} of {len(runs)} runs failed; mend that, then use: "
            f"study retry {args.study}"
        )


class Progress:
    """A line for each run that has ended, with the time that is left."""

    def __init__(self, total: int):
        self._total, self._began = total, time.perf_counter()
        self._states: Counter = Counter()
        self._before: int | None = None

    def told(self, run: "Run", outcome: "Outcome", queue: "Queue") -> None:
        """Print it."""
        self._states[outcome.state] += 1
        done = len(queue.finished) + len(queue.failed)
        if self._before is None:
            self._before = done - 1
        left, made = self._total - done, max(1, done - self._before)
        rest = (time.perf_counter() - self._began) / made * left
        text = f"{outcome.state} in {_span(outcome.seconds)}"
        if outcome.error:
            text += f" ({outcome.error})"
        print(
            f"[{done}/{self._total}] {run.name}: {text}; {queue.going} running, {left} left"
            + (f", about {_span(rest)}" if left else ""),
            flush=True,
        )


def _span(seconds: float) -> str:
    """For people: 42 s, 12 min, 3 h 20 min, 4 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours / 24:.0f} days"


if __name__ == "__main__":
    main()
