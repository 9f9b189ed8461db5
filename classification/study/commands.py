"""Commands that a study can run, with their command lines, table cells and digests of runs."""

import argparse
import functools
import hashlib
import json
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import classification.interpret.options
import classification.pretrain.options
import classification.robustness_eval.options
import classification.transfer.options
from classification.study.storage import Store
from robust_backbones.core.cli import Parser, option_name, words_of
from robust_backbones.core.detector_tasks import TASKS, main_metric
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import sha256
from robust_backbones.core.paths import expand
from robust_backbones.core.resources import config_file

PROGRAM = ["-m", "robust_backbones"]
# Several runs on one machine each choose a free port with --standalone.
TORCHRUN = ["-m", "classification.training.torchrun", "--standalone", "--nproc-per-node"]
# Options that do not affect the result of a run.
NEUTRAL = frozenset({"data", "workers", "device", "save-seconds", "save_seconds"})
# Options that a study sets for each run, with the fix.
SET_BY_STUDY = {
    "--output": "Remove it: each run has its own folder.",
    "--OUTPUT-DIR": "Remove it: each run has its own folder.",
    "--resume": "Remove it: each run resumes.",
    "--num-gpus": "Remove it, and give the part resources: {gpus: N}.",
}
Cells = Callable[[list[dict]], list[str]]


@dataclass(frozen=True)
class Command:
    """A program that a study can run.

    Attributes:
        lines: function from `(options, folder, gpus)` to command lines without the leading
            `python`. A run on the CPU has 0 GPUs.
        check: function that raises a `UserError` for options that the program would reject.
        has: function from an option name to whether the program has it.
        columns: headings of the table columns with the cells.
        cells: function from the metrics of the finished runs of a table row to the row's cells.
        result: name of the file in the run's folder whose presence marks the run as finished.
        trials: function from options to the number of trainings with different seeds in one run.
        gpus: number of GPUs of a run, unless the study file has another.
        divides: function from options to whether a run can use several GPUs, with one process on
            each; None: it never can.
    """

    lines: Callable[[dict, Path, int], list[list[str]]]
    check: Callable[[dict], None]
    has: Callable[[str], bool]
    columns: tuple[str, ...]
    cells: Cells
    result: str = "result.json"
    trials: Callable[[dict], int] = lambda options: 1
    gpus: float = 1
    divides: Callable[[dict], bool] | None = None


def _refuse_own_options(options: dict) -> None:
    for name in options:
        if fix := SET_BY_STUDY.get(option_name(name)):
            raise UserError(f"the study sets the option '{name}'. {fix}")


def _classification(
    name: str,
    make_parser: Callable[[str], Parser],
    columns: tuple[str, ...],
    cells: Cells,
    *always: str,
    trials: Callable[[dict], int] = lambda options: 1,
    divides: Callable[[dict], bool] | None = None,
) -> Command:
    """Return the command `python -m classification.NAME`, with one process per GPU.

    Args:
        name: name of the package in `classification`.
        make_parser: function that builds the command's parser from a description.
        columns, cells, trials, divides: as in `Command`.
        always: arguments to add to every command line.
    """
    module, parser = f"classification.{name}", functools.cache(lambda: make_parser(""))

    def lines(options: dict, folder: Path, gpus: int) -> list[list[str]]:
        launcher = [*TORCHRUN, str(gpus)] if gpus > 1 else []
        return [[*launcher, "-m", module, *always, "--output", str(folder), *words_of(options)]]

    def has(option: str) -> bool:
        return option_name(option) in parser()._option_string_actions

    def check(options: dict) -> None:
        _refuse_own_options(options)
        if unknown := [key for key in options if not has(key)]:
            near = (parser().most_similar(option_name(unknown[0])) or "").strip("-")
            fix = f"Did you mean {near}?" if near else f"See robust-backbones {name} --help."
            raise UserError(f"{name} has no option '{unknown[0]}'. {fix}")
        if option_name("help") in map(option_name, options):
            raise UserError("help is not an option of a run. Remove it.")
        try:
            parser().parse_options({"output": "x"} | options)
        except UserError as error:
            raise UserError(f"{error} See robust-backbones {name} --help.") from None

    return Command(lines, check, has, columns, cells, trials=trials, divides=divides)


