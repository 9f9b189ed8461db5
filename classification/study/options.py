"""Options of `python -m classification.study`."""

import argparse
from dataclasses import dataclass

from robust_backbones.core import cli
from robust_backbones.core.cli import Parser

ACTIONS = {
    "run": "run everything that has not finished, then print the table",
    "plan": "count the runs and estimate time and disk space",
    "status": "print the state of every unfinished run",
    "retry": "clear the recorded failures, then do the same as run",
    "table": "print the results so far",
}
EXECUTING = ("run", "retry")  # actions that start runs
PLACES, FAILURES = ("--executor", "--jobs", "--num-gpus", "--address"), ("--attempts", "--pause")


def parser(description: str) -> Parser:
    """Return the command's parser.

    Args:
        description: text at the top of `--help`.
    """
    actions = "\n".join(f"  {name:8}{about}" for name, about in ACTIONS.items())
    p = Parser(description=description, epilog=f"actions:\n{actions}")
    p.add_argument("action", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    p.add_argument("study", type=cli.path, metavar="FILE", help="study file (YAML)")
    p.add_argument(
        "--set",
        type=pair,
        nargs="+",
        default=[],
        metavar="OPTION=VALUE",
        help="override options in all runs whose command has them. VALUE may contain {axis}",
    )
    add_execution(p)
    p.restrict(
        *PLACES,
        to="the action run, retry or plan",
        when=lambda args: args.action in (*EXECUTING, "plan"),
    )
    p.restrict(*FAILURES, to="the action run or retry", when=lambda args: args.action in EXECUTING)
    return p


def add_execution(p: Parser) -> None:
    """Add the options for executing runs. `Execution.of` reads them.

    Args:
        p: parser of a command that executes runs.
    """
    p.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="run on this machine or on a Ray cluster (default: local)",
    )
    local = p.add_argument_group("--executor local")
    local.add_argument(
        "--jobs",
        type=cli.count,
        help="runs at the same time (default: as many as fit on the GPUs, or 1 without GPUs)",
    )
    local.add_argument(
        "--num-gpus", dest="gpus", type=cli.whole, help="number of GPUs to use (default: all)"
    )
    ray = p.add_argument_group("--executor ray")
    ray.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="Ray cluster, or auto for the cluster of this machine (default: start one here)",
    )
    failures = p.add_argument_group("failed runs")
    failures.add_argument(
        "--attempts",
        type=cli.count,
        default=3,
        help="maximum number of starts of a failing run (default: 3)",
    )
    failures.add_argument(
        "--pause",
        type=cli.amount,
        default=30.0,
        metavar="SECONDS",
        help="pause before the second start, doubled for each later one (default: 30)",
    )
    p.restrict("--jobs", "--num-gpus", to="--executor local", when=lambda a: a.executor == "local")
    p.restrict("--address", to="--executor ray", when=lambda args: args.executor == "ray")


@dataclass(frozen=True)
class Execution:
    """Where runs are executed, and how often a failing run is started.

    Attributes:
        executor: `"local"` or `"ray"`.
        jobs: number of simultaneous runs on this machine; None: the default of `executors.Local`.
        gpus: number of GPUs to use on this machine; None: all.
        address: address of the Ray cluster; None: start one on this machine.
        attempts: maximum number of starts of a failing run.
        pause: pause before the second start in seconds, doubled for each later start.
    """

    executor: str = "local"
    jobs: int | None = None
    gpus: int | None = None
    address: str | None = None
    attempts: int = 3
    pause: float = 30.0

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Execution":
        """Return the values of the options that `add_execution` has added."""
        return cls(**{name: getattr(args, name) for name in cls.__dataclass_fields__})


def pair(text: str) -> tuple[str, str]:
    """Split the argument `OPTION=VALUE` of `--set`."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"'{text}' is not OPTION=VALUE")
    return name, value
