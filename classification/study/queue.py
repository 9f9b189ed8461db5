"""What is missing of a study is made: in order of what needs what, failures tried again later."""

import heapq
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from classification.study import run as study_run
from classification.study.commands import metrics
from classification.study.file import Run
from classification.study.run import BUSY, FAILED, FINISHED, INTERRUPTED, MISTAKE, Outcome


class Executor(Protocol):
    """Where runs are made."""

    def room(self, run: Run) -> bool:
        """Whether it can start this run now."""

    def start(self, run: Run) -> None:
        """Begin it."""

    def ended(self, seconds: float) -> list[tuple[Run, Outcome]]:
        """Those that have ended, after waiting that long for the first."""

    def stop(self) -> None:
        """Ask all runs to save and end; `ended` tells of them."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass
class Queue:
    """The runs of a study on their way.

    Attributes:
        attempts: starts of a run before it is given up, those of earlier calls included.
        pause: seconds before the second start; doubled for each further one.
        told: called with a run, its outcome and the queue whenever one has ended.
    """

    runs: list[Run]
    executor: Executor
    attempts: int = 3
    pause: float = 30.0
    told: Callable = lambda run, outcome, queue: None
    finished: set[Path] = field(default_factory=set)
    failed: dict[Path, str] = field(default_factory=dict)
    going: int = 0
    _failures: Counter = field(default_factory=Counter)  # of this call: a full disk takes no notes

    def work(self, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Make what is missing. Returns whether it came to the end, unstopped."""
        order = {run.folder: place for place, run in enumerate(self.runs)}
        ready: list[tuple[int, Run]] = []
        later: list[tuple[float, int, Run]] = []
        waiting: dict[Path, list[Run]] = {}
        lacking: dict[Path, int] = {}
        for store in {run.store for run in self.runs if run.store}:
            store.fetch_small()
        for run in self.runs:
            if metrics(run.result) is not None:
                self.finished.add(run.folder)
            elif past := study_run.failures(run.folder):
                if self._hopeless(past[-1]["code"], len(past)):
                    self.failed[run.folder] = past[-1]["error"]
        for run in self.runs:
            if run.folder in self.finished or run.folder in self.failed:
                continue
            missing = [n for n in run.needs if n not in self.finished]
            for need in missing:
                waiting.setdefault(need, []).append(run)
            if missing:
                lacking[run.folder] = len(missing)
            else:
                ready.append((order[run.folder], run))
        heapq.heapify(ready)
        for folder in list(self.failed):
            self._give_up(folder, waiting)
        stopped = False
        while (ready or later or self.going) and not (stopped and not self.going):
            if not stopped and stopping():
                stopped = True
                self.executor.stop()
            while later and later[0][0] <= time.monotonic():
                run = heapq.heappop(later)[2]
                heapq.heappush(ready, (order[run.folder], run))
            while ready and not stopped and self.executor.room(ready[0][1]):
                self.executor.start(heapq.heappop(ready)[1])
                self.going += 1
            for run, outcome in self.executor.ended(0.5):
                self.going -= 1
                again = self._ended(run, outcome)
                if again is not None:
                    heapq.heappush(later, (time.monotonic() + again, order[run.folder], run))
                if run.folder in self.finished:
                    for other in waiting.pop(run.folder, ()):
                        lacking[other.folder] -= 1
                        if not lacking[other.folder]:
                            heapq.heappush(ready, (order[other.folder], other))
                if run.folder in self.failed:
                    self._give_up(run.folder, waiting)
                self.told(run, outcome, self)
        return not stopped

    def _ended(self, run: Run, outcome: Outcome) -> float | None:
        """Note how it ended; the seconds after which it should be started again, or None."""
        if run.store:
            run.store.fetch(run.folder)  # it may have been made elsewhere
        if outcome.state == FINISHED:
            self.finished.add(run.folder)
            return None
        if outcome.state in (BUSY, INTERRUPTED):
            return self.pause if outcome.state == BUSY else 0.0
        self._failures[run.folder] += 1
        count = max(len(study_run.failures(run.folder)), self._failures[run.folder])
        if self._hopeless(outcome.code, count):
            self.failed[run.folder] = outcome.error
            return None
        return self.pause * 2 ** (count - 1)

    def _hopeless(self, code: int, failures: int) -> bool:
        return code == MISTAKE or failures >= self.attempts

    def _give_up(self, folder: Path, waiting: dict) -> None:
        """What needs a failed run cannot be made either."""
        for other in waiting.pop(folder, ()):
            if other.folder not in self.failed:
                self.failed[other.folder] = f"needs {folder.name}, which failed"
                self._give_up(other.folder, waiting)


def state(run: Run, attempts: int = 3) -> tuple[str, str]:
    """What has become of a run, from its folder alone: a word, and the error of a failed one.

    `"finished"`, `"running"`, `"failed"`, `"interrupted"` or `"missing"`.
    """
    if metrics(run.result) is not None:
        return FINISHED, ""
    if study_run.running(run.folder):
        return "running", ""
    if past := study_run.failures(run.folder):
        return FAILED, past[-1]["error"]
    return ("interrupted", "") if (run.folder / "run.json").exists() else ("missing", "")