def _always(options: dict) -> bool:
    return True


def _transfer_args(options: dict) -> argparse.Namespace:
    return classification.transfer.options.parser("").parse_options({"output": "x"} | options)


def _transfer_trials(options: dict) -> int:
    return classification.transfer.options.trials(_transfer_args(options))


def _transfer_divides(options: dict) -> bool:
    return classification.transfer.options.has_sgd(_transfer_args(options))


def _detection(
    name: str, columns: tuple[str, ...], cells: Cells, *always: str, output: str = "--output"
) -> Command:
    """Return the command `robust-backbones NAME` of a detector.

    Options that begin with a capital letter are config keys. The command starts its own processes.

    Args:
        name: name of the command.
        columns, cells: as in `Command`.
        always: arguments to add to every command line.
        output: option or config key of the folder for results.
    """

    def lines(options: dict, folder: Path, gpus: int) -> list[list[str]]:
        own = {k: v for k, v in options.items() if not _is_key(k)}
        own["num_gpus"] = max(1, gpus)
        keys = [str(word) for pair in options.items() if _is_key(pair[0]) for word in pair]
        return [[*PROGRAM, name, *words_of(own), *always, *keys, output, str(folder)]]

    def check(options: dict) -> None:
        _refuse_own_options(options)
        if "config" not in options:
            raise UserError("the option 'config' is missing. Give a config file, as in configs/.")
        if not config_file(str(options["config"])).is_file():
            raise UserError(f"config file '{options['config']}' does not exist.")

    return Command(lines, check, _is_key, columns, cells, divides=_always)


def _is_key(name: str) -> bool:
    return str(name)[:1].isupper()


def _convert_lines(options: dict, folder: Path, gpus: int) -> list[list[str]]:
    own = {key: value for key, value in options.items() if key != "source"}
    target = str(folder / "backbone.pth")
    return [[*PROGRAM, "convert", options["source"], target, "--force", *words_of(own)]]


def _convert_check(options: dict) -> None:
    if "source" not in options:
        raise UserError("the option 'source' is missing. Give a classifier checkpoint.")
    if unknown := [key for key in options if key not in _CONVERT]:
        raise UserError(
            f"convert has no option '{unknown[0]}' in a study. Choose from {', '.join(_CONVERT)}."
        )


_CONVERT = ("source", "mean", "std", "statistics")


def _mean(values: list[float | None]) -> str:
    """Format the mean and standard deviation of the known values; "" if no value is known."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    deviation = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{deviation}"


def _transfer_cells(found: list[dict]) -> list[str]:
    """Return the cells of accuracy, accuracy at the best epoch, and number of trials.

    Accuracies are means over all trials. If the best epoch was chosen on the test images, the first
    cell is the accuracy of the last epoch. Otherwise, the second cell is empty.
    """
    trials = [row for metrics in found for row in metrics["trials"]]
    best = _mean([row["accuracy"] for row in trials])
    if found[0].get("last_epoch_accuracy") is not None:
        last = statistics.mean(metrics["last_epoch_accuracy"] for metrics in found)
        return [f"{last:.2f}", best, str(len(trials))]
    return [best, "", str(len(trials))]


def _detection_cells(found: list[dict]) -> list[str]:
    """Return the cells of each task's main metric on the first test set, and number of runs."""
    first = [next(iter(metrics.values())) for metrics in found]
    values = [_mean([m.get(n, {}).get(task.main) for m in first]) for n, task in TASKS.items()]
    return [*values, str(len(found))]


def _metric_cells(*names: str) -> Cells:
    return lambda found: [*(_mean([m.get(n) for m in found]) for n in names), str(len(found))]


def _perturbed_cells(key: str) -> Cells:
    """Return a function for three cells of a row.

    The cells are the main metric on clean images, its mean over all attacks or corruptions, and the
    number of runs.

    Args:
        key: key of the attacks or corruptions in the metrics.
    """

    def cells(found: list[dict]) -> list[str]:
        clean, others = [], []
        for metrics in found:
            rows = {name: main_metric(row)[2] or 0.0 for name, row in metrics[key].items()}
            clean.append(rows.pop("clean", None))
            others.append(statistics.mean(rows.values()) if rows else None)
        return [_mean(clean), _mean(others), str(len(found))]

    return cells


