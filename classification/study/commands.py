"""What a study can run: the command lines of a combination, and its cells in the table."""

import argparse
import contextlib
import functools
import importlib
import io
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robust_backbones.core.errors import UserError
from robust_backbones.core.resources import config_file

_PROGRAM = ["-m", "robust_backbones"]
# Options that a result does not depend on.
_NEUTRAL = frozenset({"data", "workers", "device", "save-seconds", "save_seconds"})


Options = tuple[  # `lines`, `check` and `has` of a `Command`
    Callable[[dict, Path, float], list[list[str]]], Callable[[dict], None], Callable[[str], bool]
]


@dataclass(frozen=True)
class Command:
    """A program that makes results.

    Attributes:
        lines: `(options, folder, gpus)` -> command lines, without `python`.
        check: raises `UserError` for options that it would refuse.
        has: whether it has an option of this name.
        columns: headings of `cells`.
        cells: results of the finished ones of a row's runs -> text.
        result: the file that is there at the end, in the run's folder.
        trials: options -> how many trainings a run repeats with other seeds.
    """

    lines: Callable[[dict, Path, float], list[list[str]]]
    check: Callable[[dict], None]
    has: Callable[[str], bool]
    columns: tuple[str, ...]
    cells: Callable[[list[dict]], list[str]]
    result: str = "result.json"
    trials: Callable[[dict], int] = lambda options: 1


def essence(options: dict) -> dict:
    """The options that the result depends on; where data of a known name lie is none of them."""
    kept = {key: value for key, value in options.items() if key not in _NEUTRAL}
    named = options.get("dataset", "imagenet") != "folder"
    return kept if named else kept | {"data": options.get("data")}


def _words(options: dict) -> list[str]:
    """Options as a command line has them."""
    words = []
    for name, value in options.items():
        option = f"--{str(name).replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value is not False:
            words += [option, *map(str, value if isinstance(value, list) else [value])]
    return words


def _module(name: str, options: str, *always: str) -> Options:
    """`lines`, `check` and `has` of a command whose options argparse knows: those of
    `classification.<options>.parser`."""

    @functools.cache
    def made() -> argparse.ArgumentParser:
        return importlib.import_module(f"classification.{options}").parser("")

    def lines(options: dict, folder: Path, gpus: float) -> list[list[str]]:
        return [["-m", name, *always, "--output", str(folder), *_words(options)]]

    def has(option: str) -> bool:
        return f"--{str(option).replace('_', '-')}" in made()._option_string_actions

    def check(options: dict) -> None:
        if unknown := [key for key in options if not has(key)]:
            raise UserError(f"python -m {name} has no option '{unknown[0]}'; see its --help.")
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                made().parse_args(["--output", "x", *_words(options)])
        except SystemExit:
            raise UserError(said.getvalue().splitlines()[-1].partition("error: ")[2]) from None

    return lines, check, has


def _transfer_trials(options: dict) -> int:
    from classification.transfer import options as transfer_options

    words = ["--output", "x", *_words(options)]
    return transfer_options.trials(transfer_options.parser("").parse_args(words))


def _tool(name: str, *always: str, output: str = "--output") -> Options:
    """`lines`, `check` and `has` of a detection command: options are its own or keys of the config,
    which have a capital letter."""

    def lines(options: dict, folder: Path, gpus: float) -> list[list[str]]:
        own = {k: v for k, v in options.items() if not _is_key(k)}
        keys = {k: v for k, v in options.items() if _is_key(k)}
        place = [output, str(folder)]
        if output == "OUTPUT_DIR":
            own["num_gpus"] = int(gpus) or 1
        pairs = [str(word) for pair in keys.items() for word in pair]
        return [[*_PROGRAM, name, *_words(own), *always, *pairs, *place]]

    def check(options: dict) -> None:
        if "config" not in options:
            raise UserError("the option 'config', a file such as those in configs/, is needed.")
        if not config_file(str(options["config"])).is_file():
            raise UserError(f"config file '{options['config']}' does not exist.")

    return lines, check, _is_key


