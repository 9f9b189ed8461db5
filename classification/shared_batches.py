"""Share the batches of an evaluation among processes, and resume it from their journals."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from classification.journal import Journal
from classification.progress import ProgressLine
from classification.training import distributed
from robust_backbones.core.signals import Stopped, StopSignals


@dataclass(frozen=True)
class Journals:
    """Journals of the processes of one evaluation, `NAME.<rank>.jsonl`.

    Attributes:
        folder: folder of the journals.
        name: name of the evaluation.
        settings: settings of the run, as for `Journal`.
    """

    folder: Path
    name: str
    settings: dict

    @property
    def paths(self) -> list[Path]:
        """Existing journals."""
        return sorted(self.folder.glob(f"{self.name}.*.jsonl"))

    def read(self) -> list[dict]:
        """Return the records of an interrupted run, whose number of processes may differ.

        Raises:
            UserError: the run has different settings.
        """
        return [r for path in self.paths for r in Journal(path, self.settings).records]

    def own(self) -> Journal:
        """Open the journal of this process."""
        return Journal(self.folder / f"{self.name}.{distributed.rank()}.jsonl", self.settings)

    def remove(self) -> None:
        """Remove the journals of a finished run."""
        for path in self.paths:
            path.unlink()


@dataclass(frozen=True)
class Share:
    """Batches that one process evaluates.

    Attributes:
        batches: ascending indices of the batches.
        images: indices of the images in these batches, `(M,)` int64.
        records: records of all processes in an interrupted run.
        add: function that stores a record and appends it to the result.
        progress: function called with the number of new images and a description of the work. It
            raises `Stopped` after a stop signal.
    """

    batches: list[int]
    images: Tensor
    records: list[dict]
    add: Callable[[dict], None]
    progress: Callable[[int, str], None]


def run_batches(
    journals: Journals,
    images: int,
    size: int,
    incomplete: Callable[[list[dict], int], list[int]],
    work: Callable[[Share], None],
    *,
    device: torch.device,
    say: Callable[[str], None],
    stop: StopSignals | None = None,
) -> list[dict]:
    """Evaluate all batches whose records are missing, in all processes.

    Args:
        journals: journals of the evaluation.
        images: number of images.
        size: images per batch.
        incomplete: function `(records, number of batches)` that returns the indices of the batches
            to evaluate.
        work: function that evaluates the share of this process.
        device: device of this process.
        say: function that prints a line.
        stop: stop signals.

    Returns:
        The records of all processes.

    Raises:
        UserError: the journals have different settings, or cannot be written.
        Stopped: a process received a stop signal.
    """
    batches = -(-images // size)
    old = distributed.from_first(journals.read)
    rest = incomplete(old, batches)
    rank, world = distributed.rank(), distributed.world()
    if old and rank == 0:
        say(f"resuming after {batches - len(rest)} of {batches} batches")
    own = rest[rank::world]
    firsts = torch.tensor(own, dtype=torch.int64)[:, None] * size
    chosen = (firsts + torch.arange(size)).flatten()
    chosen = chosen[chosen < images]
    # The images of all processes together, as if all were as fast as this one
    line = ProgressLine(len(chosen) * world)
    journal = journals.own()
    new: list[dict] = []

    def add(record: dict) -> None:
        journal.add(record)
        new.append(record)

    def progress(count: int, doing: str) -> None:
        if stop and stop.requested:
            raise Stopped
        if rank == 0:
            line.show(count * world, doing)

    try:
        work(Share(own, chosen, old, add, progress))
    except Stopped:
        pass  # the other processes must know
    if rank == 0:
        line.clear()
    if distributed.total([float(bool(stop and stop.requested))], device)[0]:
        raise Stopped
    return old + distributed.collected(new)