# Keys are the names in `robust-backbones NAME`.
COMMANDS = {
    "pretrain": _classification(
        "pretrain",
        classification.pretrain.options.parser,
        ("clean, %", "robust, %", "runs"),
        _metric_cells("clean_top1", "robust_top1"),
        "--resume",
        divides=_always,
    ),
    "robustness_eval": _classification(
        "robustness_eval",
        classification.robustness_eval.options.parser,
        ("clean, %", "runs"),
        _metric_cells("clean_top1"),
        divides=_always,
    ),
    "transfer": _classification(
        "transfer",
        classification.transfer.options.parser,
        ("accuracy, %", "best epoch", "trials"),
        _transfer_cells,
        trials=_transfer_trials,
        divides=_transfer_divides,
    ),
    "interpret": _classification(
        "interpret", classification.interpret.options.parser, ("runs",), _metric_cells()
    ),
    "convert": Command(
        _convert_lines,
        _convert_check,
        _CONVERT.__contains__,
        ("runs",),
        _metric_cells(),
        result="backbone.pth",
        gpus=0,
    ),
    "train": _detection(
        "train",
        (*(task.title for task in TASKS.values()), "runs"),
        _detection_cells,
        "--resume",
        output="OUTPUT_DIR",
    ),
    "attack": _detection(
        "attack", ("clean AP or mIoU", "attacked", "runs"), _perturbed_cells("attacks")
    ),
    "corrupt": _detection(
        "corrupt", ("clean AP or mIoU", "corrupted", "runs"), _perturbed_cells("corruptions")
    ),
}


def read_metrics(path: Path) -> dict | None:
    """Return the metrics of a result file, or None if the file is missing or cannot be parsed."""
    if path.suffix != ".json":
        return {} if path.exists() else None
    try:
        return json.loads(path.read_text(encoding="utf-8"))["metrics"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def identity(command: str, options: dict, needs: list[Path], store: Store | None) -> str:
    """Return a digest of everything that determines the result of a run.

    The digest covers the command, its options and the contents of its input files. Files of earlier
    parts may not exist yet, but the names of their folders contain the digests of the runs that
    create them.

    Args:
        command: key of `COMMANDS`.
        options: options of the command, by name.
        needs: folders of the runs whose files this run reads.
        store: object storage of the study, or None.
    """
    kept = _relevant(options)
    values = [v for value in kept.values() for v in (value if isinstance(value, list) else [value])]
    inputs = [
        value
        for value in values
        if isinstance(value, str)
        and not any(value.startswith(folder.as_posix() + "/") for folder in needs)
    ]
    files = {text: _file_digest(str(file)) for text in inputs if (file := _input_file(text))}
    text = json.dumps([command, kept, files], sort_keys=True, default=str)
    if store:  # the digest must not depend on the location of a machine's cache
        text = text.replace(store.folder.as_posix(), store.url)
    return hashlib.sha256(text.encode()).hexdigest()


def _relevant(options: dict) -> dict:
    """Return the options that affect the result.

    The path of the data affects the result only for the dataset `folder`.
    """
    kept = {key: value for key, value in options.items() if key not in NEUTRAL}
    if options.get("dataset", "imagenet") == "folder":
        kept["data"] = options.get("data")
    return kept


def _input_file(text: str) -> Path | None:
    try:
        path = config_file(text)
        return path if path.is_file() else None
    except (OSError, ValueError):  # the text is too long for a path, or contains a zero byte
        return None


_DIGESTS: dict[tuple, str] = {}  # cached, because many runs use the same weights


def _file_digest(path: str) -> str:
    """Return the digest of a file and, for a config, of its `_BASE_` files."""
    file = Path(path)
    key = (path, file.stat().st_size, file.stat().st_mtime_ns)
    if key not in _DIGESTS:
        _DIGESTS[key] = sha256(file)
    if file.suffix not in (".yaml", ".yml"):
        return _DIGESTS[key]
    text = file.read_text(encoding="utf-8", errors="replace")
    base = re.search(r"^_BASE_:\s*['\"]?([^'\"\n#]+)", text, re.M)
    above = str(file.parent / expand(base[1].strip())) if base else ""
    return _DIGESTS[key] + (_file_digest(above) if above != path and _input_file(above) else "")
