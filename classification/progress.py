"""What a run shows: a line while it trains, JSON lines, TensorBoard, curves."""

import json
import sys
import time
from pathlib import Path

from robust_backbones.files import atomic

LOG_SECONDS = 60  # between two lines in a log file; a terminal's line is renewed each step


class ProgressLine:
    """One line on stderr, kept up to date on a terminal and repeated now and then in a log.

    Args:
        epochs: passes in the run.
        per_epoch: images in one of them.
        updates: how often each image is trained on per pass.
    """

    def __init__(self, epochs: int, per_epoch: int):
        self.epochs, self.per_epoch = epochs, per_epoch
        self.started, self.images = time.perf_counter(), 0
        self.shown = self.started
        self.terminal = sys.stderr.isatty()

    @property
    def rate(self) -> float:
        """Images per second since the beginning, without evaluations."""
        return self.images / max(self.seconds, 1e-9)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def pause(self):
        """Let no time pass until `resume`."""
        self.paused = time.perf_counter()

    def resume(self):
        self.started += time.perf_counter() - self.paused

    def show(self, images: int, epoch: int, done: int, loss: float, top1: float) -> None:
        """Count `images` more; the present epoch, from 0, has `done` of its own."""
        self.images += images
        now = time.perf_counter()
        if not self.terminal and now - self.shown < LOG_SECONDS:
            return
        self.shown = now
        left = ((self.epochs - epoch) * self.per_epoch - done) / self.rate
        line = (
            f"epoch {epoch + 1}/{self.epochs}: {done}/{self.per_epoch} images, {self.rate:.0f} "
            f"images/s, loss {loss:.3f}, accuracy {top1:.1f} %, {clock(left)} left"
        )
        if self.terminal:
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make room on a terminal for a line that stays."""
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """`h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def write_history(path: Path, history: list[dict]) -> None:
    """One JSON object a line, all of them, atomically."""
    with atomic(path) as temporary:
        lines = (json.dumps(record) + "\n" for record in history)
        temporary.write_text("".join(lines), encoding="utf-8")


def write_tensorboard(folder: Path, history: list[dict]) -> None:
    """All numbers of the history as scalars, in place of what the folder had."""
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        for record in history:
            for name, value in record.items():
                if name != "epoch":
                    writer.add_scalar(name, value, record["epoch"])


CURVES = {  # panel -> its lines: key of the history -> label
    "loss": {
        "train_loss": "training",
        "clean_loss": "test, clean",
        "adversarial_loss": "test, adversarial",
    },
    "accuracy, %": {
        "train_top1": "training",
        "clean_top1": "test, clean",
        "adversarial_top1": "test, adversarial",
    },
}


def draw_curves(path: Path, history: list[dict], title: str) -> None:
    """Losses and accuracies against the epoch, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for axes, (ylabel, lines) in zip(figure.subplots(1, 2), CURVES.items(), strict=True):
        for key, label in lines.items():
            points = [(r["epoch"], r[key]) for r in history if key in r]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=label)
        axes.set(xlabel="epoch", ylabel=ylabel)
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
