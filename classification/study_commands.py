"""What a study can run: the command lines of a combination, and its cells in the table."""

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robust_backbones.errors import UserError

TRAIN_NET = Path(__file__).resolve().parent.parent / "tools" / "train_net.py"


@dataclass(frozen=True)
class Run:
    """One combination.

    Attributes:
        labels: axis -> the label of its value.
        options: of its command.
        folder: for its results.
        command: key of `COMMANDS`.
    """

    labels: dict[str, str]
    options: dict
    folder: Path
    command: str = "transfer"

    def lines(self) -> list[list[str]]:
        """Its command lines, to be run one after the other."""
        return COMMANDS[self.command].lines(self)

    def cells(self) -> list[str]:
        """What the table shows of it, empty where nothing has finished."""
        return COMMANDS[self.command].cells(self)


@dataclass(frozen=True)
class Command:
    """A program that makes results.

    Attributes:
        lines: run -> its command lines.
        columns: headings of `cells`.
        cells: run -> text.
    """

    lines: Callable[[Run], list[list[str]]]
    columns: tuple[str, ...]
    cells: Callable[[Run], list[str]]


def _transfer_lines(run: Run) -> list[list[str]]:
    words = [sys.executable, "-m", "classification.transfer", "--output", str(run.folder)]
    for name, value in run.options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value is not False:
            words += [option, *map(str, value if isinstance(value, list) else [value])]
    return [words]


def _transfer_cells(run: Run) -> list[str]:
    """Accuracy of what counts; where that is the best epoch on the test images, the last one's is
    told first and the best one's beside it."""
    path = run.folder / "result.json"
    if not path.exists():
        return ["", "", "missing"]
    found = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    spread = f" ± {found['sd']:.2f}" if found["sd"] is not None else ""
    accuracy = f"{found['accuracy']:.2f}{spread}"
    trials = str(len(found["trials"]))
    if (last := found.get("last_epoch_accuracy")) is not None:
        return [f"{last:.2f}", accuracy, trials]
    return [accuracy, "", trials]


def _detection_lines(run: Run) -> list[list[str]]:
    """One for each seed; `config`, `gpus` and `seeds` are ours, the other options config keys."""
    options = dict(run.options)
    if "config" not in options:
        raise UserError(f"the run {', '.join(run.labels.values())} has no option 'config'.")
    start = [sys.executable, str(TRAIN_NET), "--config", str(options.pop("config")), "--resume",
             "--num-gpus", str(options.pop("gpus", 1))]  # fmt: skip
    folders = _seed_folders(run)
    options.pop("seeds", None)
    keys = [str(word) for pair in options.items() for word in pair]
    return [
        [*start, *keys, "SEED", str(seed), "OUTPUT_DIR", str(folder)]
        for seed, folder in enumerate(folders)
    ]


def _seed_folders(run: Run) -> list[Path]:
    return [run.folder / f"seed{seed}" for seed in range(int(run.options.get("seeds", 1)))]


def _detection_cells(run: Run) -> list[str]:
    """AP of boxes and masks, mean and standard deviation over the seeds that have finished."""
    paths = [folder / "result.json" for folder in _seed_folders(run)]
    found = [json.loads(p.read_text(encoding="utf-8"))["metrics"] for p in paths if p.exists()]
    shown = []
    for task in ("bbox", "segm"):
        values = [
            tasks[task]["AP"]
            for metrics in found
            for tasks in list(metrics.values())[:1]  # of the first test set
            if tasks.get(task, {}).get("AP") is not None
        ]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        shown.append(f"{statistics.mean(values):.2f}{spread}" if values else "")
    return [*shown, f"{len(found)} of {len(paths)}" if found else "missing"]


COMMANDS = {
    "transfer": Command(_transfer_lines, ("accuracy, %", "best epoch", "trials"), _transfer_cells),
    "detection": Command(_detection_lines, ("box AP", "mask AP", "seeds"), _detection_cells),
}
