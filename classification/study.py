"""Run every combination that a study file asks for, then show the table.

python -m classification.study run configs/studies/cifar_protocols.yaml --set data=/data/cifar10
python -m classification.study table configs/studies/cifar_protocols.yaml

A study file is YAML: `output`, a folder; `command`, `transfer` (the default) or `detection`;
`common`, options of `classification.transfer` for all runs, or, for detection, `config`, `seeds`,
`gpus` and config keys; `axes`, one or more, each with values: a label and the options that it
stands for. Finished runs are skipped, interrupted ones go on.

Exit codes: 0 finished, 2 a mistake of the user or a run that failed, 75 stopped.
"""

import argparse
import itertools
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import yaml

from classification.study_commands import COMMANDS, Run
from robust_backbones.errors import UserError, user_errors
from robust_backbones.stopping import STOPPED

PARTS = {"command", "output", "common", "axes"}


def main(argv=None) -> None:
    """Parse and do it. Exit codes as said above."""
    args = _parser().parse_args(argv)
    with user_errors():
        runs = read(args.study, dict(args.set))
        if args.command == "run":
            _run_all(runs)
        print(table(runs))


def _parser() -> argparse.ArgumentParser:
    formatter = partial(argparse.RawDescriptionHelpFormatter, width=100)
    p = argparse.ArgumentParser("python -m classification.study", description=__doc__,
                                formatter_class=formatter)  # fmt: skip
    p.add_argument("command", choices=("run", "table"), help="run what is missing; or only show")
    p.add_argument("study", type=Path, help="study file")
    p.add_argument("--set", type=_pair, nargs="+", default=[], metavar="OPTION=VALUE",
                   help="options for all runs, instead of the file's")  # fmt: skip
    return p


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"'{text}' is not OPTION=VALUE")
    return name, value


def read(path: Path, changes: dict | None = None) -> list[Run]:
    """The runs of a study file, the last axis changing fastest.

    Args:
        changes: options for all runs, instead of the file's.

    Raises:
        UserError: not a study file.
    """
    try:
        study = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    _check(path, study)
    runs, folder = [], Path(study["output"])
    axes, command = study["axes"], study.get("command", "transfer")
    for labels in itertools.product(*axes.values()):
        options = dict(study.get("common", {}))
        for axis, label in zip(axes.values(), labels, strict=True):
            options |= axis[label]
        slug = re.sub(r"[^\w.+=-]+", "_", "-".join(labels))
        named = dict(zip(axes, labels, strict=True))
        runs.append(Run(named, options | (changes or {}), folder / slug, command))
    if len({run.folder for run in runs}) < len(runs):
        raise UserError(f"{path} has labels that differ in punctuation only; name them otherwise.")
    return runs


def _check(path: Path, study) -> None:
    if not isinstance(study, dict) or set(study) - PARTS or not {"output", "axes"} <= set(study):
        raise UserError(
            f"{path} needs output and axes, and may have command and common; nothing else."
        )
    if (command := study.get("command", "transfer")) not in COMMANDS:
        raise UserError(f"{path}: command '{command}' is unknown; one of: {', '.join(COMMANDS)}.")
    tables = [study.get("common", {}), study["axes"]]
    if all(isinstance(table, dict) for table in tables):
        tables += [*study["axes"].values()]
    if all(isinstance(table, dict) for table in tables):
        tables += [value for axis in study["axes"].values() for value in axis.values()]
    if not all(isinstance(table, dict) for table in tables) or not study["axes"]:
        raise UserError(f"{path}: common is a mapping of options, axes one of axis names to "
                        "{label: {option: value}}.")  # fmt: skip
    labels = [label for axis in study["axes"].values() for label in axis]
    if odd := [label for label in labels if not isinstance(label, str)]:
        raise UserError(f"{path}: the label {odd[0]!r} is not text; put it between quotes.")


def _run_all(runs: list[Run]) -> None:
    """One after the other, each in a process of its own; what fails does not keep the others."""
    failed = []
    for number, run in enumerate(runs, 1):
        print(f"run {number} of {len(runs)}: {', '.join(run.labels.values())}", flush=True)
        codes = []
        for line in run.lines():
            codes.append(subprocess.run(line).returncode)
            if codes[-1] == STOPPED:
                sys.exit(STOPPED)
        if any(codes):
            failed.append(", ".join(run.labels.values()))
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}. Their "
                        "errors are above; the same command tries them again.")  # fmt: skip


def table(runs: list[Run]) -> str:
    """A Markdown table: percent, mean and standard deviation over trials or seeds."""
    axes = list(runs[0].labels)
    heads = [*axes, *COMMANDS[runs[0].command].columns]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for run in runs:
        lines.append(f"| {' | '.join([*run.labels.values(), *run.cells()])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
