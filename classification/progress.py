"""Report the progress of a run on stderr, as JSON Lines, in TensorBoard and as curves."""

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from robust_backbones.core import run_log
from robust_backbones.core.figures import new_figure, save_figure
from robust_backbones.core.files import atomic
from robust_backbones.core.results import finite

LOG_SECONDS = 60  # interval of lines in a log file; on a terminal, every step updates the line


class ProgressLine:
    """Progress line on stderr and in the log file.

    A terminal updates the line in place. Files get the first line at once, and the first line with
    the time left, then a new line every minute.

    Args:
        total: number of images in the whole run.
        done: number of images that were processed before the run was resumed. The speed excludes
            these images.
    """

    def __init__(self, total: int, done: int = 0):
        self.total, self.done, self.images = total, done, 0
        self.started = time.perf_counter()
        self.logged, self.estimated = -math.inf, False
        self.terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    @property
    def rate(self) -> float:
        """Images per second since the start, excluding pauses."""
        return self.images / max(time.perf_counter() - self.started, 1e-9)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the `with` block from the speed."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def show(self, images: int, doing: str) -> None:
        """Count processed images, and show the state of the run.

        Args:
            images: number of images since the last call.
            doing: description of the current work, with commas between its parts.
        """
        self.images += images
        now = time.perf_counter()
        due = now - self.logged >= LOG_SECONDS or (self.images and not self.estimated)
        if not (self.terminal or due):
            return
        speed = []
        if self.images:
            left = (self.total - self.done - self.images) / self.rate
            speed = [f"{self.rate:.3g} images/s", f"{clock(left)} left"]
        if self.terminal:
            line = _fitting(doing.split(", "), speed, shutil.get_terminal_size().columns - 1)
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
        if due:
            self.logged, self.estimated = now, bool(self.images)
            line = ", ".join([doing, *speed])
            run_log.note(line)
            if not self.terminal:
                print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Clear the line on a terminal, before another line is printed."""
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _fitting(doing: list[str], speed: list[str], width: int) -> str:
    """Join the parts to a line of at most `width` characters.

    A terminal cannot update a wrapped line in place. If the line is too long, the speed is dropped
    first, then the last parts of the description. At the end, the line is cut.
    """
    doing, speed = list(doing), list(speed)
    while len(line := ", ".join(doing + speed)) > width:
        if len(speed) > 1:
            speed.pop(0)
        elif len(doing) > 1:
            doing.pop()
        else:
            break
    return line[:width]


def clock(seconds: float) -> str:
    """Format a duration as `h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def epoch_line(record: dict, epochs: int, split: str) -> str:
    """Describe the record of an epoch in one line.

    Args:
        record: record of one epoch from the history.
        epochs: total number of epochs.
        split: name of the evaluated split, such as "val".
    """
    words = [
        f"epoch {record['epoch']}/{epochs}: loss {record['train_loss']:.3f}",
        f"training accuracy {record['train_top1']:.1f} %",
    ]
    if "clean_top1" in record:
        words.append(f"clean {split} accuracy {record['clean_top1']:.1f} %")
    if "adversarial_top1" in record:
        words[-1] += f" (under the training attack {record['adversarial_top1']:.1f} %)"
    return ", ".join([*words, f"{record['seconds']:.1f} s"])


def write_history(path: Path, history: list[dict]) -> None:
    """Write the records as JSON Lines, atomically. NaN and infinite numbers become null."""
    with atomic(path) as temporary:
        lines = (json.dumps(finite(record)) + "\n" for record in history)
        temporary.write_text("".join(lines), encoding="utf-8")


def write_tensorboard(folder: Path, history: list[dict]) -> None:
    """Write all numbers of the history as TensorBoard scalars. Replace old event files."""
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        for record in history:
            for name, value in record.items():
                if name != "epoch":
                    writer.add_scalar(name, value, record["epoch"])


CURVES = {  # lines of each panel: map from a key of the history to the label
    "loss": {
        "train_loss": "training",
        "clean_loss": "{split}, clean",
        "adversarial_loss": "{split}, adversarial",
    },
    "accuracy, %": {
        "train_top1": "training",
        "clean_top1": "{split}, clean",
        "adversarial_top1": "{split}, adversarial",
    },
}


def draw_curves(path: Path, history: list[dict], title: str, split: str) -> None:
    """Draw losses and accuracies on the training images and on a split against the epoch (PNG)."""
    figure = new_figure(9, 3.5)
    figure.suptitle(title)
    for axes, (ylabel, lines) in zip(figure.subplots(1, 2), CURVES.items(), strict=True):
        for key, label in lines.items():
            points = [(r["epoch"], r[key]) for r in history if key in r]
            if points:
                label = label.format(split=split)
                axes.plot(*zip(*points, strict=True), marker=".", label=label)
        axes.set(xlabel="epoch", ylabel=ylabel)
        axes.xaxis.get_major_locator().set_params(integer=True)  # epochs are integers
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path, dpi=150)