def _is_key(name: str) -> bool:
    return str(name)[:1].isupper()


def _convert_lines(options: dict, folder: Path, gpus: float) -> list[list[str]]:
    target = str(folder / "backbone.pth")
    return [[*_PROGRAM, "convert", options["source"], target, "--force"]]


def _convert_check(options: dict) -> None:
    if set(options) != {"source"}:
        raise UserError("command convert has one option: source, a classifier checkpoint.")


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    spread = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{spread}"


def _transfer_cells(found: list[dict]) -> list[str]:
    """Accuracy of what counts; where that is the best epoch on the test images, the last one's is
    told first and the best one's beside it."""
    trials = [row for metrics in found for row in metrics["trials"]]
    best = _spread([row["accuracy"] for row in trials])
    if found[0].get("last_epoch_accuracy") is not None:
        last = statistics.mean(metrics["last_epoch_accuracy"] for metrics in found)
        return [f"{last:.2f}", best, str(len(trials))]
    return [best, "", str(len(trials))]


def _detection_cells(found: list[dict]) -> list[str]:
    """AP of boxes and masks on the first test set, over the runs."""
    first = [next(iter(metrics.values())) for metrics in found]
    shown = [_spread([m.get(task, {}).get("AP") for m in first]) for task in ("bbox", "segm")]
    return [*shown, str(len(found))]


def _named(*names: str) -> Callable[[list[dict]], list[str]]:
    return lambda found: [*(_spread([m.get(n) for m in found]) for n in names), str(len(found))]


def _rows_cells(key: str) -> Callable[[list[dict]], list[str]]:
    """Box AP of clean images, and the mean over all attacked or corrupted ones."""

    def cells(found: list[dict]) -> list[str]:
        clean, others = [], []
        for metrics in found:
            rows = {name: row["bbox"]["AP"] or 0.0 for name, row in metrics[key].items()}
            clean.append(rows.pop("clean", None))
            others.append(statistics.mean(rows.values()) if rows else None)
        return [_spread(clean), _spread(others), str(len(found))]

    return cells


def _nothing(found: list[dict]) -> list[str]:
    return [str(len(found))]


COMMANDS = {
    "pretrain": Command(
        *_module("classification.pretrain", "pretrain.options", "--resume"),
        ("clean, %", "robust, %", "runs"),
        _named("clean_top1", "robust_top1"),
    ),
    "robustness": Command(
        *_module("classification.robustness_eval", "robustness_eval.__main__"),
        ("clean, %", "runs"),
        _named("clean_top1"),
    ),
    "transfer": Command(
        *_module("classification.transfer", "transfer.options"),
        ("accuracy, %", "best epoch", "trials"),
        _transfer_cells,
        trials=_transfer_trials,
    ),
    "interpret": Command(
        *_module("classification.interpret", "interpret.options"), ("runs",), _nothing
    ),
    "convert": Command(
        _convert_lines, _convert_check, "source".__eq__, ("runs",), _nothing, "backbone.pth"
    ),
    "detection": Command(
        *_tool("train", "--resume", output="OUTPUT_DIR"),
        ("box AP", "mask AP", "runs"),
        _detection_cells,
    ),
    "attack": Command(
        *_tool("attack"), ("clean box AP", "attacked box AP", "runs"), _rows_cells("attacks")
    ),
    "corruption": Command(
        *_tool("corrupt"), ("clean box AP", "corrupted box AP", "runs"), _rows_cells("corruptions")
    ),
}


def metrics(path: Path) -> dict | None:
    """Of a finished run; None where there is no result, or none that can be read."""
    if path.suffix != ".json":
        return {} if path.exists() else None
    try:
        return json.loads(path.read_text(encoding="utf-8"))["metrics"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
